//! Looking at the machine.

use std::path::Path;

use crate::units::Bytes;

/// The memory that this process and its siblings may use together, and what sets the limit: the
/// control group (version 2 or 1) or the machine itself. `None` if nothing tells.
pub fn memory_limit() -> Option<(Bytes, &'static str)> {
    let machine = total_memory().map(|bytes| (bytes, "the machine's memory"));
    let group = group_limit().map(|bytes| (bytes, "the control group's memory limit"));
    machine.into_iter().chain(group).min_by_key(|(bytes, _)| *bytes)
}

fn total_memory() -> Option<Bytes> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(Bytes(kib << 10))
}

/// The tightest limit on the way from this process's group up to the root.
fn group_limit() -> Option<Bytes> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let limits = groups.lines().flat_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next().unwrap_or(""), fields.next().unwrap_or(""));
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            list if list.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => return Vec::new(),
        };
        let path = Path::new(path.trim_start_matches('/'));
        let files = path.ancestors().map(|group| Path::new(root).join(group).join(file));
        files.filter_map(|file| std::fs::read_to_string(file).ok()?.trim().parse().ok()).collect()
    });
    limits.min().map(Bytes)
}
