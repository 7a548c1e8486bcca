//! What to do next, decided purely: the state of every chunk of a sweep and one function,
//! [`Pipeline::next`], that looks at it.

use crate::units::ChunkIndex;

/// What a sweep over all chunks is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SweepKind {
    /// Swap in, let the caller update, swap out: an optimizer step.
    Update,
    /// Swap in and let the caller look: verification, digests, export.
    Inspect,
    /// Let the caller fill zeroed buffers, swap out: initialisation.
    Fill,
}

/// Where a chunk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkState {
    /// On the drives alone.
    OnDrive,
    /// A buffer is being filled from the drives.
    SwappingIn,
    /// In a buffer that the caller has, or will find in its queue.
    Lent,
    /// A buffer is being written to the drives.
    SwappingOut,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start filling a free buffer with this chunk.
    SwapIn(ChunkIndex),
    /// Hand the caller a free buffer for this chunk, zeroed.
    LendZeroed(ChunkIndex),
    /// Nothing until something finishes or the caller gives a chunk back.
    Wait,
    /// The sweep has ended.
    Finish,
}

/// The state of one sweep. Every transition is a method, and each demands the state it leaves.
#[derive(Debug)]
pub struct Pipeline {
    kind: SweepKind,
    states: Vec<ChunkState>,
    /// The next chunk of the schedule (ascending) that has not started.
    next: usize,
    /// Chunks that are not on the drives alone.
    away: usize,
    free_buffers: usize,
    stopping: bool,
}

impl Pipeline {
    /// A sweep over `chunks` chunks through `buffers` buffers.
    pub fn new(kind: SweepKind, chunks: usize, buffers: usize) -> Self {
        Self {
            kind,
            states: vec![ChunkState::OnDrive; chunks],
            next: 0,
            away: 0,
            free_buffers: buffers,
            stopping: false,
        }
    }

    /// What to do next. Look-ahead is as deep as there are buffers: a buffer is free as soon as its
    /// own write is done, and the next read starts at once, whatever else is under way.
    pub fn next(&self) -> Action {
        let has_more = self.next < self.states.len() && !self.stopping;
        let chunk = ChunkIndex(self.next as u32);
        match self.kind {
            _ if !has_more && self.away == 0 => Action::Finish,
            _ if !has_more || self.free_buffers == 0 => Action::Wait,
            SweepKind::Fill => Action::LendZeroed(chunk),
            SweepKind::Update | SweepKind::Inspect => Action::SwapIn(chunk),
        }
    }

    /// No chunk starts any more; those under way come to their end.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// What the sweep is for.
    pub fn kind(&self) -> SweepKind {
        self.kind
    }

    /// A chunk starts: it takes a buffer.
    pub fn begin_swap_in(&mut self, chunk: ChunkIndex) {
        self.change(chunk, ChunkState::OnDrive, ChunkState::SwappingIn);
        self.take_buffer();
    }

    /// A chunk starts without being read: it takes a buffer.
    pub fn lend_zeroed(&mut self, chunk: ChunkIndex) {
        self.change(chunk, ChunkState::OnDrive, ChunkState::Lent);
        self.take_buffer();
    }

    /// A swapped-in chunk goes to the caller.
    pub fn lend(&mut self, chunk: ChunkIndex) {
        self.change(chunk, ChunkState::SwappingIn, ChunkState::Lent);
    }

    /// A swap-in failed: the buffer is free.
    pub fn fail_swap_in(&mut self, chunk: ChunkIndex) {
        self.change(chunk, ChunkState::SwappingIn, ChunkState::OnDrive);
        self.free_buffer();
    }

    /// The caller gave a chunk back to be written.
    pub fn begin_swap_out(&mut self, chunk: ChunkIndex) {
        self.change(chunk, ChunkState::Lent, ChunkState::SwappingOut);
    }

    /// A swap-out has ended: the buffer is free.
    pub fn end_swap_out(&mut self, chunk: ChunkIndex) {
        self.change(chunk, ChunkState::SwappingOut, ChunkState::OnDrive);
        self.free_buffer();
    }

