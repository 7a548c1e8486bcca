//! Where the gradients of a shard lie between backward and step, and what memory that takes.

use std::sync::Arc;

use crate::config::{Config, GradientPlace};
use crate::partition::Partition;
use crate::storage::Placement;
use crate::units::Bytes;

/// The least number of buffers for gradients on their way: one is filled while another is written.
const SPILL_BUFFERS_MIN: u64 = 2;
/// The most such buffers: more of them keep no drive busier.
const SPILL_BUFFERS_MAX: u64 = 16;
/// These buffers may take one part in this many of the budget, if that is more than the least.
const SPILL_PART: u64 = 8;
/// Buffers that `auto` leaves for state on its way before it keeps gradients in memory.
const MOVING_BUFFERS: u64 = 8;

/// How many of a shard's chunks have their gradients in memory, the first ones, and the buffers for
/// those of all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GradientRoom {
    /// Chunks whose gradients stay in memory, the first ones of the shard.
    pub resident_chunks: usize,
    /// Buffers for the gradients of the others on their way.
    pub buffers: u64,
}

impl GradientRoom {
    /// Divides a budget of `budget` bytes. `chunk_bytes` has the bytes of each chunk's gradients,
    /// `state_buffer_bytes` are those of one buffer for state.
    pub fn divide(
        place: GradientPlace,
        chunk_bytes: &[u64],
        budget: u64,
        state_buffer_bytes: u64,
    ) -> Self {
        let chunks = chunk_bytes.len() as u64;
        let largest = chunk_bytes.iter().copied().max().unwrap_or(0);
        let least = SPILL_BUFFERS_MIN.min(chunks);
        let wanted = (budget / SPILL_PART).checked_div(largest).unwrap_or(0);
        let buffers = wanted.clamp(least, SPILL_BUFFERS_MAX.min(chunks).max(least));
        let moving = MOVING_BUFFERS.min(chunks) * state_buffer_bytes;
        let all: u64 = chunk_bytes.iter().sum();
        let resident_chunks = match place {
            GradientPlace::Caller | GradientPlace::Drives => 0,
            GradientPlace::Memory => chunks as usize,
            GradientPlace::Auto if moving + all <= budget => chunks as usize,
            GradientPlace::Auto => {
                let room = budget.saturating_sub(moving + buffers * largest);
                let ends = chunk_bytes.iter().scan(0, |end, bytes| {
                    *end += bytes;
                    Some(*end)
                });
                ends.take_while(|end| *end <= room).count()
            }
        };
        let has_spills = place != GradientPlace::Caller && resident_chunks < chunk_bytes.len();
        Self { resident_chunks, buffers: if has_spills { buffers } else { 0 } }
    }
}

/// Of the chunks of a shard, the first ones have their gradients in memory, the others on the
/// drives.
#[derive(Clone, Debug, Default)]
pub struct GradientPlan {
    /// Whether gradients may be handed over.
    is_on: bool,
    /// Chunks whose gradients stay in memory.
    resident_chunks: usize,
    /// Bytes of their gradients.
    resident_bytes: u64,
    /// Bytes of the sum of one element's gradients.
    elem_bytes: u64,
    /// Buffers for the gradients of other chunks, each of the largest chunk.
    buffers: usize,
    buffer_bytes: usize,
    /// Where those lie on the drives; behind the state in the same files.
    placement: Option<Arc<Placement>>,
}

impl GradientPlan {
    /// Follows from the configuration, the shard, and what its state takes on the drives and in a
    /// buffer.
    pub fn resolve(
        config: &Config,
        partition: &Partition,
        state: &Placement,
        state_buffer_bytes: u64,
        shard: u32,
    ) -> Self {
        let place = config.gradients.place;
        if place == GradientPlace::Caller {
            return Self::default();
        }
        let elem_bytes = config.gradients.accumulate_in.elem_bytes();
        let chunk_bytes = partition.chunks().iter().map(|it| it.padded_elems * elem_bytes);
        let chunk_bytes: Vec<u64> = chunk_bytes.collect();
        let largest = chunk_bytes.iter().copied().max().unwrap_or(0);
        let budget = config.swap.memory_budget.0;
        let room = GradientRoom::divide(place, &chunk_bytes, budget, state_buffer_bytes);
        let GradientRoom { resident_chunks, buffers } = room;
        let spilled = |(index, bytes)| if index < resident_chunks { 0 } else { bytes };
        let extents: Vec<u64> = chunk_bytes.iter().copied().enumerate().map(spilled).collect();
        let has_spills = resident_chunks < chunk_bytes.len();
        let placement = has_spills.then(|| {
            let (unit, headroom) = (config.drives.stripe_unit.0, config.drives.stripe_headroom);
            let weights = config.drive_weights();
            let placed = Placement::weighted(&extents, unit, &weights, shard as usize, headroom);
            Arc::new(placed.behind(state.drive_bytes()))
        });
        Self {
            is_on: true,
            resident_chunks,
            resident_bytes: chunk_bytes[..resident_chunks].iter().sum(),
            elem_bytes,
            buffers: buffers as usize,
            buffer_bytes: largest as usize,
            placement,
        }
    }

    /// Number of chunks whose gradients stay in memory: the first ones of the shard.
    pub fn resident_chunks(&self) -> usize {
        self.resident_chunks
    }

    /// Number of buffers for gradients on their way to the drives and back.
    pub fn buffers(&self) -> usize {
        self.buffers
    }

    /// Bytes of one of them.
    pub fn buffer_bytes(&self) -> usize {
        self.buffer_bytes
    }

    /// Bytes of the sum of one element's gradients.
    pub fn elem_bytes(&self) -> u64 {
        self.elem_bytes
    }

    /// Whether gradients are handed over during backward.
    pub fn is_on(&self) -> bool {
        self.is_on
    }

    /// Where spilled gradients lie, if any are spilled.
    pub fn placement(&self) -> Option<&Arc<Placement>> {
        self.placement.as_ref()
    }

    /// All memory that this takes.
    pub fn memory_bytes(&self) -> u64 {
        self.resident_bytes + (self.buffers * self.buffer_bytes) as u64
    }

    /// How much memory gradients take, in words for the log; empty if they take none.
    pub fn formula(&self) -> String {
        let mut terms = Vec::new();
        if self.resident_chunks > 0 {
            let bytes = Bytes(self.resident_bytes).human();
            terms.push(format!("gradients of {} chunks = {bytes}", self.resident_chunks));
        }
        if self.buffers > 0 {
            let bytes = Bytes(self.buffer_bytes as u64).human();
            terms.push(format!("{} buffers for spilled gradients x {bytes}", self.buffers));
        }
        terms.join(" + ")
    }
}
