//! Trying a drive: what its file system does with a file as optswap uses them, and what device it
//! is on. The file has no name that stays, so nothing is left behind.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, OFlags, fallocate};

use super::drive::direct_io_alignment;

const SECTOR: usize = 4096;

/// Memory as direct I/O wants it.
#[repr(align(4096))]
struct Sector([u8; SECTOR]);

/// What a drive did with a small file.
#[derive(Debug)]
pub struct DriveTrial {
    /// Direct I/O: a sector written and read back. `Err` with what was refused.
    pub direct: io::Result<()>,
    /// The same without direct I/O, which optswap falls back to.
    pub buffered: io::Result<()>,
    /// What direct I/O demands of offsets and memory; older kernels and some file systems do not
    /// tell.
    pub alignment: Option<u64>,
    /// Whether space can be set aside.
    pub preallocation: io::Result<()>,
}

impl DriveTrial {
    /// Tries a directory that [`super::Drive::inspect`] has accepted.
    pub fn of(root: &Path) -> Self {
        let path = root.join(format!(".optswap-doctor-{}", std::process::id()));
        let mut trial = Self {
            direct: sector_through(&path, OFlags::DIRECT),
            buffered: sector_through(&path, OFlags::empty()),
            alignment: direct_io_alignment(&path),
            preallocation: Ok(()),
        };
        trial.preallocation = File::options()
            .write(true)
            .open(&path)
            .and_then(|file| Ok(fallocate(&file, FallocateFlags::empty(), 0, 16 * SECTOR as u64)?));
        // It fails only where nothing could be created.
        let _ = std::fs::remove_file(&path);
        trial
    }
}

fn sector_through(path: &Path, flags: OFlags) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    // Nobody's link is followed, so nobody's file is written to.
    let flags = flags | OFlags::NOFOLLOW;
    let file = options.custom_flags(flags.bits() as i32).open(path)?;
    let (mut written, mut read) = (Sector([0; SECTOR]), Sector([0; SECTOR]));
    written.0.iter_mut().enumerate().for_each(|(at, byte)| *byte = at as u8);
    file.write_all_at(&written.0, 0)?;
    file.read_exact_at(&mut read.0, 0)?;
    match written.0 == read.0 {
        true => Ok(()),
        false => Err(io::Error::other("other bytes were read than written")),
    }
}

/// What the kernel knows of the device beneath a directory.
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
    /// If the directory cannot be looked at.
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
    fn a_trial_leaves_nothing_behind() {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let trial = DriveTrial::of(folder.path());
        trial.buffered.unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(DriveTrial::of(&folder.path().join("missing")).buffered.is_err());
    }

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
