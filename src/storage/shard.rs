//! A shard's open files: a locked state file on every drive, and for a durable job the records.

use std::fs::File;
use std::path::PathBuf;

use rustix::fs::OFlags;

use super::directory::ShardDirectory;
use super::owner::Owner;
use super::record::{RecordFiles, ShardLayout};
use super::state_file::StateFile;
use crate::error::{Error, ErrorKind, Result};
use crate::units::DriveIndex;

/// A shard's open files, one per drive, each locked. Dropping closes and so unlocks them, and
/// deletes them unless they are to be kept.
#[derive(Debug)]
pub struct ShardFiles {
    directories: Vec<ShardDirectory>,
    files: Vec<File>,
    /// Whether the files stay when this is dropped.
    keep: bool,
    /// The process that opened the files: a forked child must not delete them.
    process: u32,
}

impl ShardFiles {
    /// Creates the shard's file on every drive, as `wanted[i]` says for drive i. With a layout, the
    /// shard can be found again by a later start. `on_progress` is called as bytes are written,
    /// where space can be had in no other way.
    ///
    /// # Errors
    /// Cannot-create errors with drive and path; unavailable if a living job holds one. What was
    /// created before the error is removed again.
    pub fn create(
        directories: Vec<ShardDirectory>,
        wanted: &[StateFile],
        owner: &Owner,
        layout: Option<&ShardLayout>,
        on_progress: &dyn Fn(u64),
    ) -> Result<Self> {
        let mut created = Self {
            directories: Vec::new(),
            files: Vec::new(),
            keep: false,
            process: std::process::id(),
        };
        for (directory, wanted) in directories.into_iter().zip(wanted) {
            created.files.push(directory.create(*wanted, owner, on_progress)?);
            created.directories.push(directory);
        }
        for (drive, directory) in created.directories.iter().enumerate() {
            if let Some(layout) = layout {
                let entered = directory.enter()?.ok_or_else(|| directory.missing())?;
                ShardLayout { drive: drive as u32, ..layout.clone() }.write(&entered)?;
                directory.sync_names();
            }
        }
        Ok(created)
    }

    /// Opens the existing files of a durable shard, in the shard's order of drives. They stay when
    /// this is dropped.
    ///
    /// # Errors
    /// Unavailable if a living job holds one; state lost if one is missing or shorter than
    /// wanted; I/O if one cannot be opened; cannot create if the owner file cannot be
    /// written.
    pub fn reopen(
        directories: Vec<ShardDirectory>,
        wanted: &[StateFile],
        owner: &Owner,
    ) -> Result<Self> {
        let pairs = directories.iter().zip(wanted);
        let files = pairs.map(|(directory, wanted)| directory.reopen(*wanted, owner));
        let process = std::process::id();
        Ok(Self { files: files.collect::<Result<_>>()?, directories, keep: true, process })
    }

    /// Makes every file at least this long, for gradients behind the state.
    ///
    /// # Errors
    /// Cannot-create errors with the path.
    pub fn extend(&self, drive_bytes: &[u64], on_progress: &dyn Fn(u64)) -> Result<()> {
        let drives = self.directories.iter().zip(&self.files).zip(drive_bytes);
        let mut drives =
            drives.map(|((directory, file), bytes)| directory.extend(file, *bytes, on_progress));
        drives.try_for_each(|extended| extended)
    }

    /// Frees the bytes that dead owners of these directories have left.
    ///
    /// # Errors
    /// Unavailable if a living job holds one; cannot create if the system refuses.
    pub fn reclaim(directories: &[ShardDirectory]) -> Result<()> {
        let mut directories: Vec<&ShardDirectory> = directories.iter().collect();
        ShardDirectory::sort_for_removal(&mut directories);
        // The records of all drives go before any state does. Below, living owners are waited for.
        if directories.iter().all(|it| !it.is_alive()) {
            directories.iter().for_each(|it| it.forget_dead());
        }
        directories.into_iter().try_for_each(ShardDirectory::reclaim)
    }

    /// Sets whether the files stay on the drives when this is dropped.
    pub fn keep(&mut self, keep: bool) {
        self.keep = keep;
    }

    /// Opens the two places for records, on the first drive, with space set aside for records of so
    /// many bytes.
    ///
    /// # Errors
    /// Cannot create, with the path, if one cannot be opened.
    pub fn records(&self, is_new: bool, bytes: u64) -> Result<RecordFiles> {
        let first = self.directories.first();
        let first = first.ok_or_else(|| Error::internal("a shard without a drive"))?;
        let records = RecordFiles::open(first, is_new, bytes)?;
        if is_new {
            first.sync_names();
        }
        Ok(records)
    }

    /// Second handles on the same open file descriptions, for the engine. The locks last as long as
    /// any handle is open.
    ///
    /// # Errors
    /// Unavailable if the system gives no more handles.
    pub fn handles(&self) -> Result<Vec<File>> {
        let handles = self.files.iter().map(File::try_clone).collect::<std::io::Result<_>>();
        handles.map_err(|error| {
            Error::new(ErrorKind::Unavailable, "cannot duplicate a file handle").because(error)
        })
    }

    /// The state file on one drive.
    pub fn file(&self, drive: DriveIndex) -> &File {
        &self.files[drive.index()]
    }

    /// Whether the state file on each drive was opened for direct I/O; file systems may refuse it.
    pub fn are_direct(&self) -> Vec<bool> {
        let flags = self.files.iter().map(rustix::fs::fcntl_getfl);
        flags.map(|flags| flags.is_ok_and(|flags| flags.contains(OFlags::DIRECT))).collect()
    }

    /// Flushes what was written to the drives themselves.
    ///
    /// # Errors
    /// I/O errors with the path.
    pub fn sync(&self) -> Result<()> {
        let sync = |(file, directory): (&File, &ShardDirectory)| {
            file.sync_data().map_err(|error| {
                Error::new(ErrorKind::Io, "a drive cannot be flushed")
                    .with("path", directory.state_path().display())
                    .because(error)
            })
        };
        // Drives flush at the same time.
        std::thread::scope(|scope| {
            let pairs = self.files.iter().zip(&self.directories);
            let start = |pair| {
                let started = std::thread::Builder::new().spawn_scoped(scope, move || sync(pair));
                // Where no more threads are allowed, this one does it.
                started.map_err(|_| sync(pair))
            };
            let threads: Vec<_> = pairs.map(start).collect();
            let ended = threads.into_iter().map(|thread| match thread {
                Ok(thread) => {
                    let crashed =
                        |_| Err(Error::internal("a thread that flushes a drive panicked"));
                    thread.join().unwrap_or_else(crashed)
                }
                Err(done) => done,
            });
            ended.collect()
        })
    }

    /// Paths of the state files, one per drive.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.directories.iter().map(ShardDirectory::state_path).collect()
    }
}

impl Drop for ShardFiles {
    fn drop(&mut self) {
        if !self.keep && self.process == std::process::id() {
            // The first drive's records go first and its directory last. A removal that is cut off
            // then leaves neither a job with commits nor one of which a drive is missing.
            self.directories.iter().for_each(ShardDirectory::forget);
            self.directories.iter().rev().for_each(ShardDirectory::remove);
        }
    }
}
