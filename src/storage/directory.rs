//! A shard's directory on one drive: its files, whether a living process holds it, and the lock.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;

use super::lock::{Life, Lock};
use super::owner::{OWNER, Owner};
use super::private::{PrivateDirectory, is_not_ours};
use super::record::{LAYOUT, RECORDS, Record, ShardLayout};
use super::space::explained;
use crate::error::{Error, ErrorKind, Result};

/// The directory on a drive that has those of jobs.
pub(super) const TOP: &str = "optswap";
pub(super) const STATE: &str = "state";
/// A killed process holds its lock until the kernel has ended its last operation.
pub(super) const LOCK_PATIENCE: Duration = Duration::from_secs(8);
/// How long a ring that has been closed may keep its files.
const CLOSING_PATIENCE: Duration = Duration::from_millis(200);

/// The directory of one shard on one drive.
#[derive(Clone, Debug)]
pub struct ShardDirectory {
    job: String,
    shard: u32,
    drive: PathBuf,
    path: PathBuf,
}

impl ShardDirectory {
    /// The directory of shard number `shard` of `job` on `drive`. It is named by shard and not by
    /// rank, since another rank may go on with the shard.
    pub fn new(drive: &Path, job: &str, shard: u32) -> Self {
        let path = drive.join(TOP).join(job).join(format!("shard-{shard:05}"));
        Self { job: job.to_owned(), shard, drive: drive.to_owned(), path }
    }

    /// Every shard's directory on a drive, of every job of this user's or of one.
    ///
    /// # Errors
    /// Unavailable if a directory cannot be read, or what has the job's name is not this user's; a
    /// drive without any job is no error.
    pub fn all_on(drive: &Path, job: Option<&str>) -> Result<Vec<Self>> {
        let unreadable = |error: io::Error| {
            Error::new(ErrorKind::Unavailable, "a directory cannot be read")
                .with("drive", drive.display())
                .because(error)
        };
        let mut found = Vec::new();
        let Some(top) = PrivateDirectory::open_shared(drive, TOP).map_err(unreadable)? else {
            return Ok(found);
        };
        for name in top.names().map_err(unreadable)? {
            if job.is_some_and(|job| job != name) {
                continue;
            }
            let shards = match PrivateDirectory::open(drive, &[TOP, &name]) {
                Ok(Some(directory)) => directory.names().map_err(unreadable)?,
                Ok(None) => continue,
                // Other users' jobs, and files such as the drive's profile.
                Err(error) if job.is_none() && is_not_ours(&error) => continue,
                Err(error) => return Err(unreadable(error)),
            };
            for shard in shards {
                let number = shard.strip_prefix("shard-").and_then(|number| number.parse().ok());
                found.extend(number.map(|number| Self::new(drive, &name, number)));
            }
        }
        found.sort_by(|a, b| (&a.job, a.shard).cmp(&(&b.job, b.shard)));
        Ok(found)
    }

    /// The job's name.
    pub fn job(&self) -> &str {
        &self.job
    }

    /// The shard's number.
    pub fn shard(&self) -> u32 {
        self.shard
    }

    /// The directory that the user named.
    pub fn drive(&self) -> &Path {
        &self.drive
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file with the shard's stripe units.
    pub fn state_path(&self) -> PathBuf {
        self.path.join(STATE)
    }

    /// The two places of records; only those on the shard's first drive are used.
    pub fn record_paths(&self) -> [PathBuf; 2] {
        RECORDS.map(|name| self.path.join(name))
    }

    /// The layout of a durable shard.
    pub fn layout_path(&self) -> PathBuf {
        self.path.join(LAYOUT)
    }

    fn names(&self) -> [&str; 3] {
        let shard = self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        [TOP, &self.job, shard]
    }

    /// The open directory; `None` if there is none.
    pub(super) fn enter(&self) -> Result<Option<PrivateDirectory>> {
        PrivateDirectory::open(&self.drive, &self.names()).map_err(|error| self.unopened(error))
    }

    /// The open directory, which is created if there is none.
    pub(super) fn enter_or_create(&self) -> Result<PrivateDirectory> {
        PrivateDirectory::create(&self.drive, &self.names()).map_err(|error| {
            // What could be created of the way to it goes again.
            remove_empty(&self.drive, &self.names());
            self.refused("the shard directory cannot be created", error)
        })
    }

    /// A file of the directory's; `None` if it, or the directory, is missing.
    fn file(&self, name: &str, flags: OFlags) -> Result<Option<File>> {
        let Some(directory) = self.enter()? else { return Ok(None) };
        match directory.open_file(name, flags) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => opened.map(Some).map_err(|error| self.unopened(error)),
        }
    }

    /// The layout; `None` if this is no durable shard.
    ///
    /// # Errors
    /// I/O if the file cannot be read; unavailable if another version of optswap wrote it.
    pub fn layout(&self) -> Result<Option<ShardLayout>> {
        self.enter()?.map_or(Ok(None), |directory| ShardLayout::read(&directory))
    }

