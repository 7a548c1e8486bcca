//! The lock on a state file, which tells a living owner from a dead one, and what is known without
//! it: some file systems have no locks.

use std::fs::File;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

/// What came of asking for a file's lock (flock). It lasts as long as the file is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lock {
    /// This process has it.
    Ours,
    /// Another process has it, and so is alive.
    Held,
    /// The file system has no locks: Lustre that is mounted without `flock`, NFS without a lock
    /// daemon, some file systems in user space.
    Missing(Errno),
}

impl Lock {
    /// Asks for the lock until there is an answer other than that somebody has it.
    pub fn take(file: &File, patience: Duration) -> Self {
        let deadline = Instant::now() + patience;
        loop {
            match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Self::Ours,
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(Errno::WOULDBLOCK) => return Self::Held,
                Err(errno) => return Self::Missing(errno),
            }
        }
    }
}

/// Whether a shard's directory has a living owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Life {
    /// It has.
    Alive,
    /// It has none.
    Dead,
    /// That cannot be found out from here, and why.
    Unknown(String),
}
