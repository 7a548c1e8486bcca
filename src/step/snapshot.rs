//! A copy of the whole state as it is between two steps, taken chunk by chunk: the next step hands
//! over each chunk when it has swapped it in, before the update, so that nothing is read twice.

use super::optimizer::SwappedOptimizer;
use crate::coord::agree;
use crate::error::{Error, Result};
use crate::storage::ExtentLayout;
use crate::swap::SweepKind;
use crate::units::ChunkIndex;

/// Where a snapshot goes: a checkpoint, for instance.
pub trait ChunkSink {
    /// Takes one chunk: its extent, how its state tensors lie in it, and their checksums. Chunks
    /// come in any order, each once.
    ///
    /// # Errors
    /// The snapshot is then of no use; training goes on.
    fn put(
        &mut self,
        chunk: ChunkIndex,
        layout: &ExtentLayout,
        bytes: &[u8],
        checksums: &[u32],
    ) -> Result<()>;
}

/// A snapshot under way.
pub(super) struct Snapshot {
    sink: Box<dyn ChunkSink>,
    is_taken: Vec<bool>,
    left: usize,
    failure: Option<Error>,
}

impl Snapshot {
    /// Hands a chunk over, unless it has been already.
    pub fn offer(
        &mut self,
        chunk: ChunkIndex,
        layout: &ExtentLayout,
        bytes: &[u8],
        checksums: &[u32],
    ) {
        if std::mem::replace(&mut self.is_taken[chunk.index()], true) {
            return;
        }
        self.left -= 1;
        if self.failure.is_none() {
            self.failure = self.sink.put(chunk, layout, bytes, checksums).err();
        }
    }
}

impl SwappedOptimizer {
    /// Begins a snapshot of the state as it is now. The following steps hand it over, before they
    /// change it, at no cost of reading; see [`Self::finish_snapshot`].
    ///
    /// # Errors
    /// Usage if one is under way.
    pub fn begin_snapshot(&mut self, sink: Box<dyn ChunkSink>) -> Result<()> {
        self.check_usable()?;
        if self.snapshot.is_some() {
            return Err(Error::usage("a snapshot is under way already"));
        }
        let chunks = self.plan.partition().chunks().len();
        self.snapshot =
            Some(Snapshot { sink, is_taken: vec![false; chunks], left: chunks, failure: None });
        Ok(())
    }

    /// Chunks of this rank that the snapshot still lacks; `None` if none is under way.
    pub fn snapshot_left(&self) -> Option<usize> {
        self.snapshot.as_ref().map(|snapshot| snapshot.left)
    }

    /// Forgets the snapshot under way.
    pub fn drop_snapshot(&mut self) {
        self.snapshot = None;
    }

    /// Collective: reads what the snapshot still lacks from the drives, and gives the sink back.
    ///
    /// # Errors
    /// Agreed: the sink's first failure, or that of a drive. Training may go on after the former.
    pub fn finish_snapshot(&mut self) -> Result<Box<dyn ChunkSink>> {
        let snapshot = self.snapshot.take();
        let read = snapshot
            .ok_or_else(|| Error::usage("no snapshot is under way"))
            .and_then(|snapshot| self.read_rest(snapshot));
        agree(&*self.comm, read)
    }

    fn read_rest(&mut self, mut snapshot: Snapshot) -> Result<Box<dyn ChunkSink>> {
        self.check_usable()?;
        if snapshot.left > 0 {
            let mut sweep = self.swapper.sweep(SweepKind::Inspect, &self.slots)?;
            while let Some(resident) = sweep.next_chunk()? {
                let chunk = resident.index();
                let extent = self.slots.read_extent(chunk);
                self.checksums.verify(&self.pool, &self.plan, chunk, extent, &resident)?;
                let layout = self.plan.layout(chunk);
                snapshot.offer(chunk, &layout, &resident, self.checksums.of(chunk));
                if let Some(failure) = snapshot.failure.take() {
                    return Err(failure);
                }
            }
            sweep.finish()?;
        }
        match snapshot.failure {
            Some(failure) => Err(failure),
            None => Ok(snapshot.sink),
        }
    }
}
