//! What kind of drive a directory lies on, as the kernel describes it: for the head of a
//! benchmark's result.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::device::Device;
use super::filesystem::filesystem_of;

/// A drive with everything that may explain its speed. What is not known is empty or `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DriveDetails {
    /// The directory that the user named.
    pub root: PathBuf,
    /// Its file system.
    pub filesystem: String,
    /// The options of the mount and of the file system.
    pub mount_options: String,
    /// The device.
    pub device: String,
    /// The whole disk.
    pub disk: String,
    /// The disk's model.
    pub model: Option<String>,
    /// Its firmware.
    pub firmware: Option<String>,
    /// The I/O scheduler in use.
    pub scheduler: Option<String>,
    /// The largest request that the kernel sends, in KiB.
    pub max_sectors_kb: Option<u64>,
    /// Bytes of a sector.
    pub logical_block_bytes: Option<u64>,
    /// Speed and width of the PCIe link.
    pub link: Option<String>,
    /// The NUMA node that it is attached to.
    pub numa_node: Option<u32>,
}

impl DriveDetails {
    /// Reads the details of a drive.
    ///
    /// # Errors
    /// The kernel's, if the directory cannot be inspected.
    pub fn of(root: &Path) -> io::Result<Self> {
        let device = Device::of(root)?;
        let disk = Path::new("/sys/block").join(&device.disk);
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mount_options = mount_options(&mounts, &root.canonicalize()?).unwrap_or_default();
        Ok(Self {
            root: root.to_owned(),
            filesystem: filesystem_of(root).unwrap_or_default(),
            mount_options,
            device: device.name,
            numa_node: device.numa_node,
            disk: device.disk,
            ..Self::of_disk(&disk)
        })
    }

    /// Reads a disk's directory in /sys/block.
    fn of_disk(disk: &Path) -> Self {
        let read = |name: &str| {
            let text = std::fs::read_to_string(disk.join(name)).ok()?;
            Some(text.trim().to_owned()).filter(|text| !text.is_empty())
        };
        let number = |name: &str| read(name)?.parse().ok();
        // An NVMe disk's controller is the device above it, and the PCIe function the one above.
        let link = |name: &str| {
            read(&format!("device/device/{name}")).or_else(|| read(&format!("device/{name}")))
        };
        Self {
            model: read("device/model"),
            firmware: read("device/firmware_rev").or_else(|| read("device/rev")),
            scheduler: read("queue/scheduler").map(|text| chosen(&text)),
            max_sectors_kb: number("queue/max_sectors_kb"),
            logical_block_bytes: number("queue/logical_block_size"),
            link: link("current_link_speed")
                .zip(link("current_link_width"))
                .map(|(speed, width)| format!("{speed} x{width}")),
            ..Self::default()
        }
    }
}

/// The word in brackets, such as in `[none] mq-deadline`, or all of it.
fn chosen(text: &str) -> String {
    let inside = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    inside.map_or(text, |(word, _)| word).to_owned()
}

/// The options of the innermost mount that holds a path (proc(5), mountinfo).
fn mount_options(mounts: &str, path: &Path) -> Option<String> {
    let mount = |line: &str| -> Option<(usize, String)> {
        let (mount, super_block) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(4);
        let (point, options) = (fields.next()?, fields.next()?);
        // Spaces and backslashes in names are written as octal numbers.
        let point = point.replace("\\040", " ").replace("\\134", "\\");
        path.starts_with(&point).then_some(())?;
        let more = super_block.split(' ').nth(2).unwrap_or_default();
        Some((point.len(), format!("{options},{more}")))
    };
    // The last of equals lies on top of those before.
    let (_, options) = mounts.lines().filter_map(mount).max_by_key(|(depth, _)| *depth)?;
    let mut seen: Vec<&str> = Vec::new();
    for option in options.split(',').filter(|option| !option.is_empty()) {
        if !seen.contains(&option) {
            seen.push(option);
        }
    }
    Some(seen.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_mount_counts() {
        let mounts = "22 1 254:1 / / rw,relatime - ext4 /dev/vda1 rw,discard\n\
                      30 22 7:0 / /nvme\\0400 rw,noatime - xfs /dev/nvme0n1 rw,attr2\n";
        let options = |path: &str| mount_options(mounts, Path::new(path));
        assert_eq!(options("/nvme 0/me").as_deref(), Some("rw,noatime,attr2"));
        assert_eq!(options("/nvme").as_deref(), Some("rw,relatime,discard"));
        assert_eq!(mount_options("", Path::new("/")), None);
    }

    #[test]
    fn a_disk_tells_its_model_and_its_link() {
        let disk = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("device/model", "Fast 3.84TB  \n"),
            ("device/firmware_rev", "1.2\n"),
            ("queue/scheduler", "[none] mq-deadline\n"),
            ("queue/max_sectors_kb", "128\n"),
            ("device/device/current_link_speed", "16.0 GT/s PCIe\n"),
            ("device/device/current_link_width", "4\n"),
        ] {
            let path = disk.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let details = DriveDetails::of_disk(disk.path());
        assert_eq!(details.model.as_deref(), Some("Fast 3.84TB"));
        assert_eq!(details.scheduler.as_deref(), Some("none"));
        assert_eq!(details.max_sectors_kb, Some(128));
        assert_eq!(details.link.as_deref(), Some("16.0 GT/s PCIe x4"));
        assert_eq!(DriveDetails::of_disk(Path::new("/missing")), DriveDetails::default());
    }
}
