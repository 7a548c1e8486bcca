//! The decision what to do next, without any I/O: one table of chunk states, which outlives sweeps,
//! and one function, [`Pipeline::next`], that decides from it.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::units::ChunkIndex;

mod kinds;
mod order;

pub use kinds::{Action, Ending, Fate, Overlap, SweepKind};

/// Where a chunk is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum ChunkState {
    /// On the drives alone.
    #[default]
    OnDrive,
    /// A buffer is being filled from the drives.
    SwappingIn,
    /// In a buffer that the swapper keeps.
    Resident,
    /// In a buffer that the caller has, or will find in its queue.
    Lent,
    /// A buffer is being written to the drives.
    SwappingOut,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Chunk {
    state: ChunkState,
    /// The sweep has still to hand it to the caller.
    is_due: bool,
    /// Newer in memory than on the drives.
    is_dirty: bool,
    /// The buffer has the whole extent, not only the part that an update needs.
    is_whole: bool,
}

/// Chunks that stay in memory wait until the caller has fewer than this to do, so that those that
/// came from the drives give their buffers back first.
const LENT_ENOUGH: usize = 2;

/// The state of every chunk, and of the sweep under way if there is one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pipeline {
    chunks: Vec<Chunk>,
    /// The sub-group of every chunk, ascending.
    sub_groups: Arc<[u32]>,
    /// How many chunks, the first ones, stay in memory from one sweep to the next.
    pinned: usize,
    overlap: Overlap,
    is_reading_ahead: bool,
    /// Updates read whole extents, so that chunks that were read ahead serve inspections too.
    reads_whole: bool,
    sweep: Option<(SweepKind, Ending)>,
    is_stopping: bool,
    has_failed: bool,
    free_buffers: usize,
    due: usize,
    lent: usize,
    swapping_in: usize,
    swapping_out: usize,
    /// Chunks before this have been begun in this sweep; those before `ahead` for the next one.
    cursor: usize,
    ahead: usize,
    /// Pinned chunks before this have been handed over in this sweep.
    pinned_cursor: usize,
    /// Chunks before this have been handed over, in a sweep in order.
    order_cursor: usize,
    /// Chunks in memory that the sweep hands over next, and those that it writes next.
    to_lend: VecDeque<usize>,
    to_write: VecDeque<usize>,
}

impl Pipeline {
    /// A table with all chunks on the drives. `sub_groups` has the sub-group of every chunk. Each
    /// of the first `pinned` chunks keeps one of the `buffers` buffers for good, which leaves at
    /// least one for the other chunks, if there are any.
    pub fn new(
        sub_groups: Arc<[u32]>,
        buffers: usize,
        pinned: usize,
        overlap: Overlap,
        reads_whole: bool,
    ) -> Self {
        let chunks = sub_groups.len();
        assert!(pinned < buffers || pinned == chunks, "no buffer is left to go through");
        Self {
            chunks: vec![Chunk::default(); chunks],
            sub_groups,
            pinned,
            overlap,
            is_reading_ahead: false,
            reads_whole,
            sweep: None,
            is_stopping: false,
            has_failed: false,
            free_buffers: buffers,
            due: 0,
            lent: 0,
            swapping_in: 0,
            swapping_out: 0,
            cursor: chunks,
            ahead: chunks,
            pinned_cursor: pinned,
            order_cursor: chunks,
            to_lend: VecDeque::new(),
            to_write: VecDeque::new(),
        }
    }