    /// The record in one of the two places; `None` if there is no whole one.
    ///
    /// # Errors
    /// I/O if the file cannot be read; unavailable if another version of optswap wrote it.
    pub fn record(&self, place: usize) -> Result<Option<Record>> {
        self.enter()?.map_or(Ok(None), |directory| Record::read(&directory, place))
    }

    /// Whether something has been written to both places of records.
    pub(super) fn are_records_written(&self) -> bool {
        let written = |name| {
            let file = self.file(name, OFlags::RDONLY).ok().flatten();
            file.and_then(|it| it.metadata().ok()).is_some_and(|found| found.len() > 0)
        };
        RECORDS.into_iter().all(written)
    }

    /// The process that holds the directory, or held it last.
    pub fn owner(&self) -> Option<Owner> {
        Owner::read(&self.enter().ok()??)
    }

    /// Bytes that the state file takes on the drive.
    pub fn allocated_bytes(&self) -> u64 {
        let state = self.enter().ok().flatten();
        state.and_then(|it| it.allocated_bytes(STATE).ok()).unwrap_or(0)
    }

    /// Whether a living process holds the directory at this moment.
    pub fn is_alive(&self) -> bool {
        self.life() == Life::Alive
    }

    /// Whether a living process holds the directory at this moment, as far as that can be known.
    pub fn life(&self) -> Life {
        match self.file(STATE, OFlags::RDONLY) {
            Ok(Some(file)) => self.life_of(&file, CLOSING_PATIENCE),
            Ok(None) => Life::Dead,
            Err(error) => Life::Unknown(error.sentence()),
        }
    }

    /// Takes the lock of the open state file; where there are no locks, the owner file counts.
    fn life_of(&self, file: &File, patience: Duration) -> Life {
        match Lock::take(file, patience) {
            Lock::Ours => Life::Dead,
            Lock::Held => Life::Alive,
            Lock::Missing(_) => self.owner().map_or(Life::Dead, |owner| owner.life()),
        }
    }

    /// Opens and locks the state file, to check or repair it between two runs. The lock lasts as
    /// long as the file is open.
    ///
    /// # Errors
    /// Unavailable if a living process holds it; state lost if it is missing; I/O if it cannot be
    /// opened.
    pub fn open_dead(&self, for_repair: bool) -> Result<File> {
        let flags = if for_repair { OFlags::RDWR } else { OFlags::RDONLY };
        let file = self.file(STATE, flags)?.ok_or_else(|| self.missing())?;
        self.lock(&file)?;
        Ok(file)
    }

    /// Removes directories of dead jobs; those that a living process holds stay.
    ///
    /// # Errors
    /// Cannot create, if the system refuses.
    pub fn remove_all_dead(directories: &[Self]) -> Result<()> {
        directories.iter().for_each(Self::forget_dead);
        let mut directories: Vec<&Self> = directories.iter().collect();
        Self::sort_for_removal(&mut directories);
        directories.into_iter().try_for_each(|it| it.remove_dead().map(drop))
    }

    /// Removes the directory of a dead job; otherwise it stays as it is. Gives what it was.
    ///
    /// # Errors
    /// Cannot create, if the system refuses.
    pub fn remove_dead(&self) -> Result<Life> {
        // The lock is held until all is removed, so that no job starts in this directory meanwhile.
        let file = self.file(STATE, OFlags::RDONLY)?;
        let life = file.as_ref().map_or(Life::Dead, |it| self.life_of(it, CLOSING_PATIENCE));
        if life != Life::Dead {
            return Ok(life);
        }
        self.remove();
        match self.enter()? {
            None => Ok(life),
            Some(_) => Err(Error::new(ErrorKind::CannotCreate, "a dead job cannot be removed")
                .with("path", self.path.display())
                .because("files are left")),
        }
    }

    /// Sorts directories into the order in which they are removed: that of the drive with records
    /// comes last, so that a removal that is cut off leaves no job of which a drive is missing.
    pub(super) fn sort_for_removal(directories: &mut [&Self]) {
        let number = |it: &&Self| it.layout().ok().flatten().map_or(u32::MAX, |it| it.drive);
        directories.sort_by_cached_key(|it| std::cmp::Reverse(number(it)));
    }

    /// Removes the records of a dead owner, before the state that they describe is removed.
    pub(super) fn forget_dead(&self) {
        if let Ok(Some(file)) = self.file(STATE, OFlags::RDONLY)
            && self.life_of(&file, CLOSING_PATIENCE) == Life::Dead
        {
            self.forget();
        }
    }

    /// Empties what a dead owner has left, so that its bytes are free before space is allocated.
    pub(super) fn reclaim(&self) -> Result<()> {
        let Some(file) = self.file(STATE, OFlags::RDWR)? else { return Ok(()) };
        self.lock(&file)?;
        // Records go before the state that they describe.
        self.remove_records()?;
        file.set_len(0).map_err(|error| self.refused("an old state file cannot be emptied", error))
    }

