//! Gradients that outlive the call that hands them over: accumulated chunk by chunk, in memory or
//! on the drives, and gone after the step.
//!
//! A chunk's sums are in a buffer from its first piece on, zeros where nothing has come. When the
//! last piece of all its elements has come, it is closed: its norm is taken, and, unless it stays
//! in memory, it is spilled at once. Where more chunks are under way than there are buffers, the
//! one that was added to the longest ago is closed before its time, and read back when more of it
//! comes.

mod reading;

use std::ops::Range;

use super::accumulate::{accumulate, checksum_of, norm_of};
use super::coverage::{Accepted, Coverage};
use crate::config::{AccumulateIn, VerifyChecksums};
use crate::error::{Error, Result};
use crate::io::Buffer;
use crate::optim::{GradElem, PackedNorm};
use crate::partition::{Chunk, Partition};
use crate::plan::Plan;
use crate::swap::SpillPort;
use crate::timers::{Counter, Timers};
use crate::units::{ChunkIndex, ParamIndex};

/// The sums of one chunk.
#[derive(Default)]
struct Sums {
    /// The buffer with the sums. Chunks that stay in memory always have one.
    buffer: Option<Buffer>,
    is_resident: bool,
    /// Whether any gradient has come.
    is_touched: bool,
    /// Whether the sums lie on the drives.
    is_spilled: bool,
    /// The number of elements whose last piece has not come.
    elems_left: u64,
    last_use: u64,
    /// The norm of the sums, once the chunk is closed.
    norm: Option<PackedNorm>,
    checksum: u32,
}

/// The gradients of a shard since the last step.
#[derive(Default)]
pub struct GradientStore {
    is_on: bool,
    format: AccumulateIn,
    coverage: Coverage,
    /// One for each chunk; none where gradients cannot be handed over.
    sums: Vec<Sums>,
    /// The most chunks that may be in buffers for spills at a time.
    open_max: usize,
    /// The chunks that are in such buffers.
    open: usize,
    uses: u64,
    last_touched: Option<usize>,
    has_writes: bool,
    /// Why the first refused piece was refused. The next flush gives it to all ranks.
    refused: Option<Error>,
    /// Why the gradients of this step are lost.
    lost: Option<Error>,
}

/// What the store works with.
pub(super) struct StoreTools<'a> {
    pub plan: &'a Plan,
    pub pool: &'a rayon::ThreadPool,
    pub spills: &'a mut SpillPort,
    pub timers: &'a mut Timers,
}

impl GradientStore {
    /// An empty store; `resident` has a buffer for each chunk whose gradients stay in memory.
    pub fn new(plan: &Plan, resident: Vec<Buffer>) -> Self {
        let mut resident = resident.into_iter();
        let is_on = plan.gradients().is_on();
        let chunks = if is_on { plan.partition().chunks().len() } else { 0 };
        let chunks = (0..chunks).map(ChunkIndex::from_index);
        let sums = chunks.map(|chunk| {
            let buffer = resident.next();
            let elems_left = plan.partition().chunk(chunk).elems;
            Sums { is_resident: buffer.is_some(), buffer, elems_left, ..Sums::default() }
        });
        Self {
            is_on,
            format: plan.config().gradients.accumulate_in,
            coverage: Coverage::new(plan.partition()),
            sums: sums.collect(),
            // One buffer is left for a chunk that is being written.
            open_max: plan.gradients().buffers().saturating_sub(1).max(1),
            open: 0,
            uses: 0,
            last_touched: None,
            has_writes: false,
            refused: None,
            lost: None,
        }
    }

    /// Whether nothing has come since the last step.
    pub fn is_empty(&self) -> bool {
        self.coverage.is_empty() && self.lost.is_none() && self.refused.is_none()
    }

    /// Checks that gradients can be handed over with this configuration.
    ///
    /// # Errors
    /// Usage, with what to set.
    pub(super) fn check_on(&self) -> Result<()> {
        if self.is_on {
            return Ok(());
        }
        Err(Error::usage("there is no place for gradients but the caller's memory")
            .with("gradients.place", "caller")
            .hint("set gradients.place to \"memory\", \"drives\" or \"auto\""))
    }

