//! Space for files: set aside when a job starts, so that a step never lacks it; and, where there is
//! none, which of the things that a file takes has run out.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, IFlags, fallocate};
use rustix::io::Errno;

use super::filesystem::filesystem_of;
use crate::config::file_size_limit;
use crate::error::{Error, ErrorKind, Result};
use crate::units::Bytes;

/// File systems that write what is overwritten to another place, and free the old one later.
const COPYING_FILESYSTEMS: [&str; 4] = ["btrfs", "bcachefs", "zfs", "nilfs2"];

/// Bytes that are written at once where space can only be had by writing.
const ZEROS_BYTES: usize = 1 << 20;
const SECTOR: usize = 4096;

/// Makes sure that an empty file is overwritten in place, and says whether it is: otherwise
/// overwriting takes new space, whatever was set aside.
pub fn overwrite_in_place(file: &File, path: &Path) -> bool {
    let copies = filesystem_of(path).is_some_and(|it| COPYING_FILESYSTEMS.contains(&&*it));
    if !copies {
        return true;
    }
    let flags = || rustix::fs::ioctl_getflags(file).unwrap_or(IFlags::empty());
    if !flags().contains(IFlags::NOCOW) {
        // btrfs allows this for empty files.
        let _ = rustix::fs::ioctl_setflags(file, flags() | IFlags::NOCOW);
    }
    flags().contains(IFlags::NOCOW)
}

/// Asks the file system to set space aside for the first bytes of a file.
pub(super) fn set_aside(file: &File, bytes: u64) -> io::Result<()> {
    Ok(fallocate(file, FallocateFlags::empty(), 0, bytes)?)
}

/// The same, and leaves the file as long as it is. Where the file system cannot do that, nothing is
/// set aside.
pub(super) fn set_aside_beyond_end(file: &File, bytes: u64) -> io::Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    match fallocate(file, FallocateFlags::KEEP_SIZE, 0, bytes).map_err(io::Error::from) {
        Err(error) if is_unknown(&error) => Ok(()),
        result => result,
    }
}

/// Whether the file system, or a filter of system calls (seccomp), does not know fallocate.
fn is_unknown(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    errno.is_some_and(|it| [Errno::OPNOTSUPP, Errno::NOSYS, Errno::PERM].contains(&it))
}

/// Makes a file this long, with its space set aside. Where the file system cannot do
/// that, what is new is written with zeros, unless that would keep no space either.
/// `on_progress` gets the bytes written so far.
pub(super) fn preallocate(
    file: &File,
    bytes: u64,
    is_overwritten_in_place: bool,
    on_progress: &dyn Fn(u64),
) -> io::Result<()> {
    let begin = file.metadata()?.len();
    if bytes <= begin {
        return Ok(());
    }
    match set_aside(file, bytes) {
        Err(error) if !is_unknown(&error) => return Err(error),
        Ok(()) => return Ok(()),
        Err(_) if is_overwritten_in_place => {}
        Err(_) => return file.set_len(bytes),
    }
    // Direct I/O wants aligned memory. Sizes of files are whole sectors.
    let zeros = vec![0u8; ZEROS_BYTES + SECTOR];
    let zeros = &zeros[zeros.as_ptr().align_offset(SECTOR)..][..ZEROS_BYTES];
    let mut at = begin;
    while at < bytes {
        let some = (bytes - at).min(ZEROS_BYTES as u64);
        file.write_all_at(&zeros[..some as usize], at)?;
        at += some;
        on_progress(at - begin);
    }
    // Only when they are on the drive is it known that it has room for them.
    file.sync_data()
}

/// An error if a file of so many bytes is more than this process may write (`ulimit -f`).
///
/// # Errors
/// Cannot create, with both sizes.
pub fn check_file_size(path: &Path, bytes: u64) -> Result<()> {
    match file_size_limit() {
        Some(limit) if bytes > limit.0 => {
            let message = "a file would be larger than this process may write";
            Err(Error::new(ErrorKind::CannotCreate, message)
                .with("path", path.display())
                .with("needed", Bytes(bytes).human())
                .with("file size limit", limit.human())
                .hint(FILE_SIZE_FIX))
        }
        _ => Ok(()),
    }
}

const FILE_SIZE_FIX: &str = "raise the limit (ulimit -f unlimited); Slurm hands on that of the \
     shell that submits, unless asked not to (--propagate=NONE)";

/// The cause of an error about a file or directory that cannot be created or made longer, with what
/// has run out and what to do.
pub(super) fn explained(error: Error, cause: io::Error, directory: &Path) -> Error {
    let errno = cause.raw_os_error().map(Errno::from_raw_os_error);
    let error = error.because(cause);
    match errno {
        Some(Errno::NOSPC) => match rustix::fs::statvfs(directory) {
            Ok(it) if it.f_files > 0 && it.f_favail == 0 => {
                error.with("free inodes", format!("0 of {}", it.f_files)).hint(
                    "the file system has room for bytes, but not for more files: remove small \
                     files, or make it with more inodes (mkfs.ext4 -N)",
                )
            }
            Ok(it) => error
                .with("free", Bytes(it.f_bavail.saturating_mul(it.f_frsize)).human())
                .hint("free space on the drive, or name another one"),
            Err(_) => error,
        },
        Some(Errno::DQUOT) => error.hint(
            "a quota of this user, group or project is used up, of bytes or of files (inodes): \
             quota -s, xfs_quota or lfs quota tell which; free some of it, or have it raised",
        ),
        Some(Errno::FBIG) => match file_size_limit() {
            Some(limit) => error.with("file size limit", limit.human()).hint(FILE_SIZE_FIX),
            None => error.hint(
                "the file system allows no file of this size: use more drives or more ranks, or \
                 another file system, such as xfs",
            ),
        },
        Some(Errno::MFILE) => error.hint("raise the limit of open files (ulimit -n)"),
        Some(Errno::NFILE) => {
            error.hint("the machine has no more open files: as root, raise fs.file-max")
        }
        _ => error,
    }
}
