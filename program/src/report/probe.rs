//! What drives can do, as a table for people.

use crate::measure::NodeProbe;
use optswap::internals::storage::DriveProfile;
use optswap::internals::telemetry::TextTable;

/// Drives that together reach less than this part of their sum share something.
const SHARED: f64 = 0.9;

/// One line for each drive and one for each node with several, MB/s; then what is worth saying.
pub fn probe_table(nodes: &[NodeProbe]) -> String {
    let mut table = TextTable::of_numbers([
        "drive (MB/s)",
        "file system",
        "device",
        "read",
        "write",
        "both",
        "both, all at once",
        "spread",
    ]);
    let mb = |bytes_per_s: f64| format!("{:.1}", bytes_per_s / 1e6);
    for node in nodes {
        for drive in &node.drives {
            let profile = &drive.profile;
            table.add_row([
                format!("{}:{}", node.host, drive.root.display()),
                drive.filesystem.clone(),
                drive.device.clone(),
                mb(profile.read_bytes_per_s),
                mb(profile.write_bytes_per_s),
                mb(profile.mixed_bytes_per_s),
                mb(profile.weight()),
                format!("{:.1} %", profile.spread * 100.0),
            ]);
        }
        if node.drives.len() > 1 {
            let sum = |value: fn(&DriveProfile) -> f64| {
                mb(node.drives.iter().map(|drive| value(&drive.profile)).sum())
            };
            table.add_row([
                format!("{}, sum of {}", node.host, node.drives.len()),
                String::new(),
                String::new(),
                sum(|profile| profile.read_bytes_per_s),
                sum(|profile| profile.write_bytes_per_s),
                sum(|profile| profile.mixed_bytes_per_s),
                sum(DriveProfile::weight),
                String::new(),
            ]);
        }
    }
    let mut text = table.to_string();
    for remark in nodes.iter().flat_map(remarks) {
        text.push('\n');
        text.push_str(&remark);
    }
    text
}

fn remarks(node: &NodeProbe) -> Vec<String> {
    let mut remarks = Vec::new();
    for drive in &node.drives {
        let root = drive.root.display();
        if !drive.is_direct {
            remarks.push(format!(
                "{}: {root} was not measured itself: the kernel moved less than optswap did, so \
                 the page cache answered",
                node.host
            ));
        }
        if let Some(twin) = &drive.shares_device_with {
            remarks.push(format!(
                "{}: {root} and {} lie on one device: name only one of them",
                node.host,
                twin.display()
            ));
        }
    }
    let share = node.mixed_together() / node.mixed_alone().max(1.0);
    if node.drives.len() > 1 && share < SHARED {
        remarks.push(format!(
            "{}: together the drives reach {:.0} % of their sum: they share something (a device, a \
             switch, the processor)",
            node.host,
            share * 100.0
        ));
    }
    remarks
}
