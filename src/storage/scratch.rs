//! A file on a drive for measuring. It has no name, so it is deleted with its last descriptor,
//! however the process ends.

use std::fs::File;

use rustix::fs::OFlags;

use super::drive::Drive;
use super::private::PrivateDirectory;
use super::space::{check_file_size, explained, preallocate};
use crate::error::{Error, ErrorKind, Result};
use crate::units::Bytes;

/// Opens a file of this size on a drive, for direct I/O where the file system allows it, with its
/// space set aside.
///
/// # Errors
/// Cannot create, if the drive has too little space or refuses the file.
pub fn scratch_file(drive: &Drive, bytes: u64) -> Result<File> {
    let refused = |error: std::io::Error| {
        let refused = Error::new(ErrorKind::CannotCreate, "a file for measuring cannot be created")
            .with("drive", drive.root.display())
            .with("size", Bytes(bytes).human())
            .hint("free space on the drive, or ask for a smaller file with --size");
        explained(refused, error, &drive.root)
    };
    check_file_size(&drive.root, bytes)?;
    // The name has the process and the time in it, so that no other file has the same.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let moment = now.map_or(0, |now| now.as_nanos());
    let name = format!(".optswap-measure-{}-{moment}", std::process::id());
    let directory = PrivateDirectory::named_by_user(&drive.root).map_err(refused)?;
    let direct = if drive.is_direct { OFlags::DIRECT } else { OFlags::empty() };
    let file = directory.open_file(&name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | direct);
    let file = file.map_err(refused)?;
    directory.remove_file(&name).map_err(refused)?;
    // If the drive ran full half-way, the writes of others would fail until the file is closed.
    let free = rustix::fs::fstatvfs(&file).map(|space| space.f_bavail * space.f_frsize);
    if free.is_ok_and(|free| free < bytes) {
        return Err(refused(std::io::Error::from(std::io::ErrorKind::StorageFull)));
    }
    preallocate(&file, bytes, true, &|_| ()).map_err(refused)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scratch_file_has_no_name() {
        let folder = tempfile::tempdir().unwrap();
        let drive = Drive { root: folder.path().to_owned(), ..Drive::default() };
        let file = scratch_file(&drive, 8192).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 8192);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        assert_eq!(scratch_file(&drive, 1 << 60).unwrap_err().exit_code(), 73);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
