//! A shard's directory on one drive: its files, whether a living process holds it, and the lock.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind as IoKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, FlockOperation, OFlags};

use super::drive::direct_io_alignment;
use super::owner::Owner;
use super::record::ShardLayout;
use crate::error::{Error, ErrorKind, Result};
use crate::units::Bytes;

/// A killed process holds its lock until the kernel has ended its last operation.
const LOCK_PATIENCE: Duration = Duration::from_secs(8);
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
        let path = drive.join("optswap").join(job).join(format!("shard-{shard:05}"));
        Self { job: job.to_owned(), shard, drive: drive.to_owned(), path }
    }

    /// Every shard's directory on a drive, of every job or of one.
    ///
    /// # Errors
    /// Unavailable if a directory cannot be read; a drive without any job is no error.
    pub fn all_on(drive: &Path, job: Option<&str>) -> Result<Vec<Self>> {
        let mut found = Vec::new();
        for (name, path) in entries(&drive.join("optswap"))? {
            if job.is_some_and(|job| job != name) {
                continue;
            }
            for (shard, _) in entries(&path)? {
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
        self.path.join("state")
    }

    /// The two places of records; only those on the shard's first drive are used.
    pub fn record_paths(&self) -> [PathBuf; 2] {
        [self.path.join("record-0"), self.path.join("record-1")]
    }

    /// The layout of a durable shard.
    pub fn layout_path(&self) -> PathBuf {
        self.path.join("layout")
    }

    pub(super) fn owner_path(&self) -> PathBuf {
        self.path.join("owner")
    }

    /// The layout; `None` if this is no durable shard.
    ///
    /// # Errors
    /// I/O if the file cannot be read; unavailable if another version of optswap wrote it.
    pub fn layout(&self) -> Result<Option<ShardLayout>> {
        ShardLayout::read(&self.layout_path())
    }

    /// The process that holds the directory, or held it last.
    pub fn owner(&self) -> Option<Owner> {
        Owner::read(&self.owner_path())
    }

    /// Bytes that the state file takes on the drive.
    pub fn allocated_bytes(&self) -> u64 {
        std::fs::metadata(self.state_path()).map_or(0, |metadata| metadata.blocks() * 512)
    }

    /// Whether a living process holds the directory at this moment.
    pub fn is_alive(&self) -> bool {
        match File::open(self.state_path()) {
            Ok(file) => self.lock(&file, CLOSING_PATIENCE).is_err(),
            // A directory of another user may be held by a living process.
            Err(error) => error.kind() != IoKind::NotFound,
        }
    }

    /// Opens and locks the state file, to check or repair it between two runs. The lock lasts as
    /// long as the file is open.
    ///
    /// # Errors
    /// Unavailable if a living process holds it; state lost if it is missing; I/O if it cannot be
    /// opened.
    pub fn open_dead(&self, for_repair: bool) -> Result<File> {
        let opened = OpenOptions::new().read(true).write(for_repair).open(self.state_path());
        let file = opened.map_err(|error| self.unopened(error))?;
        self.lock(&file, LOCK_PATIENCE)?;
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

    /// Removes the directory of a dead job; false if a living process holds it.
    ///
    /// # Errors
    /// Cannot create, if the system refuses.
    pub fn remove_dead(&self) -> Result<bool> {
        let refused = |error| {
            Error::new(ErrorKind::CannotCreate, "a dead job cannot be removed")
                .with("path", self.path.display())
                .because(error)
        };
        // The lock is held until all is removed, so that no job starts in this directory meanwhile.
        let _lock = match File::open(self.state_path()) {
            Ok(file) if self.lock(&file, CLOSING_PATIENCE).is_err() => return Ok(false),
            Ok(file) => Some(file),
            Err(error) if error.kind() == IoKind::NotFound => None,
            Err(error) => return Err(refused(error)),
        };
        self.remove();
        if self.path.exists() {
            return Err(refused(std::io::Error::other("files are left")));
        }
        Ok(true)
    }

    /// Sorts directories into the order in which they are removed: that of the drive with records
    /// comes last, so that a removal that is cut off leaves no job of which a drive is missing.
    pub(super) fn sort_for_removal(directories: &mut [&Self]) {
        let number = |it: &&Self| it.layout().ok().flatten().map_or(u32::MAX, |it| it.drive);
        directories.sort_by_cached_key(|it| std::cmp::Reverse(number(it)));
    }

    /// Removes the records of a dead owner, before the state that they describe is removed.
    pub(super) fn forget_dead(&self) {
        if let Ok(file) = File::open(self.state_path())
            && self.lock(&file, CLOSING_PATIENCE).is_ok()
        {
            self.forget();
        }
    }

    /// Empties what a dead owner has left, so that its bytes are free before space is allocated.
    pub(super) fn reclaim(&self) -> Result<()> {
        let opened = OpenOptions::new().read(true).write(true).open(self.state_path());
        let Ok(file) = opened else { return Ok(()) };
        self.lock(&file, LOCK_PATIENCE)?;
        // Records go before the state that they describe.
        self.remove_records()?;
        file.set_len(0)
            .map_err(|error| self.refused("an old state file cannot be emptied").because(error))
    }

    fn remove_records(&self) -> Result<()> {
        for path in self.record_paths().iter().chain([&self.layout_path()]) {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != IoKind::NotFound => {
                    return Err(self.refused("an old record cannot be removed").because(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn unopened(&self, error: std::io::Error) -> Error {
        match error.kind() {
            IoKind::NotFound => self.lost("a state file cannot be opened").because(error),
            _ => Error::new(ErrorKind::Io, "a state file cannot be opened")
                .with("path", self.state_path().display())
                .because(error),
        }
    }

    /// Checks that no living process holds the directory, without changing it. Returns the bytes
    /// that a dead owner's file takes, which will be free for this job.
    ///
    /// # Errors
    /// Unavailable if a living process holds it.
    pub fn reclaimable_bytes(&self) -> Result<u64> {
        match File::open(self.state_path()) {
            Ok(file) => self.lock(&file, LOCK_PATIENCE).map(|()| self.allocated_bytes()),
            Err(_) => Ok(0),
        }
    }

    fn lock(&self, file: &File, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(()),
                Err(_) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(errno) => return Err(self.is_held().because(std::io::Error::from(errno))),
            }
        }
    }

    fn is_held(&self) -> Error {
        let held = format!("job `{}` is alive on this drive", self.job);
        Error::new(ErrorKind::Unavailable, held)
            .with("drive", self.drive.display())
            .with("path", self.path.display())
            .with("held by", Owner::describe(&self.owner_path()))
            .hint("wait for it, stop it, or give this job another name with --job")
    }

    /// Creates, locks and preallocates the state file. What a dead owner left is lost.
    pub(super) fn create(&self, bytes: u64, owner: &Owner) -> Result<File> {
        std::fs::create_dir_all(&self.path).map_err(|error| {
            self.refused("the shard directory cannot be created").because(error)
        })?;
        let refused = |error| self.refused("the state file cannot be opened").because(error);
        let file = loop {
            let file = open_direct(&self.state_path(), true).map_err(refused)?;
            self.lock(&file, LOCK_PATIENCE)?;
            if self.is_in_place(&file) {
                break file;
            }
        };
        // From here on the directory is ours.
        match self.prepare(&file, bytes, owner) {
            Ok(()) => Ok(file),
            Err(error) => {
                self.remove();
                Err(error)
            }
        }
    }

    /// Makes a state file at least this long.
    pub(super) fn extend(&self, file: &File, bytes: u64) -> Result<()> {
        let found = file.metadata().map_or(0, |metadata| metadata.len());
        if found >= bytes {
            return Ok(());
        }
        preallocate(file, bytes).map_err(|error| {
            self.refused("the state file cannot be extended for gradients")
                .with("from", format!("{found} B"))
                .with("to", format!("{bytes} B"))
                .because(error)
                .hint("free space on the drive, or set gradients.place = \"memory\"")
        })
    }

    /// Opens and locks the existing state file of a durable shard.
    pub(super) fn reopen(&self, bytes: u64, owner: &Owner) -> Result<File> {
        let opened = open_direct(&self.state_path(), false);
        let file = opened.map_err(|error| self.unopened(error))?;
        self.lock(&file, LOCK_PATIENCE)?;
        if !self.is_in_place(&file) {
            return Err(self.lost("a state file was removed while this job started"));
        }
        let found = file.metadata().map_or(0, |metadata| metadata.len());
        if found < bytes {
            return Err(self
                .lost("a state file has been cut")
                .with("needed", format!("{bytes} B"))
                .with("found", format!("{found} B")));
        }
        self.write_owner(owner)?;
        Ok(file)
    }

    /// Whether a locked file still has its name: another process may have removed it between
    /// opening and locking.
    fn is_in_place(&self, file: &File) -> bool {
        let identity = |found: std::fs::Metadata| (found.dev(), found.ino());
        let named = std::fs::metadata(self.state_path()).map(identity);
        matches!((file.metadata().map(identity), named), (Ok(a), Ok(b)) if a == b)
    }

    fn lost(&self, message: &str) -> Error {
        Error::new(ErrorKind::StateLost, message)
            .with("drive", self.drive.display())
            .with("path", self.state_path().display())
            .hint("this shard's committed steps are lost: go on from a checkpoint")
    }

    fn prepare(&self, file: &File, bytes: u64, owner: &Owner) -> Result<()> {
        self.remove_records()?;
        let align = direct_io_alignment(&self.state_path());
        if let Some(align) = align.filter(|align| 4096 % align != 0) {
            return Err(self
                .refused("the drive asks for an alignment beyond 4,096 bytes")
                .with("alignment", align));
        }
        // A dead owner's bytes may go: the file is written completely before it is read.
        file.set_len(0).and_then(|()| preallocate(file, bytes)).map_err(|error| {
            self.refused("the state file cannot be preallocated")
                .with("needed", Bytes(bytes).human())
                .because(error)
        })?;
        self.write_owner(owner)
    }

    fn write_owner(&self, owner: &Owner) -> Result<()> {
        owner
            .write(&self.owner_path())
            .map_err(|error| self.refused("the owner file cannot be written").because(error))
    }

    /// Flushes the directories up to the drive's own, so that the names of files are durable. Some
    /// file systems refuse to flush a directory; how durable names are is then up to them.
    pub(super) fn sync_names(&self) {
        let below = |path: &&Path| path.starts_with(&self.drive);
        for path in self.path.ancestors().take_while(below) {
            if let Ok(directory) = File::open(path) {
                let _ = directory.sync_all();
            }
        }
    }

    fn refused(&self, message: &str) -> Error {
        Error::new(ErrorKind::CannotCreate, message)
            .with("drive", self.drive.display())
            .with("path", self.path.display())
    }

    /// Removes the records, so that nothing is committed any more.
    pub(super) fn forget(&self) {
        // The next start finds what cannot be removed.
        self.record_paths().iter().for_each(|path| drop(std::fs::remove_file(path)));
    }

    /// Removes the directory with all files of optswap's, and the job's directory if it is then
    /// empty.
    pub fn remove(&self) {
        // Errors are ignored, since the next start reclaims the directory. Records go before the
        // state that they describe.
        let [first, second] = self.record_paths();
        for path in [first, second, self.layout_path(), self.state_path(), self.owner_path()] {
            let _ = std::fs::remove_file(path);
        }
        let mut directory = Some(self.path.as_path());
        for _ in 0..3 {
            let Some(path) = directory else { return };
            // The first directory that is not empty ends this.
            if std::fs::remove_dir(path).is_err() {
                return;
            }
            directory = path.parent();
        }
    }
}

/// Names and paths in a directory; none if it does not exist or is a file, such as the drive's
/// profile, which lies beside the directories of jobs.
fn entries(path: &Path) -> Result<Vec<(String, PathBuf)>> {
    let unreadable = |error: std::io::Error| {
        Error::new(ErrorKind::Unavailable, "a directory cannot be read")
            .with("path", path.display())
            .because(error)
    };
    let listing = match std::fs::read_dir(path) {
        Ok(listing) => listing,
        Err(error) if matches!(error.kind(), IoKind::NotFound | IoKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(unreadable(error)),
    };
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry.map_err(unreadable)?;
        Ok((entry.file_name().to_string_lossy().into_owned(), entry.path()))
    };
    listing.map(name).collect()
}

pub(super) fn open_direct(path: &Path, create: bool) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(create).truncate(false).mode(0o600);
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

pub(super) fn preallocate(file: &File, bytes: u64) -> std::io::Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes) {
        // The first sweep writes every byte. Without fallocate, a full drive only shows then.
        Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(bytes),
        result => Ok(result?),
    }
}
