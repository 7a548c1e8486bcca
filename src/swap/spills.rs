//! The I/O thread's end of spilled gradients. They have buffers and places of their own and no part
//! in the states of chunks. When an update reads a chunk whose gradient was spilled, the gradient
//! is read beside it, and whichever of the two arrives first waits for the other.
//!
//! A buffer for gradients is held by the caller, by an operation, by a gradient that waits for its
//! chunk, or by a chunk that is lent to the caller. A gradient is only read when its chunk is in
//! memory or has a buffer of its own, so no gradient waits for another one. Where chunks are handed
//! over in order, a chunk in memory waits for those before it. So gradients are read in that order
//! too: the gradients that have arrived belong to the chunks that are handed over next.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::messages::{Loan, SpillAnswer, SpillCommand, SpillSender};
use super::pipeline::SweepKind;
use super::thread::{Kept, Worker};
use crate::error::Error;
use crate::io::{Buffer, Direction, Finished, Part, Transfer};
use crate::storage::Placement;
use crate::units::{ChunkIndex, ExtentIndex};

/// The bit of a transfer's token that marks gradients. The bits above it are the turn, those below
/// it the chunk.
const OF_GRADIENT: u64 = 1 << 32;

/// Where the gradient of a chunk is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    /// Nowhere on the drives.
    #[default]
    Nowhere,
    Writing,
    OnDrive,
    /// On the drives, and the sweep under way is to read it.
    Wanted,
}

/// What the caller waits for.
enum Asked {
    Any,
    Chunk(ChunkIndex),
    Settled,
}

pub(super) struct Spills {
    answers: SpillSender,
    free: Vec<Buffer>,
    placement: Option<Arc<Placement>>,
    places: Vec<Place>,
    writing: usize,
    asked: Option<Asked>,
    failure: Option<Error>,
    /// Counts sweeps and discards. Reads that were begun in an earlier turn are not used.
    turn: u32,
    /// The gradients to read, as soon as there is a buffer.
    queue: VecDeque<ChunkIndex>,
    /// Gradients that wait for their chunks.
    arrived: BTreeMap<ChunkIndex, Buffer>,
    /// Chunks that wait for their gradients.
    held: BTreeMap<ChunkIndex, Kept>,
    /// In a sweep in order: chunks that are held, and the first one whose gradient may be the next
    /// to be read.
    line: VecDeque<ChunkIndex>,
    next: usize,
}

impl Spills {
    pub fn new(
        chunks: usize,
        free: Vec<Buffer>,
        placement: Option<Arc<Placement>>,
        answers: SpillSender,
    ) -> Self {
        Self {
            answers,
            free,
            placement,
            places: vec![Place::default(); chunks],
            writing: 0,
            asked: None,
            failure: None,
            turn: 0,
            queue: VecDeque::new(),
            arrived: BTreeMap::new(),
            held: BTreeMap::new(),
            line: VecDeque::new(),
            next: 0,
        }
    }

    /// Whether a transfer is one of a gradient.
    pub fn is_theirs(token: u64) -> bool {
        token & OF_GRADIENT != 0
    }

    fn token(&self, chunk: ChunkIndex) -> u64 {
        u64::from(self.turn) << 33 | OF_GRADIENT | u64::from(chunk.0)
    }

    fn is_of_this_turn(&self, token: u64) -> bool {
        token >> 33 == u64::from(self.turn)
    }

    fn answer(&self, answer: SpillAnswer) {
        // If the caller is gone, nobody waits for this answer.
        let _ = self.answers.send(answer);
    }

    /// Begins a turn, because a sweep begins or its chunks are no longer wanted. Gradients that
    /// were read in an earlier turn are dropped.
    fn begin_turn(&mut self) {
        self.turn = self.turn.wrapping_add(1) & (u32::MAX >> 1);
        self.queue.clear();
        self.line.clear();
        self.next = 0;
        self.free.extend(std::mem::take(&mut self.arrived).into_values());
        for place in &mut self.places {
            if *place == Place::Wanted {
                *place = Place::OnDrive;
            }
        }
    }

    fn want(&mut self, chunk: ChunkIndex, is_in_order: bool) {
        self.places[chunk.index()] = Place::Wanted;
        // Chunks are not always wanted in ascending order.
        let at = if is_in_order {
            self.queue.partition_point(|other| *other < chunk)
        } else {
            self.queue.len()
        };
        self.queue.insert(at, chunk);
    }

