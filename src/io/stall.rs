//! Whether drives that have something to do complete anything.

use std::time::{Duration, Instant};

use crate::timers::Patience;

/// What became of operations in flight since one looked before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// So many have completed since the beginning.
    Progress(u64),
    /// None has completed, but it is too early to judge.
    Nothing,
    /// None has completed for too long.
    Stall,
}

/// Watches the number of completed operations.
#[derive(Clone, Copy, Debug)]
pub struct StallWatch {
    completed_ops: u64,
    patience: Patience,
}

impl StallWatch {
    /// Begins after so many completed operations. No further one within `limit` is a stall.
    pub fn new(completed_ops: u64, limit: Duration) -> Self {
        Self { completed_ops, patience: Patience::new(limit, Instant::now()) }
    }

    /// Until when to wait at most before the next [`Self::look`].
    pub fn next_look(&self) -> Instant {
        self.patience.next_look()
    }

    /// Notes that operations begin after a time without any.
    pub fn restart(&mut self) {
        self.patience.restart(Instant::now());
    }

    /// Looks after a wait that ended at [`Self::next_look`], or earlier.
    pub fn look(&mut self, completed_ops: u64) -> Seen {
        let now = Instant::now();
        if completed_ops != self.completed_ops {
            self.completed_ops = completed_ops;
            self.patience.restart(now);
            return Seen::Progress(completed_ops);
        }
        // Something else may have ended the wait early.
        let is_due = now >= self.patience.next_look();
        if is_due && self.patience.look(now) { Seen::Stall } else { Seen::Nothing }
    }
}
