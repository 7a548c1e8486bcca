//! A trial of a drive with a small file: what its file system supports of what optswap uses. The
//! file is removed at once, so nothing is left behind.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, OFlags, fallocate};

use super::drive::direct_io_alignment;

const SECTOR: usize = 4096;

/// Memory as direct I/O wants it.
#[repr(align(4096))]
struct Sector([u8; SECTOR]);

/// What a drive did with a small file.
#[derive(Debug)]
pub struct DriveTrial {
    /// Direct I/O: whether a sector could be written and read back, or the error.
    pub direct: io::Result<()>,
    /// The same without direct I/O, which optswap falls back to.
    pub buffered: io::Result<()>,
    /// The alignment in bytes that direct I/O needs of offsets and memory; older kernels and some
    /// file systems do not know it.
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
    // No link is followed, so no file of another user is written to.
    let flags = flags | OFlags::NOFOLLOW;
    let file = options.custom_flags(flags.bits() as i32).open(path)?;
    let (mut written, mut read) = (Sector([0; SECTOR]), Sector([0; SECTOR]));
    written.0.iter_mut().enumerate().for_each(|(at, byte)| *byte = at as u8);
    file.write_all_at(&written.0, 0)?;
    file.read_exact_at(&mut read.0, 0)?;
    if written.0 != read.0 {
        return Err(io::Error::other("other bytes were read than written"));
    }
    Ok(())
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
}
