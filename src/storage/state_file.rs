//! The state file of a shard on one drive: created with its space set aside, or opened again.

use std::fs::File;

use rustix::fs::OFlags;

use super::directory::{STATE, ShardDirectory};
use super::owner::Owner;
use super::private::PrivateDirectory;
use super::space::{check_file_size, overwrite_in_place, preallocate};
use crate::error::Result;
use crate::units::Bytes;

/// What a shard's state file on one drive is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateFile {
    /// Its length at least.
    pub bytes: u64,
    /// Whether the drive does direct I/O.
    pub is_direct: bool,
}

impl StateFile {
    fn flags(self) -> OFlags {
        OFlags::RDWR | if self.is_direct { OFlags::DIRECT } else { OFlags::empty() }
    }
}

impl ShardDirectory {
    /// Creates, locks and preallocates the state file. What a dead owner left is lost.
    pub(super) fn create(
        &self,
        wanted: StateFile,
        owner: &Owner,
        on_progress: &dyn Fn(u64),
    ) -> Result<File> {
        check_file_size(&self.state_path(), wanted.bytes)?;
        let (directory, file) = loop {
            let directory = self.enter_or_create()?;
            let opened = directory.open_file(STATE, wanted.flags() | OFlags::CREATE);
            let file = opened.map_err(|error| {
                self.remove_if_new(&directory);
                self.refused("the state file cannot be opened", error)
            })?;
            self.lock(&file)?;
            if is_in_place(&directory, &file) {
                break (directory, file);
            }
        };
        // From here on the directory is ours.
        match self.prepare(&directory, &file, wanted.bytes, owner, on_progress) {
            Ok(()) => Ok(file),
            Err(error) => {
                self.remove();
                Err(error)
            }
        }
    }

    /// Removes a directory in which no state file could be created; it may be another's.
    fn remove_if_new(&self, directory: &PrivateDirectory) {
        if directory.names().is_ok_and(|names| names.is_empty()) {
            self.remove();
        }
    }

    fn prepare(
        &self,
        directory: &PrivateDirectory,
        file: &File,
        bytes: u64,
        owner: &Owner,
        on_progress: &dyn Fn(u64),
    ) -> Result<()> {
        self.remove_records()?;
        // A dead owner's bytes may go: the file is written completely before it is read.
        let prepared = file.set_len(0).and_then(|()| {
            let in_place = overwrite_in_place(file, self.drive());
            preallocate(file, bytes, in_place, on_progress)
        });
        prepared.map_err(|error| {
            self.refused("the state file cannot be preallocated", error)
                .with("needed", Bytes(bytes).human())
        })?;
        self.write_owner(directory, owner)
    }

    /// Makes a state file at least this long.
    pub(super) fn extend(&self, file: &File, bytes: u64, on_progress: &dyn Fn(u64)) -> Result<()> {
        let found = file.metadata().map_or(0, |metadata| metadata.len());
        if found >= bytes {
            return Ok(());
        }
        check_file_size(&self.state_path(), bytes)?;
        let in_place = overwrite_in_place(file, self.drive());
        preallocate(file, bytes, in_place, on_progress).map_err(|error| {
            self.refused("the state file cannot be extended for gradients", error)
                .with("from", format!("{found} B"))
                .with("to", format!("{bytes} B"))
                .hint("free space on the drive, or set gradients.place = \"memory\"")
        })
    }

    /// Opens and locks the existing state file of a durable shard.
    pub(super) fn reopen(&self, wanted: StateFile, owner: &Owner) -> Result<File> {
        let directory = self.enter()?.ok_or_else(|| self.missing())?;
        let file = match directory.open_file(STATE, wanted.flags()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(self.missing());
            }
            opened => opened.map_err(|error| self.unopened(error))?,
        };
        self.lock(&file)?;
        if !is_in_place(&directory, &file) {
            return Err(self.lost("a state file was removed while this job started"));
        }
        let found = file.metadata().map_or(0, |metadata| metadata.len());
        if found < wanted.bytes {
            return Err(self
                .lost("a state file has been cut")
                .with("needed", format!("{} B", wanted.bytes))
                .with("found", format!("{found} B")));
        }
        self.write_owner(&directory, owner)?;
        Ok(file)
    }

    fn write_owner(&self, directory: &PrivateDirectory, owner: &Owner) -> Result<()> {
        owner
            .write(directory)
            .map_err(|error| self.refused("the owner file cannot be written", error))
    }
}

/// Whether a locked file still has its name: another process may have removed it between opening
/// and locking.
fn is_in_place(directory: &PrivateDirectory, file: &File) -> bool {
    let opened = rustix::fs::fstat(file).map(|found| (found.st_dev, found.st_ino));
    matches!((opened, directory.identity(STATE)), (Ok(a), Ok(b)) if a == b)
}
