//! What an optimizer's drives do, and what they are given to do.

use std::time::Instant;

use super::optimizer::SwappedOptimizer;
use crate::error::Result;

/// Memory that I/O reads into and writes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRegion {
    /// The address of its first byte.
    pub address: usize,
    /// Its length in bytes.
    pub bytes: usize,
}

impl SwappedOptimizer {
    /// The drives' shares of what this rank writes, in the order of the plan's drives.
    pub fn drive_shares(&self) -> Vec<f64> {
        self.shard.plan.placement().shares()
    }

    /// Gives the drives other weights, as before the replacement of one. All ranks of a node give
    /// the same. Chunks move when they are swapped out, so the next step (of a durable job, the
    /// next two commits) brings everything where it is to be, as far as `drives.stripe_headroom`
    /// allows. With `drives.reweight`, what is measured may change the weights again.
    ///
    /// # Errors
    /// Usage if there is not one weight for each drive, or a weight is out of range.
    pub fn set_drive_weights(&mut self, weights: &[f64]) -> Result<()> {
        self.watch.balance.set_weights(&self.shard.plan, self.comm.host(), weights)
    }

    /// The one mapping that all buffers lie in: chunks that are swapped in and gradients that are
    /// kept. It stays where it is as long as the optimizer lives. For callers who register it with
    /// a device; what lies in it is only valid where a handle or a borrow says so.
    pub fn arena(&self) -> MemoryRegion {
        let (address, bytes) = self.shard.arena;
        MemoryRegion { address, bytes }
    }

    /// When this rank's last write to each of its drives ended; long ago if there was none.
    #[doc(hidden)]
    pub fn last_swap_outs(&self) -> Vec<Instant> {
        self.watch.balance.last_swap_outs()
    }

    /// Whether this rank's file on each drive was opened for direct I/O.
    #[doc(hidden)]
    pub fn are_direct(&self) -> Vec<bool> {
        self.shard.files.are_direct()
    }
}
