//! What the system allows this process, read from /proc and /sys: for `optswap doctor`.

use std::path::Path;

use rustix::process::{Resource, getrlimit};

use super::number_ranges::cpu_list;
use crate::units::Bytes;

/// What is known about the machine and this process; `None` for what cannot be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineFacts {
    /// The host's name.
    pub host: String,
    /// The kernel's release, such as `6.1.0-13-amd64`.
    pub kernel: String,
    /// `kernel.io_uring_disabled`: 0 allows io_uring to all, 1 to a group, 2 to nobody. Older
    /// kernels do not have it.
    pub uring_disabled: Option<u32>,
    /// Whether a seccomp filter looks at this process's system calls.
    pub has_seccomp_filter: bool,
    /// Bytes of memory that this user may lock; `None` is no limit.
    pub locked_memory_limit: Option<Bytes>,
    /// Whether that limit does not bind this process (`CAP_IPC_LOCK`).
    pub may_lock_all: bool,
    /// The largest file that this process may write; `None` is no limit.
    pub file_size_limit: Option<Bytes>,
    /// How many files this process may have open; `None` is no limit.
    pub open_files_limit: Option<u64>,
    /// The memory that this process may map, by its own limits; `None` is no limit.
    pub mapped_memory_limit: Option<Bytes>,
    /// Transparent huge pages: `always`, `madvise` or `never`.
    pub huge_pages: Option<String>,
    /// Huge pages that are set aside (`HugePages_Total`).
    pub reserved_huge_pages: Option<u64>,
    /// The memory that this process may use, and what sets the limit.
    pub memory: Option<(Bytes, &'static str)>,
    /// Processors that this process may run on.
    pub cpus_allowed: Vec<u32>,
    /// Processors that are there.
    pub cpus_online: Vec<u32>,
    /// NUMA nodes: the number and the processors of each.
    pub numa_nodes: Vec<(u32, Vec<u32>)>,
}

impl MachineFacts {
    /// Reads what is known about this machine and this process.
    pub fn probe() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).ok();
        let status = read("/proc/self/status").unwrap_or_default();
        let memory = read("/proc/meminfo").unwrap_or_default();
        let uname = rustix::system::uname();
        Self {
            host: uname.nodename().to_string_lossy().into_owned(),
            kernel: uname.release().to_string_lossy().into_owned(),
            uring_disabled: read("/proc/sys/kernel/io_uring_disabled")
                .and_then(|text| text.trim().parse().ok()),
            has_seccomp_filter: field(&status, "Seccomp") == Some("2"),
            locked_memory_limit: getrlimit(Resource::Memlock).current.map(Bytes),
            file_size_limit: super::file_size_limit(),
            open_files_limit: getrlimit(Resource::Nofile).current,
            mapped_memory_limit: [Resource::As, Resource::Data]
                .into_iter()
                .filter_map(|resource| getrlimit(resource).current.map(Bytes))
                .min(),
            may_lock_all: field(&status, "CapEff").is_some_and(has_ipc_lock),
            huge_pages: read("/sys/kernel/mm/transparent_hugepage/enabled")
                .and_then(|text| chosen(&text)),
            reserved_huge_pages: field(&memory, "HugePages_Total")
                .and_then(|text| text.parse().ok()),
            memory: super::memory_limit(),
            cpus_allowed: field(&status, "Cpus_allowed_list").map(cpu_list).unwrap_or_default(),
            cpus_online: read("/sys/devices/system/cpu/online")
                .map(|text| cpu_list(&text))
                .unwrap_or_default(),
            numa_nodes: numa_nodes(Path::new("/sys/devices/system/node")),
        }
    }

    /// The NUMA nodes whose processors this process may use.
    pub fn nodes_allowed(&self) -> Vec<u32> {
        let is_near = |cpus: &[u32]| cpus.iter().any(|cpu| self.cpus_allowed.contains(cpu));
        let near = self.numa_nodes.iter().filter(|(_, cpus)| is_near(cpus));
        near.map(|(node, _)| *node).collect()
    }
}

/// The value of a line `name: value` of /proc/self/status or /proc/meminfo.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let values = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    values.map(str::trim).next()
}

/// Whether a mask of capabilities, in hexadecimal digits, has `CAP_IPC_LOCK`.
fn has_ipc_lock(mask: &str) -> bool {
    u64::from_str_radix(mask, 16).is_ok_and(|mask| mask & 1 << 14 != 0)
}

/// The word in brackets: `always [madvise] never`.
fn chosen(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}

fn numa_nodes(root: &Path) -> Vec<(u32, Vec<u32>)> {
    let listing = std::fs::read_dir(root).into_iter().flatten().flatten();
    let node = |entry: std::fs::DirEntry| {
        let number = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
        let cpus = std::fs::read_to_string(entry.path().join("cpulist")).ok()?;
        Some((number, cpu_list(&cpus)))
    };
    let mut nodes: Vec<_> = listing.filter_map(node).collect();
    nodes.sort();
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\toptswap\nCapPrm:\t0000000000000000\nCapEff:\t0000000000004000\n\
                          Seccomp:\t2\nSeccomp_filters:\t1\nCpus_allowed_list:\t0-2,5\n";

    #[test]
    fn the_status_of_a_process_is_read() {
        assert_eq!(field(STATUS, "Seccomp"), Some("2"));
        assert_eq!(field(STATUS, "Cpus_allowed_list").map(cpu_list), Some(vec![0, 1, 2, 5]));
        assert_eq!(field(STATUS, "Cap"), None);
        assert!(field(STATUS, "CapEff").is_some_and(has_ipc_lock));
        assert!(!has_ipc_lock("00000000a80425fb"), "what containers have");
        assert!(!has_ipc_lock("none"));
    }

    #[test]
    fn settings_are_read() {
        assert_eq!(chosen("always [madvise] never\n").as_deref(), Some("madvise"));
        assert_eq!(chosen("always\n"), None);
    }

    #[test]
    fn nodes_near_a_process_are_found() {
        let numa_nodes = vec![(0, vec![0, 1]), (1, vec![2, 3])];
        let facts = MachineFacts { numa_nodes, cpus_allowed: vec![3], ..MachineFacts::default() };
        assert_eq!(facts.nodes_allowed(), [1]);
    }
}
