//! The types of the questions to the pipeline and of its answers.

use crate::units::ChunkIndex;

/// What a sweep is for. The first four go over all chunks, the others over none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SweepKind {
    /// Swap in, let the caller update, swap out: an optimizer step.
    Update,
    /// The same, handed over in ascending order: sub-group by sub-group.
    UpdateInOrder,
    /// Swap in and let the caller look: verification, digests, export.
    Inspect,
    /// Let the caller fill zeroed buffers, swap out: initialisation.
    Fill,
    /// Write every chunk that is newer in memory than on the drives.
    Flush,
    /// Wait until nothing is in flight, reads ahead included.
    Settle,
}

impl SweepKind {
    /// Whether chunks are updated.
    pub fn is_update(self) -> bool {
        matches!(self, Self::Update | Self::UpdateInOrder)
    }
}

/// What may overlap in updates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Overlap {
    /// The first chunks of the next update are read ahead.
    pub ahead: bool,
    /// Later sub-groups are read while one is updated.
    pub read: bool,
    /// Later sub-groups are updated while one is written.
    pub write: bool,
}

/// How much of what a sweep changes has been written to the drives when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ending {
    /// Not all of it: the last writes go on after the sweep.
    Behind,
    /// All of it, except for chunks that stay in memory.
    Written,
    /// All of it.
    Flushed,
}

/// What to do next. The pipeline has entered it as begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Fill a free buffer with this chunk: all of it, or what an update needs.
    SwapIn {
        /// Which chunk.
        chunk: ChunkIndex,
        /// All of it.
        is_whole: bool,
    },
    /// Write the buffer of this chunk, which the swapper keeps.
    SwapOut(ChunkIndex),
    /// Hand the caller the buffer of this chunk.
    Lend(ChunkIndex),
    /// Free the buffer of this chunk, which the swapper keeps: an earlier chunk needs it.
    Drop(ChunkIndex),
    /// Hand the caller a free buffer for this chunk, zeroed.
    LendZeroed(ChunkIndex),
    /// Nothing until something finishes, or the caller gives a chunk back or begins a sweep.
    Wait,
    /// The sweep has ended.
    Finish,
}

/// What becomes of a chunk's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The swapper keeps it for the chunk.
    Keep,
    /// It is written at once.
    Write,
    /// It is free.
    Free,
}
