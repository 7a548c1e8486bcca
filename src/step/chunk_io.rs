//! A chunk's way into an update and out of it: compared with its checksums, shown to a snapshot,
//! and given new checksums.

use std::borrow::Cow;
use std::time::Instant;

use half::bf16;

use super::checksums::Checksums;
use super::durable::Snapshot;
use crate::error::Result;
use crate::gradients::{GradientStore, ShardGradients, StepGradients};
use crate::optim::GradElem;
use crate::plan::Plan;
use crate::storage::Slots;
use crate::swap::ResidentChunk;
use crate::timers::{Counter, Timer, Timers};
use crate::units::ChunkIndex;

/// What that takes, at one step.
pub(super) struct ChunkIo<'a> {
    pub plan: &'a Plan,
    pub pool: &'a rayon::ThreadPool,
    pub attempt: u64,
    pub slots: &'a mut Slots,
    pub checksums: &'a mut Checksums,
    pub snapshot: Option<&'a mut Snapshot>,
    pub timers: &'a mut Timers,
}

impl ChunkIo<'_> {
    /// Before the update: is it what was written, and does a snapshot want it? (Upper halves of
    /// masters have been compared with the caller's other arguments.)
    pub fn take_in(&mut self, resident: &ResidentChunk, uppers: &[bf16]) -> Result<()> {
        let (plan, chunk) = (self.plan, resident.index());
        self.timers.turn_to(chunk.0);
        self.timers.count(Counter::Chunks, 1);
        let before = Instant::now();
        if !resident.is_fresh() {
            let bytes = plan.layout(chunk).swap_in_bytes();
            self.timers.count(Counter::CacheHitBytes, bytes);
        }
        if resident.is_fresh() && self.checksums.is_due(chunk, self.attempt) {
            let extent = self.slots.read_extent(chunk);
            self.checksums.verify(self.pool, plan, chunk, extent, resident, &[])?;
        }
        if let Some(snapshot) = &mut self.snapshot {
            let layout = plan.layout(chunk);
            snapshot.offer(chunk, &layout, resident, uppers, self.checksums.of(chunk));
        }
        self.timers.record(Timer::VerifyChecksums, before.elapsed());
        Ok(())
    }

    /// The gradients of a chunk at least; what was spilled is compared with its checksum.
    pub fn gradients<'s, G: GradElem>(
        &mut self,
        gradients: &'s StepGradients<'_, G>,
        chunk: ChunkIndex,
        spilled: &'s [u8],
    ) -> Result<Cow<'s, ShardGradients<'s, G>>> {
        if let StepGradients::Stored(store) = gradients {
            self.verify_gradient(store, chunk, spilled)?;
        }
        gradients.of_chunk(self.plan, chunk, spilled)
    }

    /// Compares what was spilled of a chunk's gradient with its checksum, if it is time for that.
    pub fn verify_gradient(
        &mut self,
        store: &GradientStore,
        chunk: ChunkIndex,
        spilled: &[u8],
    ) -> Result<()> {
        if spilled.is_empty() {
            return Ok(());
        }
        let before = Instant::now();
        if self.checksums.is_due(chunk, self.attempt) {
            store.verify(self.plan, self.pool, chunk, spilled)?;
        }
        self.timers.record(Timer::VerifyChecksums, before.elapsed());
        Ok(())
    }

    /// After a change: new checksums, and back to the drives.
    pub fn swap_out(&mut self, resident: ResidentChunk, uppers: &[bf16]) {
        let (chunk, before) = (resident.index(), Instant::now());
        self.checksums.take(self.pool, &self.plan.layout(chunk), chunk, &resident, uppers);
        self.timers.record(Timer::TakeChecksums, before.elapsed());
        self.slots.mark_written(chunk);
        resident.swap_out();
    }
}
