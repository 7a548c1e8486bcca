//! Inspecting a drive, which a user names by a directory on it, and trying it out.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD};
use rustix::io::Errno;

use super::device::Device;
use super::filesystem::{filesystem_name, is_local_filesystem, is_memory_filesystem};
use super::private::is_not_ours;
use super::space::explained;
use super::trial::DriveTrial;
use crate::error::{Error, ErrorKind, Result};

/// What is known about a drive before anything is created on it.
#[derive(Clone, Debug, Default)]
pub struct Drive {
    /// The directory that the user named.
    pub root: PathBuf,
    /// The device that the directory lies on (`st_dev`): drives of equal numbers share its space.
    pub device: u64,
    /// The whole disk that the device is a part of ([`Device::disk`]): drives of equal names share
    /// its speed.
    pub disk: String,
    /// The file system's name, such as `ext4`.
    pub filesystem: String,
    /// Bytes that this process may still allocate.
    pub free_bytes: u64,
    /// Files that this process may still create; `None` where the file system does not count them.
    pub free_inodes: Option<u64>,
    /// Whether direct I/O works, as far as it was tried.
    pub is_direct: bool,
    /// Whether what is overwritten keeps its place, as far as it was tried. Otherwise a job needs
    /// room for what it writes beside what it overwrites.
    pub overwrites_in_place: bool,
}

impl Drive {
    /// Inspects one drive, without trying it.
    ///
    /// # Errors
    /// Unavailable if it is missing, no directory, or if it is a memory file system that
    /// `allow_filesystems` does not name.
    pub fn inspect(root: &Path, allow_filesystems: &[String]) -> Result<Self> {
        let refused = |message: &str| {
            Error::new(ErrorKind::Unavailable, message).with("drive", root.display())
        };
        let metadata = std::fs::metadata(root).map_err(|error| {
            refused("the drive cannot be found")
                .because(error)
                .hint("name a directory on each drive with --drives DIR,DIR or in [drives] paths")
        })?;
        if !metadata.is_dir() {
            return Err(refused("the drive is no directory").hint("name a directory on the drive"));
        }
        let io_error = |errno: Errno| {
            refused("the drive does not answer")
                .because(io::Error::from(errno))
                .hint("look at the kernel's log (dmesg), or name another drive")
        };
        let space = rustix::fs::statvfs(root).map_err(io_error)?;
        let filesystem = filesystem_name(rustix::fs::statfs(root).map_err(io_error)?.f_type as u64);
        if is_memory_filesystem(&filesystem) && !allow_filesystems.contains(&filesystem) {
            return Err(refused("the drive is a memory file system")
                .with("file system", &filesystem)
                .hint(format!(
                    "swapping to memory saves none; for a test, force it by name with \
                     --allow-fs {filesystem}"
                )));
        }
        let device = rustix::fs::stat(root).map_err(io_error)?.st_dev;
        Ok(Self {
            root: root.to_owned(),
            device,
            disk: Device::of_number(device).disk,
            filesystem,
            free_bytes: space.f_bavail * space.f_frsize,
            free_inodes: (space.f_files > 0).then_some(space.f_favail),
            is_direct: true,
            overwrites_in_place: true,
        })
    }

    /// Inspects one drive and tries what a job of this name needs of it. Nothing stays behind.
    ///
    /// # Errors
    /// As [`Self::inspect`]; unavailable if it is not writable, or what lies there is not this
    /// user's; cannot create if it has no room for a small file.
    pub fn try_out(root: &Path, allow: &[String], job: &str) -> Result<(Self, DriveTrial)> {
        let drive = Self::inspect(root, allow)?;
        let trial = DriveTrial::of(root, job).map_err(|error| unusable(root, error))?;
        if let (Err(_), Err(error)) = (&trial.direct, &trial.buffered) {
            let again = error.raw_os_error().map(io::Error::from_raw_os_error);
            return Err(unusable(
                root,
                again.unwrap_or_else(|| io::Error::other(error.to_string())),
            ));
        }
        if let Some(align) = trial.alignment.filter(|align| 4096 % align != 0) {
            return Err(Error::new(
                ErrorKind::CannotCreate,
                "the drive asks for an alignment beyond 4,096 bytes",
            )
            .with("drive", root.display())
            .with("alignment", align));
        }
        let is_direct = trial.direct.is_ok();
        let overwrites_in_place = trial.overwrites_in_place;
        Ok((Self { is_direct, overwrites_in_place, ..drive }, trial))
    }
}

