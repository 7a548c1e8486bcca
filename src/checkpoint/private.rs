//! Directories and files that only their user may read, in a place that others may write to.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::ErrorKind as IoKind;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

/// Creates a directory that only its user may enter. It may be there already, but not as a symbolic
/// link, which might lead to another's files.
pub(super) fn private_directory(path: &Path) -> std::io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == IoKind::AlreadyExists => {
            if std::fs::symlink_metadata(path)?.is_dir() {
                return Ok(());
            }
            Err(IoKind::NotADirectory.into())
        }
        created => created,
    }
}

/// Opens a file that only its user may read, as `set` wants it, and no symbolic link.
pub(super) fn open_private(
    path: &Path,
    set: impl FnOnce(&mut OpenOptions) -> &mut OpenOptions,
) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    set(&mut options).mode(0o600).custom_flags(OFlags::NOFOLLOW.bits() as i32).open(path)
}

/// Whether something else is where a directory or file of ours should be.
pub(super) fn is_misplaced(error: &std::io::Error) -> bool {
    let is_link = error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error());
    is_link || error.kind() == IoKind::NotADirectory
}
