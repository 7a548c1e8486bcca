//! Files that a job writes beside training: what they lose is told once, and training goes on.

use std::fmt::Display;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// The target of log messages about what could not be written beside training. They come from any
/// rank, so a program that silences all but rank 0 should let this target of one rank of each node
/// through: the node may be the only one that loses anything.
pub const LOSSES_TARGET: &str = "optswap::losses";

/// Whether this is no fault of the name that the user gave, but of a file system that is full or
/// broken at the moment: no reason not to train.
pub fn is_passing(error: &io::Error) -> bool {
    let is_broken = error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error());
    let kinds =
        [ErrorKind::StorageFull, ErrorKind::QuotaExceeded, ErrorKind::StaleNetworkFileHandle];
    is_broken || kinds.contains(&error.kind())
}

/// Tells of a file that cannot be written. The caller does so once for each file.
pub(super) fn tell(what: &str, path: &Path, error: &dyn Display) {
    let path = path.display();
    tracing::warn!(
        target: LOSSES_TARGET,
        "{what} cannot be written, the job goes on without: {path}: {error}"
    );
}

/// A file to which lines are added.
#[derive(Debug)]
pub struct LineFile {
    path: PathBuf,
    file: File,
    /// Whether the last line in the file has no end.
    is_torn: AtomicBool,
    has_failed: AtomicBool,
}

impl LineFile {
    /// Opens a file, or creates it. Lines of an earlier start of the job stay.
    pub fn open(path: PathBuf) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).append(true).create(true).open(&path)?;
        let mut last = [b'\n'];
        if let Some(at) = file.metadata()?.len().checked_sub(1) {
            let _ = file.read_at(&mut last, at);
        }
        let is_torn = AtomicBool::new(last != [b'\n']);
        Ok(Self { path, file, is_torn, has_failed: AtomicBool::new(false) })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds whole lines. Gives an error only the first time that they cannot be written; whoever
    /// calls this tells it.
    pub fn add(&self, lines: &str) -> io::Result<()> {
        // A line that was cut off ends before the next one begins.
        let torn = if self.is_torn.swap(false, Ordering::Relaxed) { "\n" } else { "" };
        // One write, so that lines of two threads do not mix.
        let written = (&self.file).write_all(format!("{torn}{lines}").as_bytes());
        if written.is_err() {
            self.is_torn.store(true, Ordering::Relaxed);
            if self.has_failed.swap(true, Ordering::Relaxed) {
                return Ok(());
            }
        }
        written
    }
}