    /// Begins a sweep. Operations in flight go on, and chunks in memory are used as they are. Only
    /// an inspection reads those again of which memory has a part.
    pub fn begin(&mut self, kind: SweepKind, ending: Ending) {
        assert!(self.sweep.is_none() && self.lent == 0, "one sweep at a time");
        (self.sweep, self.is_stopping) = (Some((kind, ending)), false);
        match kind {
            SweepKind::Flush => return self.write_what_is_dirty(),
            SweepKind::Settle => return,
            SweepKind::Inspect => {
                assert_eq!(self.swapping_in, 0, "settled before");
                self.drop_residents(|_, chunk| !chunk.is_whole);
            }
            SweepKind::Fill => self.forget(),
            SweepKind::Update | SweepKind::UpdateInOrder => {}
        }
        let may_read_ahead = self.overlap.ahead && self.overlap.read;
        self.is_reading_ahead = may_read_ahead && kind.is_update();
        self.due = self.chunks.len();
        (self.cursor, self.ahead, self.pinned_cursor) = (0, self.pinned, 0);
        self.order_cursor = 0;
        let is_in_order = self.is_in_order();
        for (index, chunk) in self.chunks.iter_mut().enumerate() {
            chunk.is_due = true;
            if chunk.state == ChunkState::Resident && index >= self.pinned && !is_in_order {
                self.to_lend.push_back(index);
            }
        }
        if self.has_failed {
            self.stop();
        }
    }

    /// What to do next. Reads run as far ahead as there are buffers: a buffer is free as soon as
    /// its own write is done, and the next read starts at once, whatever else is in flight.
    #[allow(clippy::should_implement_trait, reason = "it is no iterator: it never ends")]
    pub fn next(&mut self) -> Action {
        if !self.has_failed {
            if let Some(index) = self.to_write.pop_front() {
                self.change(index, ChunkState::Resident, ChunkState::SwappingOut);
                return Action::SwapOut(ChunkIndex::from_index(index));
            }
            if let Some(index) = self.next_to_lend() {
                self.change(index, ChunkState::Resident, ChunkState::Lent);
                return Action::Lend(ChunkIndex::from_index(index));
            }
            if let Some(index) = self.next_to_start() {
                return self.start(index);
            }
            if let Some(index) = self.next_to_drop() {
                self.change(index, ChunkState::Resident, ChunkState::OnDrive);
                self.free(index);
                self.cursor = self.cursor.min(index);
                return Action::Drop(ChunkIndex::from_index(index));
            }
        }
        if !self.has_ended() {
            return Action::Wait;
        }
        self.sweep = None;
        Action::Finish
    }

    fn next_to_lend(&mut self) -> Option<usize> {
        if self.is_in_order() {
            return self.next_in_order();
        }
        if let Some(at) = self.to_lend.iter().position(|index| self.may_lend(*index)) {
            return self.to_lend.remove(at);
        }
        while self.pinned_cursor < self.pinned && self.lent < LENT_ENOUGH {
            let (index, chunk) = (self.pinned_cursor, self.chunks[self.pinned_cursor]);
            if !self.may_lend(index) {
                return None;
            }
            self.pinned_cursor += 1;
            if chunk.is_due && chunk.state == ChunkState::Resident {
                return Some(index);
            }
        }
        None
    }

    /// The next chunk to take a free buffer: of this sweep, then of the next one.
    fn next_to_start(&mut self) -> Option<usize> {
        if self.free_buffers == 0 {
            return None;
        }
        // Due chunks that are in memory, or are being read, need no buffer.
        let is_next = |it: &Chunk| it.is_due && it.state == ChunkState::OnDrive;
        let found = self.chunks[self.cursor..].iter().position(is_next);
        self.cursor = found.map_or(self.chunks.len(), |more| self.cursor + more);
        if found.is_some() {
            return self.may_read(self.cursor).then_some(self.cursor);
        }
        let is_there =
            |it: &Chunk| !matches!(it.state, ChunkState::SwappingIn | ChunkState::Resident);
        let found = self.chunks[self.ahead..].iter().position(is_there);
        self.ahead = found.map_or(self.chunks.len(), |more| self.ahead + more);
        let chunk = self.chunks.get(self.ahead).filter(|_| self.is_reading_ahead)?;
        // A chunk that this sweep has not finished with cannot be read ahead yet.
        (chunk.state == ChunkState::OnDrive).then_some(self.ahead)
    }