    pub(super) fn remove_records(&self) -> Result<()> {
        let Some(directory) = self.enter()? else { return Ok(()) };
        RECORDS.into_iter().chain([LAYOUT]).try_for_each(|name| {
            directory
                .remove_file(name)
                .map_err(|error| self.refused("an old record cannot be removed", error))
        })
    }

    pub(super) fn unopened(&self, error: io::Error) -> Error {
        let kind = if is_not_ours(&error) { ErrorKind::Unavailable } else { ErrorKind::Io };
        Error::new(kind, "what lies on the drive cannot be opened")
            .with("drive", self.drive.display())
            .with("path", self.path.display())
            .because(error)
    }

    /// Checks that no living process holds the directory, without changing it. Returns the bytes
    /// that a dead owner's file takes, which will be free for this job.
    ///
    /// # Errors
    /// Unavailable if a living process holds it, or it is not this user's.
    pub fn reclaimable_bytes(&self) -> Result<u64> {
        match self.file(STATE, OFlags::RDONLY)? {
            Some(file) => self.lock(&file).map(|()| self.allocated_bytes()),
            None => Ok(0),
        }
    }

    /// Locks the open state file. Where the file system has no locks, which a job has said at its
    /// start, only an owner that is known to be alive stands in the way.
    pub(super) fn lock(&self, file: &File) -> Result<()> {
        match self.life_of(file, LOCK_PATIENCE) {
            Life::Alive => Err(self.is_held()),
            Life::Dead | Life::Unknown(_) => Ok(()),
        }
    }

    fn is_held(&self) -> Error {
        let unnamed = || "an owner that left no readable name".to_owned();
        let held = format!("job `{}` is alive on this drive", self.job);
        Error::new(ErrorKind::Unavailable, held)
            .with("drive", self.drive.display())
            .with("path", self.path.display())
            .with("held by", self.owner().map_or_else(unnamed, |owner| owner.to_string()))
            .hint("wait for it, stop it, or give this job another name with --job")
    }

    pub(super) fn missing(&self) -> Error {
        self.lost("a state file cannot be opened").because("there is none")
    }

    pub(super) fn lost(&self, message: &str) -> Error {
        Error::new(ErrorKind::StateLost, message)
            .with("drive", self.drive.display())
            .with("path", self.state_path().display())
            .hint("this shard's committed steps are lost: go on from a checkpoint")
    }

    /// Flushes the directories up to the drive's own, so that the names of files are durable. Some
    /// file systems refuse to flush a directory; how durable names are is then up to them.
    pub(super) fn sync_names(&self) {
        let names = self.names();
        for depth in (1..=names.len()).rev() {
            if let Ok(Some(directory)) = PrivateDirectory::open(&self.drive, &names[..depth]) {
                let _ = directory.sync();
            }
        }
        if let Ok(drive) = PrivateDirectory::named_by_user(&self.drive) {
            let _ = drive.sync();
        }
    }

    pub(super) fn refused(&self, message: &str, cause: io::Error) -> Error {
        let kind =
            if is_not_ours(&cause) { ErrorKind::Unavailable } else { ErrorKind::CannotCreate };
        let error = Error::new(kind, message)
            .with("drive", self.drive.display())
            .with("path", self.path.display());
        explained(error, cause, &self.drive)
    }

    /// Removes the records, so that nothing is committed any more.
    pub(super) fn forget(&self) {
        // The next start finds what cannot be removed.
        if let Ok(Some(directory)) = self.enter() {
            RECORDS.into_iter().for_each(|name| drop(directory.remove_file(name)));
        }
    }

    /// Removes the directory with all files of optswap's, and the job's directory if it is then
    /// empty.
    pub fn remove(&self) {
        // Errors are ignored, since the next start reclaims the directory. Records go before the
        // state that they describe.
        if let Ok(Some(directory)) = self.enter() {
            for name in RECORDS.into_iter().chain([LAYOUT, STATE, OWNER]) {
                let _ = directory.remove_file(name);
            }
        }
        remove_empty(&self.drive, &self.names());
    }
}

/// Removes the directory that these names lead to, and those above it, as far as they are empty.
pub(super) fn remove_empty(root: &Path, names: &[&str]) {
    let above = |depth: usize| match depth {
        0 => PrivateDirectory::named_by_user(root).ok(),
        1 => PrivateDirectory::open_shared(root, names[0]).ok().flatten(),
        depth => PrivateDirectory::open(root, &names[..depth]).ok().flatten(),
    };
    for (depth, name) in names.iter().enumerate().rev() {
        // The first directory that is not empty ends this.
        let removed = above(depth).map(|directory| directory.remove_directory(name));
        if removed.is_some_and(|removed| removed.is_err_and(|it| !is_missing(&it))) {
            return;
        }
    }
}

fn is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}