/// The error of a drive on which not even a small file works.
fn unusable(root: &Path, error: io::Error) -> Error {
    let refused = |kind, message: &str| Error::new(kind, message).with("drive", root.display());
    if is_not_ours(&error) {
        let message = "what lies on the drive is not this user's alone";
        return refused(ErrorKind::Unavailable, message).because(error);
    }
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => {
            refused(ErrorKind::Unavailable, "the drive is not writable")
                .because(error)
                .hint("give this user a directory of its own on the drive")
        }
        Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => explained(
            refused(ErrorKind::CannotCreate, "the drive has no room for a small file"),
            error,
            root,
        ),
        _ => explained(
            refused(ErrorKind::Unavailable, "a small file on the drive does not work")
                .hint("look at the kernel's log (dmesg), or name another drive"),
            error,
            root,
        ),
    }
}

/// Tries all drives for a job of this name. Two directories on the same disk, a file system that is
/// not a local drive's own, and what a file system lacks, are warnings.
///
/// # Errors
/// Those of [`Drive::try_out`]; usage if the same directory is named twice.
pub fn try_drives(
    roots: &[PathBuf],
    allow_filesystems: &[String],
    job: &str,
) -> Result<Vec<Drive>> {
    let mut drives: Vec<Drive> = Vec::with_capacity(roots.len());
    for root in roots {
        let (drive, trial) = Drive::try_out(root, allow_filesystems, job)?;
        warn_of(&drive, &trial);
        drives.push(drive);
    }
    for (index, drive) in drives.iter().enumerate() {
        let earlier = &drives[..index];
        if earlier.iter().any(|twin| same_directory(&twin.root, &drive.root)) {
            return Err(Error::usage("the same directory is named twice as a drive")
                .with("drive", drive.root.display()));
        }
        if let Some(twin) = earlier.iter().find(|twin| twin.disk == drive.disk) {
            tracing::warn!(
                "{} and {} lie on the same device ({}): striping over both gains nothing",
                twin.root.display(),
                drive.root.display(),
                drive.disk
            );
        }
        if !is_local_filesystem(&drive.filesystem) {
            tracing::warn!(
                "{} is on {}, no local drive's own file system: it may be slow, or \
                 shared. Name a directory on a local drive; in a container, mount it from the host",
                drive.root.display(),
                drive.filesystem
            );
        }
    }
    Ok(drives)
}

/// Warns of what a drive's file system lacks.
fn warn_of(drive: &Drive, trial: &DriveTrial) {
    let root = drive.root.display();
    if let Err(error) = &trial.locks {
        tracing::warn!(
            "{root}: the file system has no file locks ({error}), so nothing keeps a second job of \
             this name on another machine from overwriting this one's state; mount it with locks \
             (Lustre: -o flock), or use a local drive"
        );
    }
    if let Err(error) = &trial.direct {
        tracing::warn!(
            "{root}: direct I/O refused by the file system, falling back to buffered I/O: {error}"
        );
    }
    if !trial.overwrites_in_place {
        tracing::warn!(
            "{root}: {} writes what is overwritten to new places: twice the space is needed, and \
             none can be set aside, so other users of the drive can stop the job",
            drive.filesystem
        );
    } else if let Err(error) = &trial.preallocation {
        tracing::warn!(
            "{root}: space cannot be set aside ({error}): where that is not known to the file \
             system, new files are written with zeros first, which takes time"
        );
    }
}

/// Whether two paths are known to lie on the same disk.
pub fn same_disk(a: &Path, b: &Path) -> bool {
    matches!((Device::of(a), Device::of(b)), (Ok(a), Ok(b)) if a.disk == b.disk)
}

/// Whether it is known that this process may not create files in a directory. A filter of system
/// calls (seccomp) may refuse the question itself, which says nothing.
pub fn is_forbidden(directory: &Path) -> bool {
    let access = Access::WRITE_OK | Access::EXEC_OK;
    let asked = rustix::fs::accessat(CWD, directory, access, AtFlags::EACCESS);
    matches!(asked, Err(Errno::ACCESS | Errno::ROFS))
}

fn same_directory(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}