    fn start(&mut self, index: usize) -> Action {
        self.free_buffers -= 1;
        let (is_due, chunk) = (self.chunks[index].is_due, ChunkIndex::from_index(index));
        let kind = self.kind().filter(|_| is_due);
        if kind == Some(SweepKind::Fill) {
            self.chunks[index].is_whole = true;
            self.change(index, ChunkState::OnDrive, ChunkState::Lent);
            return Action::LendZeroed(chunk);
        }
        let is_whole = self.reads_whole || kind == Some(SweepKind::Inspect);
        self.chunks[index].is_whole = is_whole;
        self.change(index, ChunkState::OnDrive, ChunkState::SwappingIn);
        Action::SwapIn { chunk, is_whole }
    }

    fn has_ended(&self) -> bool {
        let Some((kind, ending)) = self.sweep else { return false };
        let (reads, writes) = (self.swapping_in > 0, self.swapping_out > 0);
        self.due == 0
            && self.lent == 0
            && match kind {
                _ if self.has_failed => !reads && !writes,
                SweepKind::Settle => !reads && !writes,
                SweepKind::Flush => !writes,
                SweepKind::Update
                | SweepKind::UpdateInOrder
                | SweepKind::Inspect
                | SweepKind::Fill => {
                    (ending == Ending::Behind || !writes) && (self.is_reading_ahead || !reads)
                }
            }
    }

    /// The sweep under way.
    pub fn kind(&self) -> Option<SweepKind> {
        self.sweep.map(|(kind, _)| kind)
    }

    /// Whether something is being written.
    pub fn is_writing(&self) -> bool {
        self.swapping_out > 0
    }

    /// Whether the swapper keeps a buffer for this chunk.
    pub fn is_resident(&self, chunk: ChunkIndex) -> bool {
        self.chunks[chunk.index()].state == ChunkState::Resident
    }

    /// Hands over no more chunks of this sweep; operations in flight end as usual. Chunks that have
    /// been read stay for the next update, if reading ahead is allowed.
    pub fn stop(&mut self) {
        if self.sweep.is_none() {
            return;
        }
        (self.due, self.cursor, self.is_stopping) = (0, self.chunks.len(), true);
        self.chunks.iter_mut().for_each(|chunk| chunk.is_due = false);
        self.to_lend.clear();
        (self.pinned_cursor, self.order_cursor) = (self.pinned, self.chunks.len());
        if matches!(self.sweep, Some((_, Ending::Flushed))) {
            self.write_what_is_dirty();
        }
        if !self.is_reading_ahead {
            let pinned = self.pinned;
            self.drop_residents(|index, chunk| index >= pinned && !chunk.is_dirty);
        }
    }

    /// Enters that an operation has failed: nothing is started until the sweep under way, or the
    /// next one, has ended with that failure.
    pub fn fail(&mut self) {
        self.stop();
        self.to_write.clear();
        (self.has_failed, self.is_reading_ahead) = (true, false);
    }

    /// Ends the state after [`Self::fail`]: the failure has been reported.
    pub fn clear_failure(&mut self) {
        self.has_failed = false;
    }

    /// Forgets all chunks in memory. Nothing may be in flight.
    pub fn forget(&mut self) {
        assert_eq!(self.lent + self.swapping_in + self.swapping_out, 0, "settled before");
        self.is_reading_ahead = false;
        self.drop_residents(|_, _| true);
    }

    /// Enters that the caller has given a chunk back.
    pub fn give_back(&mut self, chunk: ChunkIndex, has_changed: bool) -> Fate {
        let index = chunk.index();
        let kind = self.kind();
        let entry = &mut self.chunks[index];
        entry.is_dirty |= has_changed;
        entry.is_whole |= has_changed;
        let is_flushed = matches!(self.sweep, Some((_, Ending::Flushed)));
        let must_write = entry.is_dirty && (index >= self.pinned || is_flushed);
        // A chunk of a fill that was given back unchanged has no contents.
        let is_empty = kind == Some(SweepKind::Fill) && !has_changed;
        // A chunk that was read for an update that is not made serves the next one.
        let is_read_ahead = self.is_stopping && self.is_reading_ahead;
        let fate = if self.has_failed || is_empty {
            Fate::Free
        } else if must_write {
            Fate::Write
        } else if index < self.pinned || is_read_ahead {
            Fate::Keep
        } else {
            Fate::Free
        };
        self.end(index, ChunkState::Lent, fate)
    }