    /// Checks that no gradients were handed over that a step with other gradients would not use.
    ///
    /// # Errors
    /// Usage.
    pub fn check_unused(&self) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        Err(Error::usage("gradients have been handed over before that this step would not use")
            .hint("step with Gradients::HandedOver, or drop them with discard_gradients"))
    }

    /// Takes a piece of gradient.
    ///
    /// # Errors
    /// Usage; nothing has changed then, and the next flush gives the error to all ranks. Errors of
    /// the drives come from the flush alone.
    pub(super) fn add<G: GradElem>(
        &mut self,
        tools: &mut StoreTools<'_>,
        (param, offset): (ParamIndex, u64),
        piece: &[G],
        is_last: bool,
    ) -> Result<()> {
        let (inventory, partition) = (tools.plan.inventory(), tools.plan.partition());
        let given = (param, offset, piece.len() as u64);
        self.check_on()?;
        let accepted = match self.coverage.accept(inventory, partition, given, is_last) {
            Ok(accepted) => accepted,
            Err(error) => {
                self.refused.get_or_insert_with(|| Error::usage(error.sentence()));
                return Err(error);
            }
        };
        let mut rest = piece;
        for part in &accepted {
            let (values, after) = rest.split_at(part.at.in_shard.len());
            rest = after;
            if self.lost.is_none()
                && let Err(error) = self.add_values(tools, part, values)
            {
                self.lost = Some(error);
            }
            self.note(tools, part);
        }
        Ok(())
    }

    fn add_values<G: GradElem>(
        &mut self,
        tools: &mut StoreTools<'_>,
        accepted: &Accepted,
        piece: &[G],
    ) -> Result<()> {
        let chunks = tools.plan.partition().chunks();
        let at = accepted.at.in_shard.clone();
        let touched = chunks_within(chunks, &at);
        // Chunks are filled in the direction in which the pieces come, so that a chunk that two
        // pieces share need not be read back. Backward produces the last parameters first.
        let goes_back = match self.last_touched {
            Some(last) => touched.start < last,
            None => touched.end == chunks.len(),
        };
        for step in 0..touched.len() {
            let index = if goes_back { touched.end - 1 - step } else { touched.start + step };
            let (start, here) = (chunks[index].shard_offset as usize, overlap(&chunks[index], &at));
            self.open(tools, index)?;
            self.last_touched = Some(index);
            let Some(sums) = self.sums[index].buffer.as_deref_mut() else { continue };
            let piece = &piece[here.start - at.start..here.end - at.start];
            let is_first = accepted.is_first;
            accumulate(tools.pool, self.format, sums, here.start - start, piece, is_first);
        }
        Ok(())
    }

    /// Notes that a piece has been taken, and closes the chunks that it was the last one for.
    fn note(&mut self, tools: &mut StoreTools<'_>, accepted: &Accepted) {
        self.coverage.take(accepted);
        if !accepted.is_last {
            return;
        }
        let (chunks, at) = (tools.plan.partition().chunks(), &accepted.at.in_shard);
        for index in chunks_within(chunks, at) {
            // No element comes twice in a micro-batch.
            self.sums[index].elems_left -= overlap(&chunks[index], at).len() as u64;
            if self.sums[index].elems_left == 0 && self.lost.is_none() {
                self.close(tools, index);
            }
        }
    }

    /// Brings a chunk's sums into a buffer.
    fn open(&mut self, tools: &mut StoreTools<'_>, index: usize) -> Result<()> {
        self.uses += 1;
        let (is_open, is_touched) =
            (self.sums[index].buffer.is_some(), self.sums[index].is_touched);
        if !is_open {
            while self.open >= self.open_max
                && let Some(longest) = self.used_longest_ago()
            {
                self.close(tools, longest);
            }
            let buffer = if self.sums[index].is_spilled {
                self.read_back(tools, index)?
            } else {
                tools.spills.take_gradient_buffer()?
            };
            self.sums[index].buffer = Some(buffer);
            self.open += 1;
        }
        let (last_use, bytes) = (self.uses, tools.plan.gradient_bytes(index));
        let sums = &mut self.sums[index];
        if !is_touched && let Some(buffer) = &mut sums.buffer {
            buffer[..bytes].fill(0);
        }
        (sums.is_touched, sums.is_spilled, sums.norm, sums.last_use) =
            (true, false, None, last_use);
        Ok(())
    }

    fn used_longest_ago(&self) -> Option<usize> {
        let open = self.sums.iter().enumerate();
        let open = open.filter(|(_, sums)| !sums.is_resident && sums.buffer.is_some());
        open.min_by_key(|(_, sums)| sums.last_use).map(|(index, _)| index)
    }

    fn read_back(&mut self, tools: &mut StoreTools<'_>, index: usize) -> Result<Buffer> {
        let chunk = ChunkIndex::from_index(index);
        let Some(buffer) = tools.spills.read_spilled(chunk)? else {
            tools.spills.settle_spills()?;
            return Err(Error::internal("a spilled gradient is lost without a reason"));
        };
        if let Err(error) = self.verify(tools.plan, tools.pool, chunk, &buffer) {
            tools.spills.return_gradient_buffer(buffer);
            return Err(error);
        }
        Ok(buffer)
    }

    /// Takes the norm of a chunk's sums, and spills them if they do not stay in memory.
    fn close(&mut self, tools: &mut StoreTools<'_>, index: usize) {
        let (plan, sums) = (tools.plan, &mut self.sums[index]);
        let bytes = plan.gradient_bytes(index);
        let chunk = &plan.partition().chunks()[index];
        let range = chunk.shard_offset as usize..(chunk.shard_offset + chunk.elems) as usize;
        if let Some(buffer) = &sums.buffer {
            let blocks = plan.norm_blocks();
            let norm = norm_of(tools.pool, self.format, &buffer[..bytes], blocks, range);
            sums.norm = Some(norm.packed());
        }
        if sums.is_resident {
            return;
        }
        if let Some(buffer) = sums.buffer.take() {
            if plan.config().durability.verify != VerifyChecksums::Off {
                sums.checksum = checksum_of(tools.pool, &buffer[..bytes]);
            }
            tools.spills.spill(ChunkIndex::from_index(index), buffer);
            tools.timers.count(Counter::SpilledGradientBytes, bytes as u64);
            (sums.is_spilled, self.has_writes) = (true, true);
            self.open -= 1;
        }
    }

    /// Closes all chunks and waits until what was spilled is on the drives. Not agreed.
    ///
    /// # Errors
    /// Usage if a piece was refused, or if the last piece of a parameter has not come; everything
    /// stays then. I/O: the gradients are lost.
    pub(super) fn flush(&mut self, tools: &mut StoreTools<'_>) -> Result<()> {
        self.check_on()?;
        if let Some(refused) = self.refused.take() {
            return Err(refused);
        }
        if self.lost.is_none() {
            self.coverage.check_finished(tools.plan.inventory())?;
            for index in 0..self.sums.len() {
                if self.sums[index].is_touched && self.sums[index].norm.is_none() {
                    self.close(tools, index);
                }
            }
        }
        let has_writes = std::mem::take(&mut self.has_writes);
        let settled = if has_writes { tools.spills.settle_spills() } else { Ok(()) };
        self.lost.take().map_or(settled, Err)
    }

    /// Forgets all gradients.
    pub(super) fn clear(&mut self, partition: &Partition, spills: &mut SpillPort) {
        self.refused = None;
        if self.is_empty() {
            return;
        }
        if std::mem::take(&mut self.has_writes) {
            // These bytes are not read any more, so an error does not matter.
            let _ = spills.settle_spills();
        }
        for (index, sums) in self.sums.iter_mut().enumerate() {
            if !sums.is_resident
                && let Some(buffer) = sums.buffer.take()
            {
                spills.return_gradient_buffer(buffer);
            }
            (sums.is_touched, sums.is_spilled, sums.norm) = (false, false, None);
            sums.elems_left = partition.chunks()[index].elems;
        }
        spills.discard_spills();
        self.coverage.clear();
        (self.open, self.last_touched, self.lost) = (0, None, None);
    }
}

/// The elements of a range of the shard that lie in a chunk.
fn overlap(chunk: &Chunk, range: &Range<usize>) -> Range<usize> {
    let (start, end) = (chunk.shard_offset as usize, (chunk.shard_offset + chunk.elems) as usize);
    range.start.max(start)..range.end.min(end)
}

/// The chunks that have elements of a range of the shard.
fn chunks_within(chunks: &[Chunk], range: &Range<usize>) -> Range<usize> {
    let end = |chunk: &Chunk| (chunk.shard_offset + chunk.elems) as usize;
    let first = chunks.partition_point(|chunk| end(chunk) <= range.start);
    let behind = chunks.partition_point(|chunk| (chunk.shard_offset as usize) < range.end);
    first..behind.max(first)
}
