//! Updates that may not take chunks in the order in which they arrive, but in ascending order, or
//! one sub-group after the other.

use super::{Chunk, ChunkState, Pipeline, SweepKind};
use crate::units::ChunkIndex;

impl Pipeline {
    /// Whether chunks are handed over in ascending order.
    pub fn is_in_order(&self) -> bool {
        self.kind() == Some(SweepKind::UpdateInOrder)
    }

    /// When a sweep begins: whether a chunk is in memory or in a transfer, and the sweep may read
    /// what belongs to it.
    pub fn is_at_hand(&self, chunk: ChunkIndex) -> bool {
        let index = chunk.index();
        self.chunks[index].state != ChunkState::OnDrive && self.may_read(index)
    }

    pub(super) fn next_in_order(&mut self) -> Option<usize> {
        let index = self.first_due()?;
        let is_there = self.chunks[index].state == ChunkState::Resident;
        (is_there && self.may_lend(index)).then_some(index)
    }

    /// The chunk that a sweep in order hands over next.
    fn first_due(&mut self) -> Option<usize> {
        let found = self.chunks[self.order_cursor..].iter().position(|chunk| chunk.is_due);
        self.order_cursor = found.map_or(self.chunks.len(), |more| self.order_cursor + more);
        found.map(|_| self.order_cursor)
    }

    /// Whether a chunk may be handed over: no other sub-group that must have ended before is still
    /// being updated or written.
    pub(super) fn may_lend(&self, index: usize) -> bool {
        let is_bound = !self.overlap.write && self.kind().is_some_and(SweepKind::is_update);
        let is_under_way =
            |it: &Chunk| matches!(it.state, ChunkState::Lent | ChunkState::SwappingOut);
        !is_bound || !self.is_any_other(index, is_under_way)
    }

    /// Whether a chunk may be read: no earlier sub-group that must be updated before is still due.
    pub(super) fn may_read(&self, index: usize) -> bool {
        let is_bound = !self.overlap.read && self.kind().is_some_and(SweepKind::is_update);
        let is_to_come = |it: &Chunk| it.is_due || it.state == ChunkState::Lent;
        let before = self.sub_groups.partition_point(|it| *it < self.sub_groups[index]);
        !is_bound || !self.chunks[..before].iter().any(is_to_come)
    }

    fn is_any_other(&self, index: usize, is_it: impl Fn(&Chunk) -> bool) -> bool {
        let chunks = self.chunks.iter().zip(&*self.sub_groups);
        let others = chunks.filter(|(_, sub_group)| **sub_group != self.sub_groups[index]);
        others.map(|(chunk, _)| chunk).any(is_it)
    }

    /// In a sweep in order, a chunk in memory whose buffer the next chunk needs: memory may hold
    /// later chunks from before.
    pub(super) fn next_to_drop(&mut self) -> Option<usize> {
        let is_moving = self.swapping_in + self.swapping_out > 0;
        if !self.is_in_order() || self.free_buffers > 0 || is_moving {
            return None;
        }
        let first = self.first_due()?;
        if self.chunks[first].state != ChunkState::OnDrive {
            return None;
        }
        let is_useless = |it: &Chunk| it.state == ChunkState::Resident && !it.is_dirty;
        let begin = self.pinned.max(first);
        let found = self.chunks[begin..].iter().rposition(is_useless);
        found.map(|index| begin + index)
    }
}