    /// The caller gave a chunk back unchanged: the buffer is free.
    pub fn release(&mut self, chunk: ChunkIndex) {
        self.change(chunk, ChunkState::Lent, ChunkState::OnDrive);
        self.free_buffer();
    }

    fn change(&mut self, chunk: ChunkIndex, from: ChunkState, to: ChunkState) {
        let state = &mut self.states[chunk.index()];
        assert_eq!(*state, from, "{chunk} cannot become {to:?}");
        *state = to;
    }

    fn take_buffer(&mut self) {
        self.free_buffers -= 1;
        self.away += 1;
        self.next += 1;
    }

    fn free_buffer(&mut self) {
        self.free_buffers += 1;
        self.away -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Walks every order of events for small sweeps: each must end with every chunk back on the
    /// drives, and wait only while something is under way.
    fn explore(kind: SweepKind, chunks: usize, buffers: usize) -> usize {
        #[derive(Clone)]
        struct World {
            log: Vec<(usize, ChunkState)>,
        }
        fn replay(kind: SweepKind, chunks: usize, buffers: usize, world: &World) -> Pipeline {
            let mut pipeline = Pipeline::new(kind, chunks, buffers);
            start_all(&mut pipeline);
            for (chunk, state) in &world.log {
                let chunk = ChunkIndex(*chunk as u32);
                match (state, kind) {
                    (ChunkState::SwappingIn, _) => pipeline.lend(chunk),
                    (ChunkState::Lent, SweepKind::Inspect) => pipeline.release(chunk),
                    (ChunkState::Lent, _) => pipeline.begin_swap_out(chunk),
                    (ChunkState::SwappingOut, _) => pipeline.end_swap_out(chunk),
                    (ChunkState::OnDrive, _) => unreachable!(),
                }
                start_all(&mut pipeline);
            }
            pipeline
        }
        fn start_all(pipeline: &mut Pipeline) {
            loop {
                match pipeline.next() {
                    Action::SwapIn(chunk) => pipeline.begin_swap_in(chunk),
                    Action::LendZeroed(chunk) => pipeline.lend_zeroed(chunk),
                    Action::Wait | Action::Finish => return,
                }
            }
        }
        let mut ends = 0;
        let mut open = vec![World { log: Vec::new() }];
        while let Some(world) = open.pop() {
            let pipeline = replay(kind, chunks, buffers, &world);
            let moves = pipeline.states.iter().copied().enumerate();
            let moves = moves.filter(|(_, state)| *state != ChunkState::OnDrive);
            let before = open.len();
            for step in moves {
                let mut log = world.log.clone();
                log.push(step);
                open.push(World { log });
            }
            if open.len() == before {
                assert_eq!(pipeline.next(), Action::Finish);
                assert_eq!((pipeline.next, pipeline.free_buffers), (chunks, buffers));
                ends += 1;
            } else {
                assert_eq!(pipeline.next(), Action::Wait);
                let away = pipeline.states.iter().filter(|s| **s != ChunkState::OnDrive).count();
                let started_all = pipeline.next == chunks;
                assert!(away == buffers || started_all, "a buffer is idle with work to do");
            }
        }
        ends
    }

    #[test]
    fn every_order_of_events_ends_and_keeps_every_buffer_busy() {
        for kind in [SweepKind::Update, SweepKind::Inspect, SweepKind::Fill] {
            for chunks in 0..=3 {
                for buffers in 1..=3 {
                    assert!(explore(kind, chunks, buffers) > 0);
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "cannot become")]
    fn a_chunk_cannot_be_swapped_out_twice() {
        let mut pipeline = Pipeline::new(SweepKind::Fill, 1, 2);
        pipeline.lend_zeroed(ChunkIndex(0));
        pipeline.begin_swap_out(ChunkIndex(0));
        pipeline.begin_swap_out(ChunkIndex(0));
    }

    #[test]
    fn a_stopped_sweep_starts_nothing_and_ends() {
        let mut pipeline = Pipeline::new(SweepKind::Update, 5, 2);
        pipeline.begin_swap_in(ChunkIndex(0));
        pipeline.stop();
        assert_eq!(pipeline.next(), Action::Wait);
        pipeline.fail_swap_in(ChunkIndex(0));
        assert_eq!(pipeline.next(), Action::Finish);
    }
}
