//! A shard's files: one directory per shard and drive with one preallocated, locked file in it.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind as IoKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, FlockOperation, OFlags};

use super::drive::{Drive, direct_io_alignment};
use super::owner::Owner;
use crate::error::{Error, ErrorKind, Result};
use crate::units::Bytes;

/// Where one shard lives on one drive.
#[derive(Clone, Debug)]
pub struct ShardDirectory {
    job: String,
    drive: PathBuf,
    path: PathBuf,
}

impl ShardDirectory {
    /// The directory of shard number `shard` of `job` on `drive`. Named by shard, not by rank:
    /// ranks move.
    pub fn new(drive: &Drive, job: &str, shard: u32) -> Self {
        let path = drive.root.join("optswap").join(job).join(format!("shard-{shard:05}"));
        Self { job: job.to_owned(), drive: drive.root.clone(), path }
    }

    /// The file with the shard's stripe units.
    pub fn state_path(&self) -> PathBuf {
        self.path.join("state")
    }

    fn owner_path(&self) -> PathBuf {
        self.path.join("owner")
    }

    /// Checks that nobody alive holds the directory, without changing it. Gives the bytes that a
    /// dead owner's file takes, which will be free for its successor.
    ///
    /// # Errors
    /// Unavailable if a living process holds it.
    pub fn reclaimable_bytes(&self) -> Result<u64> {
        match File::open(self.state_path()) {
            Ok(file) => {
                self.lock(&file)?;
                Ok(file.metadata().map_or(0, |metadata| metadata.blocks() * 512))
            }
            Err(_) => Ok(0),
        }
    }

    fn lock(&self, file: &File) -> Result<()> {
        rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive).map_err(|errno| {
            let held = format!("job `{}` is alive on this drive", self.job);
            Error::new(ErrorKind::Unavailable, held)
                .with("drive", self.drive.display())
                .with("path", self.path.display())
                .with("held by", Owner::describe(&self.owner_path()))
                .because(std::io::Error::from(errno))
                .hint("wait for it, stop it, or give this job another name with --job")
        })
    }

    /// Creates, locks and preallocates the state file. What was created before an error is removed.
    fn create(&self, bytes: u64, owner: &Owner) -> Result<File> {
        let path = self.state_path();
        std::fs::create_dir_all(&self.path).map_err(|error| {
            self.refused("the shard directory cannot be created").because(error)
        })?;
        let file = open_direct(&path)
            .map_err(|error| self.refused("the state file cannot be opened").because(error))?;
        self.lock(&file)?;
        // From here on the directory is ours.
        match self.prepare(&file, bytes, owner) {
            Ok(()) => Ok(file),
            Err(error) => {
                self.remove();
                Err(error)
            }
        }
    }

    fn prepare(&self, file: &File, bytes: u64, owner: &Owner) -> Result<()> {
        let align = direct_io_alignment(&self.state_path());
        if let Some(align) = align.filter(|align| 4096 % align != 0) {
            return Err(self
                .refused("the drive asks for an alignment beyond 4,096 bytes")
                .with("alignment", align));
        }
        // A dead owner's bytes go first: the file is written whole before it is read.
        file.set_len(0).and_then(|()| preallocate(file, bytes)).map_err(|error| {
            self.refused("the state file cannot be preallocated")
                .with("needed", Bytes(bytes).human())
                .because(error)
        })?;
        owner
            .write(&self.owner_path())
            .map_err(|error| self.refused("the owner file cannot be written").because(error))
    }

    fn refused(&self, message: &str) -> Error {
        Error::new(ErrorKind::CannotCreate, message)
            .with("drive", self.drive.display())
            .with("path", self.path.display())
    }

    fn remove(&self) {
        // Errors are not worth stopping for: whoever starts next reclaims the directory.
        let _ = std::fs::remove_file(self.state_path());
        let _ = std::fs::remove_file(self.owner_path());
        let mut directory = Some(self.path.as_path());
        for _ in 0..3 {
            let Some(path) = directory else { return };
            // Stops at the first that others still use.
            if std::fs::remove_dir(path).is_err() {
                return;
            }
            directory = path.parent();
        }
    }
}

fn open_direct(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    match options.clone().custom_flags(OFlags::DIRECT.bits() as i32).open(path) {
        Err(error) if error.kind() == IoKind::InvalidInput => {
            tracing::warn!(
                "{}: direct I/O refused by the file system, falling back to buffered I/O",
                path.display()
            );
            options.open(path)
        }
        opened => opened,
    }
}

fn preallocate(file: &File, bytes: u64) -> std::io::Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes) {
        // The first sweep writes every byte, so a file system without fallocate only learns of a
        // full drive later.
        Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(bytes),
        result => Ok(result?),
    }
}

/// A shard's open files, one per drive, each with its lock. Dropped, they are closed and so
/// unlocked, and deleted unless they are to be kept.
#[derive(Debug)]
pub struct ShardFiles {
    directories: Vec<ShardDirectory>,
    files: Vec<File>,
    keep: bool,
}

impl ShardFiles {
    /// Creates the shard's file on every drive, `drive_bytes[i]` long on drive i.
    ///
    /// # Errors
    /// Cannot-create errors with drive and path; unavailable if a living job holds one. What was
    /// created before the error is removed again.
    pub fn create(
        directories: Vec<ShardDirectory>,
        drive_bytes: &[u64],
        owner: &Owner,
        keep: bool,
    ) -> Result<Self> {
        let mut created = Self { directories: Vec::new(), files: Vec::new(), keep: false };
        for (directory, bytes) in directories.into_iter().zip(drive_bytes) {
            created.files.push(directory.create(*bytes, owner)?);
            created.directories.push(directory);
        }
        created.keep = keep;
        Ok(created)
    }

    /// Second handles on the same open file descriptions, for the engine: the locks live as long
    /// as any handle.
    ///
    /// # Errors
    /// I/O errors of dup(2).
    pub fn handles(&self) -> Result<Vec<File>> {
        let handles = self.files.iter().map(File::try_clone).collect::<std::io::Result<_>>();
        handles.map_err(|error| {
            Error::new(ErrorKind::Unavailable, "cannot duplicate a file handle").because(error)
        })
    }

    /// Paths of the state files, one per drive.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.directories.iter().map(ShardDirectory::state_path).collect()
    }
}

impl Drop for ShardFiles {
    fn drop(&mut self) {
        if !self.keep {
            self.directories.iter().for_each(ShardDirectory::remove);
        }
    }
}
