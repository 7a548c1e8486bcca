//! A trial of a drive with a small file, in the job's directory and created as the job will create
//! its own: what the file system does of what optswap asks. A job goes by it at its start, and
//! `doctor` reports it. Nothing is left behind.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{AtFlags, OFlags, StatxFlags};

use super::directory::{TOP, remove_empty};
use super::lock::Lock;
use super::private::PrivateDirectory;
use super::space::{overwrite_in_place, set_aside};

const SECTOR: usize = 4096;
/// The trial's file is this long.
const FILE_BYTES: u64 = 16 * SECTOR as u64;
/// Two trials may draw one name.
const NAMES_MAX: usize = 16;

/// Memory as direct I/O wants it.
#[repr(align(4096))]
struct Sector([u8; SECTOR]);

/// What a drive did with a small file.
#[derive(Debug)]
pub struct DriveTrial {
    /// Whether files can be locked, or the error.
    pub locks: io::Result<()>,
    /// Direct I/O: whether a sector could be written and read back, or the error.
    pub direct: io::Result<()>,
    /// The same without direct I/O, which optswap falls back to.
    pub buffered: io::Result<()>,
    /// The alignment in bytes that direct I/O needs of offsets and memory; older kernels and some
    /// file systems do not know it.
    pub alignment: Option<u64>,
    /// Whether space can be set aside.
    pub preallocation: io::Result<()>,
    /// Whether what is overwritten keeps its place. Otherwise space that was set aside is not
    /// enough.
    pub overwrites_in_place: bool,
    /// Whether a file could be flushed, given another name, and the directory flushed.
    pub flushing: io::Result<()>,
}

impl DriveTrial {
    /// Tries the drive that this directory lies on, for a job of this name.
    ///
    /// # Errors
    /// The system's, if no file can be created; or one that says why, if what lies there is not
    /// this user's.
    pub fn of(root: &Path, job: &str) -> io::Result<Self> {
        let tried = PrivateDirectory::retry(|| {
            Self::in_directory(&PrivateDirectory::create(root, &[TOP, job])?)
        });
        remove_empty(root, &[TOP, job]);
        tried
    }

    fn in_directory(directory: &PrivateDirectory) -> io::Result<Self> {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let prefix = format!("trial-{host}-");
        remove_left_behind(directory, &prefix);
        let (name, file) = create(directory, &prefix)?;
        let mut trial = Self {
            locks: match Lock::take(&file, Duration::ZERO) {
                Lock::Missing(errno) => Err(errno.into()),
                Lock::Ours | Lock::Held => Ok(()),
            },
            overwrites_in_place: overwrite_in_place(&file, directory.path()),
            preallocation: set_aside(&file, FILE_BYTES),
            direct: directory
                .open_file(&name, OFlags::RDWR | OFlags::DIRECT)
                .and_then(|file| sector_through(&file)),
            buffered: sector_through(&file),
            alignment: direct_io_alignment(&file),
            flushing: Ok(()),
        };
        let other = format!("{name}.new");
        trial.flushing = file
            .sync_data()
            .and_then(|()| directory.rename(&name, &other))
            .and_then(|()| directory.sync());
        for name in [name, other] {
            let _ = directory.remove_file(&name);
        }
        Ok(trial)
    }
}

/// Removes the files of trials on this host whose processes were killed.
fn remove_left_behind(directory: &PrivateDirectory, prefix: &str) {
    for name in directory.names().unwrap_or_default() {
        let process = name.strip_prefix(prefix).and_then(|rest| rest.split('-').next());
        if process.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = directory.remove_file(&name);
        }
    }
}

/// Creates a file that nobody has.
fn create(directory: &PrivateDirectory, prefix: &str) -> io::Result<(String, File)> {
    let mut tries = 0;
    loop {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let moment = now.map_or(0, |now| now.as_nanos());
        let name = format!("{prefix}{}-{moment}", std::process::id());
        let created = directory.open_file(&name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL);
        match created {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && tries < NAMES_MAX => {
                tries += 1;
            }
            created => return Ok((name, created?)),
        }
    }
}

/// The alignment in bytes that direct I/O on a file needs, where the kernel knows it (statx
/// `STATX_DIOALIGN`, Linux 6.1).
fn direct_io_alignment(file: &File) -> Option<u64> {
    let asked = StatxFlags::from_bits_retain(0x2000);
    let found = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, asked).ok()?;
    let is_known = found.stx_mask & asked.bits() != 0;
    let align = u64::from(found.stx_dio_offset_align.max(found.stx_dio_mem_align));
    (is_known && align > 0).then_some(align)
}

fn sector_through(file: &File) -> io::Result<()> {
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
        let trial = DriveTrial::of(folder.path(), "job").unwrap();
        trial.buffered.unwrap();
        trial.locks.unwrap();
        trial.flushing.unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(DriveTrial::of(&folder.path().join("missing"), "job").is_err());
    }
}
