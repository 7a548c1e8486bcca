//! Where a job's state came from when it was started.

use std::path::PathBuf;

use crate::step::Resumed;

/// Where a job's state came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The job is new: its masters were initialised.
    Fresh,
    /// Committed steps lay on the drives.
    Drives(Resumed),
    /// It was loaded from a checkpoint.
    Checkpoint {
        /// The directory of the checkpoint.
        directory: PathBuf,
        /// Steps attempted up to it.
        attempt: u64,
        /// The bytes that had been given for this rank's shard with the last step before the save;
        /// those of rank 0 if there were not as many ranks.
        user_blob: Vec<u8>,
    },
}

impl Origin {
    /// Steps attempted before this start.
    pub fn attempt(&self) -> u64 {
        match self {
            Self::Fresh => 0,
            Self::Drives(resumed) => resumed.attempt,
            Self::Checkpoint { attempt, .. } => *attempt,
        }
    }

    /// The bytes that had been given with the last step before this start; empty for a new job.
    pub fn user_blob(&self) -> &[u8] {
        match self {
            Self::Fresh => &[],
            Self::Drives(resumed) => &resumed.user_blob,
            Self::Checkpoint { user_blob, .. } => user_blob,
        }
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fresh => write!(f, "a new job"),
            Self::Drives(Resumed { stamp, attempt, why, .. }) => {
                write!(f, "going on after step {attempt} from the drives: {stamp}, {why}")
            }
            Self::Checkpoint { directory, attempt, .. } => {
                write!(f, "going on after step {attempt} from checkpoint {}", directory.display())
            }
        }
    }
}
