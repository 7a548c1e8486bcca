//! A copy of the whole state as it is between two steps, taken chunk by chunk: the next step hands
//! over each chunk when it has swapped it in, before the update, so that nothing is read twice.

use half::bf16;

use crate::error::{Error, Result};
use crate::storage::ExtentLayout;
use crate::units::ChunkIndex;

/// What takes a snapshot, such as the writer of a checkpoint.
pub trait ChunkSink: Send {
    /// Takes one chunk: its state tensors as they lie in an extent, the upper halves of its live
    /// masters if `state` has only lower ones, and checksums of all. Chunks come in any order, each
    /// once.
    ///
    /// # Errors
    /// After an error the snapshot cannot be used; training goes on.
    fn put(
        &mut self,
        chunk: ChunkIndex,
        state: &[u8],
        uppers: &[bf16],
        checksums: &[u32],
    ) -> Result<()>;
}

/// A snapshot under way.
pub(in crate::step) struct Snapshot {
    sink: Box<dyn ChunkSink>,
    is_taken: Vec<bool>,
    /// Chunks that it still lacks.
    pub left: usize,
    /// The first failure of the sink.
    pub failure: Option<Error>,
}

impl Snapshot {
    /// A snapshot of `chunks` chunks, none of which has been taken.
    pub fn new(sink: Box<dyn ChunkSink>, chunks: usize) -> Self {
        Self { sink, is_taken: vec![false; chunks], left: chunks, failure: None }
    }

    /// Hands a chunk over to the sink, unless it has been handed over already.
    pub fn offer(
        &mut self,
        chunk: ChunkIndex,
        layout: &ExtentLayout,
        bytes: &[u8],
        uppers: &[bf16],
        checksums: &[u32],
    ) {
        if std::mem::replace(&mut self.is_taken[chunk.index()], true) {
            return;
        }
        self.left -= 1;
        if self.failure.is_none() {
            let state = &bytes[..layout.swap_in_bytes() as usize];
            self.failure = self.sink.put(chunk, state, uppers, checksums).err();
        }
    }
}