    /// Enters that a swap-in has ended. If it has failed, [`Self::fail`] is called before.
    pub fn end_swap_in(&mut self, chunk: ChunkIndex) -> Fate {
        let is_due = self.chunks[chunk.index()].is_due;
        let fate = self.keep_if(chunk.index(), is_due, self.is_reading_ahead);
        self.end(chunk.index(), ChunkState::SwappingIn, fate)
    }

    /// Enters that a swap-out has ended. If it has failed, [`Self::fail`] is called before.
    pub fn end_swap_out(&mut self, chunk: ChunkIndex) -> Fate {
        let index = chunk.index();
        self.chunks[index].is_dirty = false;
        // A chunk that the sweep wanted to read while it was being written is handed over from
        // memory.
        let is_wanted = self.chunks[index].is_due && index < self.cursor;
        let fate = self.keep_if(index, is_wanted, false);
        self.end(index, ChunkState::SwappingOut, fate)
    }

    fn keep_if(&mut self, index: usize, is_wanted: bool, is_ahead: bool) -> Fate {
        if is_wanted && !self.is_in_order() {
            self.to_lend.push_back(index);
        }
        let is_kept = is_wanted || is_ahead || index < self.pinned;
        if is_kept && !self.has_failed { Fate::Keep } else { Fate::Free }
    }

    fn end(&mut self, index: usize, state: ChunkState, fate: Fate) -> Fate {
        let next = match fate {
            Fate::Keep => ChunkState::Resident,
            Fate::Write => ChunkState::SwappingOut,
            Fate::Free => ChunkState::OnDrive,
        };
        self.change(index, state, next);
        if fate == Fate::Free {
            self.free(index);
        }
        fate
    }

    fn write_what_is_dirty(&mut self) {
        let is_written = |it: &Chunk| it.state == ChunkState::Resident && it.is_dirty && !it.is_due;
        let found = self.chunks.iter().enumerate().filter(|(_, chunk)| is_written(chunk));
        self.to_write = found.map(|(index, _)| index).collect();
    }

    fn drop_residents(&mut self, is_dropped: impl Fn(usize, &Chunk) -> bool) {
        for index in 0..self.chunks.len() {
            let chunk = &self.chunks[index];
            if chunk.state == ChunkState::Resident && is_dropped(index, chunk) {
                self.change(index, ChunkState::Resident, ChunkState::OnDrive);
                self.free(index);
            }
        }
    }

    fn free(&mut self, index: usize) {
        self.chunks[index].is_dirty = false;
        self.free_buffers += 1;
    }

    /// Changes the state of a chunk, which must be in the state `from`: so a chunk is never part of
    /// two operations.
    fn change(&mut self, index: usize, from: ChunkState, to: ChunkState) {
        let chunk = &mut self.chunks[index];
        assert_eq!(chunk.state, from, "chunk {index} cannot become {to:?}");
        chunk.state = to;
        if to == ChunkState::Lent && std::mem::take(&mut chunk.is_due) {
            self.due -= 1;
        }
        for (state, change) in [(from, -1), (to, 1)] {
            let count = match state {
                ChunkState::SwappingIn => &mut self.swapping_in,
                ChunkState::Lent => &mut self.lent,
                ChunkState::SwappingOut => &mut self.swapping_out,
                ChunkState::OnDrive | ChunkState::Resident => continue,
            };
            *count = count.wrapping_add_signed(change);
        }
    }
}

#[cfg(test)]
mod tests;
