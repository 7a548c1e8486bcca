//! File systems by name, and what their names say.

use std::path::Path;

const MEMORY_FILESYSTEMS: [&str; 2] = ["tmpfs", "ramfs"];

/// File systems of other machines, of programs, and of containers.
const REMOTE_FILESYSTEMS: [&str; 12] = [
    "nfs", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb", "orangefs", "panfs", "9p", "fuse",
    "overlay",
];

/// The name of the file system that a path lies on, such as `ext4`; `None` if that cannot be found
/// out.
pub fn filesystem_of(path: &Path) -> Option<String> {
    Some(filesystem_name(rustix::fs::statfs(path).ok()?.f_type as u64))
}

/// Whether a file system of this name keeps its files in memory.
pub fn is_memory_filesystem(name: &str) -> bool {
    MEMORY_FILESYSTEMS.contains(&name)
}

/// Whether a file system of this name keeps its files on drives of this machine.
pub fn is_local_filesystem(name: &str) -> bool {
    !REMOTE_FILESYSTEMS.contains(&name)
}

/// The name of a file system by its magic number in statfs(2).
pub(super) fn filesystem_name(magic: u64) -> String {
    let name = match magic & 0xffff_ffff {
        0xef53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683e => "btrfs",
        0x0102_1994 => "tmpfs",
        0x8584_58f6 => "ramfs",
        0x794c_7630 => "overlay",
        0x6969 => "nfs",
        0x0bd0_0bd0 => "lustre",
        0x4750_4653 => "gpfs",
        0x1983_0326 => "beegfs",
        0x00c3_6400 => "ceph",
        0xff53_4d42 => "cifs",
        0xfe53_4d42 => "smb",
        0x2003_0528 => "orangefs",
        0xaad7_aaea => "panfs",
        0x0102_1997 => "9p",
        0x2fc1_2fc1 => "zfs",
        0xca45_1a4e => "bcachefs",
        0x3434 => "nilfs2",
        0xf2f5_2010 => "f2fs",
        0x6573_5546 => "fuse",
        other => return format!("0x{other:x}"),
    };
    name.to_owned()
}
