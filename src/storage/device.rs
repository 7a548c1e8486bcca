//! The device beneath a directory, as the kernel describes it in /sys.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What the kernel knows about the device beneath a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Its name, such as `nvme0n1p1`, or its number where it has none.
    pub name: String,
    /// The whole disk that it is a part of, such as `nvme0n1`.
    pub disk: String,
    /// Whether the kernel takes it for a rotating disk. Virtual disks often look like one.
    pub rotates: Option<bool>,
    /// The NUMA node that it is attached to.
    pub numa_node: Option<u32>,
}

impl Device {
    /// The device of a directory.
    ///
    /// # Errors
    /// The kernel's, if the directory cannot be inspected.
    pub fn of(root: &Path) -> io::Result<Self> {
        Ok(Self::of_number(std::fs::metadata(root)?.dev()))
    }

    /// The device of this number (`st_dev`).
    pub(super) fn of_number(number: u64) -> Self {
        let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
        let name = format!("{major}:{minor}");
        // Network file systems, overlays and btrfs have numbers without a device.
        let Ok(path) = Path::new("/sys/dev/block").join(&name).canonicalize() else {
            return Self { name: name.clone(), disk: name, ..Self::default() };
        };
        Self::at(&path)
    }

    /// Reads a block device's directory below /sys/devices.
    fn at(path: &Path) -> Self {
        let is_part = path.join("partition").exists();
        let disk = if is_part { path.parent().unwrap_or(path) } else { path };
        // A logical volume, or an encrypted device, on one other device.
        let below = std::fs::read_dir(disk.join("slaves")).into_iter().flatten().flatten();
        let below: Vec<PathBuf> = below.map(|entry| entry.path()).collect();
        if let [only] = below.as_slice()
            && let Ok(lower) = only.canonicalize()
        {
            return Self { name: file_name(path), ..Self::at(&lower) };
        }
        let read = |path: PathBuf| Some(std::fs::read_to_string(path).ok()?.trim().to_owned());
        Self {
            name: file_name(path),
            disk: file_name(disk),
            rotates: read(disk.join("queue/rotational")).map(|text| text == "1"),
            // The controller, or the bus that it is on, knows; -1 is no node.
            numa_node: disk
                .ancestors()
                .find_map(|above| read(above.join("numa_node")))
                .and_then(|text| text.parse().ok()),
        }
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_part_of_a_disk_on_a_bus() {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("pci0000:40/nvme/nvme0/nvme0n1");
        let partition = disk.join("nvme0n1p1");
        std::fs::create_dir_all(&partition).unwrap();
        std::fs::create_dir(disk.join("queue")).unwrap();
        std::fs::write(disk.join("queue/rotational"), "0\n").unwrap();
        std::fs::write(partition.join("partition"), "1\n").unwrap();
        std::fs::write(folder.path().join("pci0000:40/numa_node"), "1\n").unwrap();
        let expected = Device {
            name: "nvme0n1p1".to_owned(),
            disk: "nvme0n1".to_owned(),
            rotates: Some(false),
            numa_node: Some(1),
        };
        assert_eq!(Device::at(&partition), expected);

        let volume = folder.path().join("virtual/dm-0");
        std::fs::create_dir_all(volume.join("slaves")).unwrap();
        std::os::unix::fs::symlink(&partition, volume.join("slaves/nvme0n1p1")).unwrap();
        assert_eq!(Device::at(&volume), Device { name: "dm-0".to_owned(), ..expected });
        // Over several there is one disk of its own.
        std::os::unix::fs::symlink(&disk, volume.join("slaves/nvme1n1")).unwrap();
        assert_eq!(Device::at(&volume).disk, "dm-0");
    }
}