    /// The next gradient to read, if one may be read now.
    fn next_to_read(&mut self, is_in_order: bool) -> Option<ChunkIndex> {
        let first = self.queue.front().copied()?;
        if is_in_order {
            let is_nowhere = |place: &&Place| **place == Place::Nowhere;
            self.next += self.places[self.next..].iter().take_while(is_nowhere).count();
            if first.index() != self.next {
                return None;
            }
            self.next += 1;
        }
        self.queue.pop_front()
    }

    fn is_on_drive(&self, chunk: ChunkIndex) -> bool {
        self.places[chunk.index()] == Place::OnDrive
    }

    /// Whether a chunk can be handed over: its gradient has arrived, or there is none.
    fn is_complete(&self, chunk: ChunkIndex) -> bool {
        self.arrived.contains_key(&chunk) || self.places[chunk.index()] != Place::Wanted
    }
}

impl Worker {
    pub(super) fn carry_out_spill(&mut self, command: SpillCommand) {
        let spills = &mut self.spills;
        match command {
            SpillCommand::Take => spills.asked = Some(Asked::Any),
            SpillCommand::Read(chunk) => spills.asked = Some(Asked::Chunk(chunk)),
            SpillCommand::Settle => spills.asked = Some(Asked::Settled),
            SpillCommand::Return(buffer) => spills.free.push(buffer),
            SpillCommand::Discard => {
                spills.begin_turn();
                spills.places.fill(Place::Nowhere);
            }
            SpillCommand::Write { chunk, buffer } => {
                spills.places[chunk.index()] = Place::Writing;
                spills.writing += 1;
                self.swap_out_busy.begin(Instant::now());
                self.start_spill(Direction::SwapOut, chunk, buffer);
            }
        }
    }

    /// A sweep begins.
    pub(super) fn begin_spills(&mut self) {
        self.spills.begin_turn();
        if !self.pipeline.is_in_order() {
            return;
        }
        for chunk in (0..self.spills.places.len()).map(ChunkIndex::from_index) {
            if self.spills.is_on_drive(chunk) && self.pipeline.is_at_hand(chunk) {
                self.want_gradient(chunk);
            }
        }
    }

    /// Queues the gradient of a chunk that an update reads, if it was spilled.
    pub(super) fn want_gradient(&mut self, chunk: ChunkIndex) {
        let is_update = self.pipeline.kind().is_some_and(SweepKind::is_update);
        if is_update && self.spills.is_on_drive(chunk) {
            self.spills.want(chunk, self.pipeline.is_in_order());
        }
    }

    /// Hands a chunk over with its gradient, or holds it until its gradient has arrived.
    pub(super) fn lend_with_gradient(&mut self, chunk: ChunkIndex, kept: Kept) {
        self.want_gradient(chunk);
        self.spills.held.insert(chunk, kept);
        if self.pipeline.is_in_order() {
            self.spills.line.push_back(chunk);
            self.lend_line();
        } else if self.spills.is_complete(chunk) {
            self.lend_held(chunk);
        }
    }

    /// Hands over the first chunks in line, as far as they are complete.
    fn lend_line(&mut self) {
        while let Some(first) = self.spills.line.front().copied()
            && self.spills.is_complete(first)
        {
            self.spills.line.pop_front();
            self.lend_held(first);
        }
    }

    fn lend_held(&mut self, chunk: ChunkIndex) {
        let gradient = self.spills.arrived.remove(&chunk);
        if let Some(Kept { buffer, is_fresh }) = self.spills.held.remove(&chunk) {
            self.lend(Loan { chunk, buffer, gradient, is_fresh });
        }
    }

    pub(super) fn free_gradient(&mut self, gradient: Option<Buffer>) {
        self.spills.free.extend(gradient);
    }

    /// Gives up the chunks that wait for their gradients.
    pub(super) fn drop_held(&mut self) {
        self.spills.begin_turn();
        for (chunk, kept) in std::mem::take(&mut self.spills.held) {
            let fate = self.pipeline.give_back(chunk, false);
            self.dispose(chunk, kept, fate);
        }
    }

