//! What the control group, the machine and the process's limits allow: memory, processors, sizes.

use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};

use crate::units::Bytes;

/// The memory that this process and its siblings may use together, and what sets the limit: the
/// control group (version 2 or 1) or the machine itself. `None` if neither can be read.
pub fn memory_limit() -> Option<(Bytes, &'static str)> {
    let machine = total_memory().map(|bytes| (bytes, "the machine's memory"));
    let group = group_limit().map(|bytes| (bytes, "the control group's memory limit"));
    machine.into_iter().chain(group).min_by_key(|(bytes, _)| *bytes)
}

/// The largest file that this process may write (`ulimit -f`); `None` for no limit.
pub fn file_size_limit() -> Option<Bytes> {
    getrlimit(Resource::Fsize).current.map(Bytes)
}

/// How many files this process may have open (`ulimit -n`), and how many it has; `None` for no
/// limit, or where it is not known.
pub fn open_files() -> Option<(u64, u64)> {
    let limit = getrlimit(Resource::Nofile).current?;
    Some((limit, std::fs::read_dir("/proc/self/fd").ok()?.count() as u64))
}

fn total_memory() -> Option<Bytes> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(Bytes(kib << 10))
}

/// The tightest limit on the way from this process's group up to the root.
fn group_limit() -> Option<Bytes> {
    let files = group_files("memory", &["memory.max"], &["memory.limit_in_bytes"]);
    files.filter_map(|text| text.trim().parse().ok()).min().map(Bytes)
}

/// The processors that the control group of this process gives it, as a list such as `0-3,8`;
/// `None` if that cannot be read.
pub fn allotted_cpus() -> Option<String> {
    let second = ["cpuset.cpus.effective"];
    let mut files = group_files("cpuset", &second, &["cpuset.effective_cpus", "cpuset.cpus"]);
    files.find(|list| !list.trim().is_empty())
}

/// The contents of files with one of these names, of version 2 or 1 of control groups, from this
/// process's group up to the root.
fn group_files<'a>(
    controller: &'a str,
    second: &'a [&'a str],
    first: &'a [&'a str],
) -> impl Iterator<Item = String> + 'a {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let places: Vec<(PathBuf, PathBuf, &[&str])> = groups
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next().unwrap_or(""), fields.next().unwrap_or(""));
            let root = Path::new("/sys/fs/cgroup");
            let (root, names) = match controllers {
                "" => (root.to_owned(), second),
                list if list.split(',').any(|name| name == controller) => {
                    (root.join(controller), first)
                }
                _ => return None,
            };
            Some((root, PathBuf::from(path.trim_start_matches('/')), names))
        })
        .collect();
    places.into_iter().flat_map(|(root, path, names)| {
        let groups: Vec<PathBuf> = path.ancestors().map(|group| root.join(group)).collect();
        let files = groups.into_iter().flat_map(|group| names.iter().map(move |it| group.join(it)));
        files.filter_map(|file| std::fs::read_to_string(file).ok()).collect::<Vec<_>>()
    })
}
