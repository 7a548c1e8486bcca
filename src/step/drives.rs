//! The drives of an optimizer: their shares of what is written, and the memory that I/O uses.

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
    /// The drives' shares of what this rank writes, in the order of the configured drives; they add
    /// up to 1.
    pub fn drive_shares(&self) -> Vec<f64> {
        self.shard.plan.placement().shares()
    }

    /// Gives the drives other weights, for instance before one of them is replaced. All ranks of a
    /// node give the same. Chunks move when they are swapped out, so everything lies in its new
    /// place after the next step, or for a durable job after the next two commits, as far as
    /// `drives.stripe_headroom` allows. With `drives.reweight`, measurements may change the weights
    /// again.
    ///
    /// # Errors
    /// Usage, on this rank alone, if there is not one weight for each drive, or a weight is out of
    /// range.
    pub fn set_drive_weights(&mut self, weights: &[f64]) -> Result<()> {
        self.watch.balance.set_weights(&self.shard.plan, self.comm.host(), weights)
    }

    /// The memory in which all buffers lie, those of chunks and those of gradients, for callers who
    /// register it with a device. It stays at this address as long as the optimizer lives. Its
    /// content is valid only where a handle or a borrow says so.
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