    /// Answers the caller if that is possible, and starts reads for which there are buffers.
    pub(super) fn move_spills_on(&mut self) {
        let spills = &mut self.spills;
        match spills.asked.take() {
            None => {}
            Some(Asked::Any) => match spills.free.pop() {
                Some(buffer) => spills.answer(SpillAnswer::Buffer(Some(buffer))),
                None => spills.asked = Some(Asked::Any),
            },
            Some(Asked::Settled) if spills.writing == 0 => {
                let result = spills.failure.take().map_or(Ok(()), Err);
                spills.answer(SpillAnswer::Settled(result));
            }
            Some(Asked::Chunk(chunk)) => match spills.places[chunk.index()] {
                // Its write has failed.
                Place::Nowhere => spills.answer(SpillAnswer::Buffer(None)),
                Place::OnDrive if !spills.free.is_empty() => {
                    spills.asked = Some(Asked::Chunk(chunk));
                    spills.want(chunk, false);
                }
                _ => spills.asked = Some(Asked::Chunk(chunk)),
            },
            asked => spills.asked = asked,
        }
        let is_in_order = self.pipeline.is_in_order();
        while !self.spills.free.is_empty()
            && let Some(chunk) = self.spills.next_to_read(is_in_order)
            && let Some(buffer) = self.spills.free.pop()
        {
            self.swap_in_busy.begin(Instant::now());
            self.start_spill(Direction::SwapIn, chunk, buffer);
        }
    }

    fn start_spill(&mut self, direction: Direction, chunk: ChunkIndex, buffer: Buffer) {
        let extent = ExtentIndex(chunk.0);
        let segments = self.spills.placement.iter().flat_map(|placement| match direction {
            Direction::SwapIn => placement.segments(extent),
            Direction::SwapOut => placement.begin_write(extent),
        });
        let parts = segments.map(|segment| Part {
            file: segment.drive.0,
            file_offset: segment.file_offset,
            buffer_offset: segment.extent_offset,
            len: segment.len,
        });
        let (token, parts) = (self.spills.token(chunk), parts.collect());
        self.start_transfer(Transfer { token, direction, buffer, parts });
    }

    pub(super) fn settle_spill(&mut self, finished: Finished) {
        let Finished { token, direction, buffer, result } = finished;
        let (now, chunk) = (Instant::now(), ChunkIndex(token as u32));
        let failure = result.err().map(|fault| {
            let what = match direction {
                Direction::SwapIn => "a spilled gradient cannot be read back",
                Direction::SwapOut => "a gradient cannot be spilled",
            };
            self.describe_fault(what, fault).with("holding", (self.describe)(chunk))
        });
        match direction {
            Direction::SwapIn => self.swap_in_busy.end(now),
            Direction::SwapOut => self.swap_out_busy.end(now),
        }
        match direction {
            Direction::SwapOut => self.end_spill_write(chunk, buffer, failure),
            Direction::SwapIn if !self.spills.is_of_this_turn(token) => {
                self.spills.free.push(buffer);
            }
            Direction::SwapIn => self.end_spill_read(chunk, buffer, failure),
        }
    }

    fn end_spill_write(&mut self, chunk: ChunkIndex, buffer: Buffer, failure: Option<Error>) {
        let spills = &mut self.spills;
        spills.writing -= 1;
        if let Some(placement) = &spills.placement {
            placement.end_write(ExtentIndex(chunk.0), failure.is_none());
        }
        let has_failed = failure.is_some();
        spills.places[chunk.index()] = if has_failed { Place::Nowhere } else { Place::OnDrive };
        spills.failure = spills.failure.take().or(failure);
        match spills.asked {
            // The caller has asked for it in the meantime: it gets the buffer.
            Some(Asked::Chunk(asked)) if asked == chunk && !has_failed => {
                (spills.asked, spills.places[chunk.index()]) = (None, Place::Nowhere);
                spills.answer(SpillAnswer::Buffer(Some(buffer)));
            }
            _ => spills.free.push(buffer),
        }
    }

    fn end_spill_read(&mut self, chunk: ChunkIndex, buffer: Buffer, failure: Option<Error>) {
        let spills = &mut self.spills;
        if let Some(Asked::Chunk(asked)) = spills.asked
            && asked == chunk
        {
            (spills.asked, spills.places[chunk.index()]) = (None, Place::Nowhere);
            if let Some(failure) = failure {
                spills.failure.get_or_insert(failure);
                spills.free.push(buffer);
                return spills.answer(SpillAnswer::Buffer(None));
            }
            return spills.answer(SpillAnswer::Buffer(Some(buffer)));
        }
        if let Some(failure) = failure {
            spills.free.push(buffer);
            return self.fail_with(failure);
        }
        spills.arrived.insert(chunk, buffer);
        if self.pipeline.is_in_order() {
            self.lend_line();
        } else if spills.held.contains_key(&chunk) {
            self.lend_held(chunk);
        }
    }
}
