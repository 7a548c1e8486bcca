//! What happens to a chunk around its update: before it, the chunk is compared with its checksums
//! and offered to a snapshot; after it, the chunk gets new checksums and is written.

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

/// What is needed for this at one step.
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
    /// Before the update: compares the chunk with its checksums if that is due, and offers it to
    /// the snapshot under way. (Upper halves of masters are compared earlier, when the arguments of
    /// the step are checked.)
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

    /// The gradients of a chunk, and possibly others. What was spilled is compared with its
    /// checksum.
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

    /// Compares the spilled gradient of a chunk with its checksum, if that is due at this step.
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

    /// After a change: takes new checksums, and sends the chunk to the drives.
    pub fn swap_out(&mut self, resident: ResidentChunk, uppers: &[bf16]) {
        let (chunk, before) = (resident.index(), Instant::now());
        self.checksums.take(self.pool, &self.plan.layout(chunk), chunk, &resident, uppers);
        self.timers.record(Timer::TakeChecksums, before.elapsed());
        self.slots.mark_written(chunk);
        resident.swap_out();
    }
}
