//! Slots: where a chunk is read from and written to, so that committed state is never overwritten.

use crate::units::{ChunkIndex, ExtentIndex};

/// Which slot of every chunk is read and which is written. A scratch job has one slot per chunk and
/// overwrites it. A durable job has two: the committed slot, which is only read, and the working
/// slot, which steps overwrite until a commit makes it the committed one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slots {
    slots_per_chunk: usize,
    committed: Vec<u8>,
    /// The working slot is newer than the committed one.
    is_dirty: Vec<bool>,
}

impl Slots {
    /// Slots of a new shard, in which nothing is committed: slot 0 is written first.
    pub fn new(chunks: usize, is_durable: bool) -> Self {
        let slots_per_chunk = if is_durable { 2 } else { 1 };
        let nothing = (slots_per_chunk - 1) as u8;
        Self { slots_per_chunk, committed: vec![nothing; chunks], is_dirty: vec![false; chunks] }
    }

    /// The slots of a durable job as a record has them.
    pub fn from_committed(committed: Vec<u8>) -> Self {
        let is_dirty = vec![false; committed.len()];
        Self { slots_per_chunk: 2, committed, is_dirty }
    }

    /// The extent that holds a slot. All first slots come before all second ones, so that the
    /// extents of one sweep are dealt evenly over the drives.
    pub fn extent(chunk: ChunkIndex, slot: u8, chunks: usize) -> ExtentIndex {
        ExtentIndex::from_index(usize::from(slot) * chunks + chunk.index())
    }

    /// The extent with the newest bytes of a chunk.
    pub fn read_extent(&self, chunk: ChunkIndex) -> ExtentIndex {
        let committed = self.committed[chunk.index()];
        let slot = if self.is_dirty[chunk.index()] { self.working(committed) } else { committed };
        Self::extent(chunk, slot, self.committed.len())
    }

    /// The extent to which a chunk is written next.
    pub fn write_extent(&self, chunk: ChunkIndex) -> ExtentIndex {
        let slot = self.working(self.committed[chunk.index()]);
        Self::extent(chunk, slot, self.committed.len())
    }

    /// The extents that hold what is committed, chunk by chunk.
    pub fn committed_extents(&self) -> Vec<ExtentIndex> {
        let chunks = self.committed.len();
        let slots = self.committed.iter().enumerate();
        let extent = |(chunk, slot): (usize, &u8)| {
            Self::extent(ChunkIndex::from_index(chunk), *slot, chunks)
        };
        slots.map(extent).collect()
    }

    fn working(&self, committed: u8) -> u8 {
        if self.slots_per_chunk == 1 { committed } else { 1 - committed }
    }

    /// Enters that the working slot of a chunk has been written.
    pub fn mark_written(&mut self, chunk: ChunkIndex) {
        self.is_dirty[chunk.index()] = self.slots_per_chunk == 2;
    }

    /// Enters a commit: what was written since the last one is now the committed state.
    pub fn commit(&mut self) {
        for (committed, is_dirty) in self.committed.iter_mut().zip(&mut self.is_dirty) {
            if std::mem::take(is_dirty) {
                *committed = 1 - *committed;
            }
        }
    }

    /// The committed slot of every chunk.
    pub fn committed(&self) -> &[u8] {
        &self.committed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_committed_slot_is_never_written() {
        let chunk = ChunkIndex(1);
        let mut slots = Slots::new(3, true);
        assert_eq!(slots.write_extent(chunk), ExtentIndex(1), "slot 0 first");
        slots.mark_written(chunk);
        slots.commit();
        assert_eq!(slots.read_extent(chunk), ExtentIndex(1));
        for _ in 0..2 {
            assert_eq!(slots.write_extent(chunk), ExtentIndex(4), "in place between commits");
            slots.mark_written(chunk);
            assert_eq!(slots.read_extent(chunk), ExtentIndex(4));
        }
        slots.commit();
        slots.commit();
        assert_eq!(slots.read_extent(chunk), ExtentIndex(4), "untouched chunks keep their slot");
        assert_eq!(slots.write_extent(chunk), ExtentIndex(1));
    }

    #[test]
    fn a_scratch_job_has_one_slot() {
        let mut slots = Slots::new(2, false);
        slots.mark_written(ChunkIndex(0));
        slots.commit();
        assert_eq!(slots.read_extent(ChunkIndex(0)), ExtentIndex(0));
        assert_eq!(slots.write_extent(ChunkIndex(0)), ExtentIndex(0));
    }
}
