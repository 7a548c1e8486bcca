//! Every order of events of small jobs, walked through.

use std::collections::HashSet;

use super::*;

/// The pipeline with what it cannot see: which version of a chunk is where.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    pipeline: Pipeline,
    /// Sweeps that the caller has begun so far.
    begun: usize,
    is_sweeping: bool,
    /// The newest version of each chunk, that on the drives, and that in its buffer.
    newest: Vec<u8>,
    on_drive: Vec<u8>,
    in_buffer: Vec<Option<u8>>,
    lent: Vec<usize>,
    /// What the sweep under way has handed over.
    seen: Vec<bool>,
}

#[derive(Clone, Copy, Debug)]
enum Happens {
    EndSwapIn(usize),
    EndSwapOut(usize),
    GiveBack(usize),
    Begin,
    Stop,
}

#[derive(Clone)]
struct Case {
    buffers: usize,
    sweeps: Vec<(SweepKind, Ending)>,
    /// The caller may abandon a sweep.
    stops: bool,
    overlap: Overlap,
    /// Chunks of a sub-group.
    sub_group: usize,
}

const ALL: Overlap = Overlap { ahead: true, read: true, write: true };
const NOT_AHEAD: Overlap = Overlap { ahead: false, ..ALL };

impl Case {
    fn new(buffers: usize, sweeps: Vec<(SweepKind, Ending)>, stops: bool) -> Self {
        Self { buffers, sweeps, stops, overlap: ALL, sub_group: 1 }
    }

    fn pipeline(&self, chunks: usize, pinned: usize) -> Pipeline {
        let sub_groups = (0..chunks).map(|chunk| (chunk / self.sub_group) as u32).collect();
        Pipeline::new(sub_groups, self.buffers, pinned, self.overlap, false)
    }
}

impl World {
    fn new(case: &Case, chunks: usize, pinned: usize) -> Self {
        Self {
            pipeline: case.pipeline(chunks, pinned),
            begun: 0,
            is_sweeping: false,
            newest: vec![0; chunks],
            on_drive: vec![0; chunks],
            in_buffer: vec![None; chunks],
            lent: Vec::new(),
            seen: vec![true; chunks],
        }
    }

    fn indices(&self, state: ChunkState) -> impl Iterator<Item = usize> + '_ {
        let states = self.pipeline.chunks.iter().enumerate();
        states.filter(move |(_, chunk)| chunk.state == state).map(|(index, _)| index)
    }

    fn possible(&self, case: &Case) -> Vec<Happens> {
        let reads = self.indices(ChunkState::SwappingIn).map(Happens::EndSwapIn);
        let writes = self.indices(ChunkState::SwappingOut).map(Happens::EndSwapOut);
        let mut possible: Vec<Happens> = reads.chain(writes).collect();
        possible.extend(self.lent.iter().map(|index| Happens::GiveBack(*index)));
        if !self.is_sweeping {
            if let Some((kind, _)) = case.sweeps.get(self.begun) {
                // As `Swapper::sweep`: settled before an inspection or a fill.
                let settles = matches!(kind, SweepKind::Inspect | SweepKind::Fill);
                let is_settled = self.pipeline.swapping_in + self.pipeline.swapping_out == 0;
                if !settles || is_settled {
                    possible.push(Happens::Begin);
                }
            }
        } else if case.stops && !self.pipeline.is_stopping {
            possible.push(Happens::Stop);
        }
        possible
    }

    fn happen(&mut self, case: &Case, what: Happens) {
        match what {
            Happens::EndSwapIn(index) => {
                self.in_buffer[index] = Some(self.on_drive[index]);
                let fate = self.pipeline.end_swap_in(ChunkIndex::from_index(index));
                self.take(index, fate);
            }
            Happens::EndSwapOut(index) => {
                self.on_drive[index] = self.in_buffer[index].unwrap();
                let fate = self.pipeline.end_swap_out(ChunkIndex::from_index(index));
                self.take(index, fate);
            }
            Happens::GiveBack(index) => {
                self.lent.retain(|lent| *lent != index);
                let kind = self.pipeline.kind().unwrap();
                let changes = kind != SweepKind::Inspect && !self.pipeline.is_stopping;
                if changes {
                    self.newest[index] += 1;
                    self.in_buffer[index] = Some(self.newest[index]);
                }
                let fate = self.pipeline.give_back(ChunkIndex::from_index(index), changes);
                self.take(index, fate);
            }
            Happens::Begin => {
                let (kind, ending) = case.sweeps[self.begun];
                self.pipeline.begin(kind, ending);
                if kind == SweepKind::Fill {
                    // What there was counts no more.
                    self.newest.clone_from(&self.on_drive);
                }
                self.begun += 1;
                self.is_sweeping = true;
                self.seen.fill(matches!(kind, SweepKind::Flush | SweepKind::Settle));
                self.forget_dropped();
            }
            Happens::Stop => {
                self.pipeline.stop();
                self.seen.fill(true);
                self.forget_dropped();
            }
        }
        self.act(case);
    }

    fn take(&mut self, index: usize, fate: Fate) {
        if fate == Fate::Free {
            self.in_buffer[index] = None;
        }
    }

    fn forget_dropped(&mut self) {
        for index in 0..self.newest.len() {
            if self.pipeline.chunks[index].state == ChunkState::OnDrive {
                self.in_buffer[index] = None;
            }
        }
    }

    fn act(&mut self, case: &Case) {
        loop {
            match self.pipeline.next() {
                Action::SwapIn { chunk, .. } => {
                    let index = chunk.index();
                    assert_eq!(self.on_drive[index], self.newest[index], "an old version is read");
                    self.check_read(case, index);
                }
                Action::SwapOut(_) => {}
                Action::Lend(chunk) => {
                    let index = chunk.index();
                    assert_eq!(self.in_buffer[index], Some(self.newest[index]), "an old version");
                    self.check_lend(case, index);
                    self.hand_over(index);
                }
                Action::Drop(chunk) => self.in_buffer[chunk.index()] = None,
                Action::LendZeroed(chunk) => self.hand_over(chunk.index()),
                Action::Wait => break,
                Action::Finish => self.end_sweep(case),
            }
            let in_use = self.indices(ChunkState::OnDrive).count();
            let in_use = self.newest.len() - in_use;
            assert_eq!(in_use + self.pipeline.free_buffers, case.buffers, "a buffer is lost");
        }
    }

    /// Without `read`, nothing of a sub-group is read before all earlier ones are done with.
    fn check_read(&self, case: &Case, index: usize) {
        let is_update = self.pipeline.kind().is_some_and(SweepKind::is_update);
        if is_update && !case.overlap.read {
            let first = index / case.sub_group * case.sub_group;
            assert!(self.seen[..first].iter().all(|seen| *seen), "{index} is read too early");
            assert!(self.lent.iter().all(|lent| *lent >= first), "{index} is read too early");
        }
    }

    /// Without `write`, nothing is handed over while another sub-group is updated or written; in
    /// order, chunks come in order.
    fn check_lend(&self, case: &Case, index: usize) {
        let Some(kind) = self.pipeline.kind() else { panic!("nobody has asked") };
        if kind.is_update() && !case.overlap.write {
            let mut others = self.lent.iter().copied().chain(self.indices(ChunkState::SwappingOut));
            let same = |other: usize| other / case.sub_group == index / case.sub_group;
            assert!(others.all(same), "{index} is handed over too early");
        }
        if kind == SweepKind::UpdateInOrder {
            assert!(self.seen[..index].iter().all(|seen| *seen), "{index} is not the next one");
        }
    }

    fn hand_over(&mut self, index: usize) {
        assert!(!std::mem::replace(&mut self.seen[index], true), "handed over twice");
        self.lent.push(index);
        self.lent.sort_unstable();
    }

    fn end_sweep(&mut self, case: &Case) {
        assert!(self.is_sweeping && self.lent.is_empty());
        self.is_sweeping = false;
        assert!(self.seen.iter().all(|seen| *seen), "a chunk was left out");
        let (kind, ending) = case.sweeps[self.begun - 1];
        let must_be_there = |index: usize| match (kind, ending) {
            (SweepKind::Flush, _) | (_, Ending::Flushed) => true,
            (SweepKind::Update | SweepKind::UpdateInOrder | SweepKind::Fill, Ending::Written) => {
                index >= self.pipeline.pinned
            }
            _ => false,
        };
        for index in (0..self.newest.len()).filter(|index| must_be_there(*index)) {
            assert_eq!(self.on_drive[index], self.newest[index], "{kind:?} ended too early");
        }
    }

    /// Nothing is under way and nothing was begun: there must be nothing left to do.
    fn check_end(&self, case: &Case) {
        assert!(!self.is_sweeping, "stuck: {self:?}");
        assert_eq!(self.begun, case.sweeps.len());
        for index in 0..self.newest.len() {
            let version = self.in_buffer[index].unwrap_or(self.on_drive[index]);
            assert_eq!(version, self.newest[index], "a version is lost");
        }
    }
}

/// Walks every order of events; gives the number of different situations.
fn explore(case: &Case, chunks: usize, pinned: usize) -> usize {
    let mut seen = HashSet::new();
    let mut open = vec![World::new(case, chunks, pinned)];
    while let Some(world) = open.pop() {
        let possible = world.possible(case);
        if possible.is_empty() {
            world.check_end(case);
        }
        for what in possible {
            let mut next = world.clone();
            next.happen(case, what);
            if seen.insert(next.clone()) {
                open.push(next);
            }
        }
    }
    seen.len()
}

const CHANGES: [(SweepKind, Ending); 3] = [
    (SweepKind::Update, Ending::Behind),
    (SweepKind::Update, Ending::Written),
    (SweepKind::Update, Ending::Flushed),
];
const OTHERS: [(SweepKind, Ending); 4] = [
    (SweepKind::Inspect, Ending::Written),
    (SweepKind::Flush, Ending::Written),
    (SweepKind::Settle, Ending::Written),
    (SweepKind::Fill, Ending::Written),
];

#[test]
fn every_order_of_events_over_several_sweeps_ends_and_loses_nothing() {
    let mut situations = 0;
    for chunks in 0..=3 {
        for buffers in 1..=3 {
            for pinned in (0..=chunks).filter(|it| *it < buffers || *it == chunks) {
                for (first, second) in
                    CHANGES.into_iter().flat_map(|it| CHANGES.into_iter().map(move |at| (it, at)))
                {
                    for between in OTHERS {
                        for may_read_ahead in [false, true] {
                            for stops in [false, true] {
                                let sweeps = vec![first, between, second];
                                let case = Case::new(buffers.max(pinned), sweeps, stops);
                                let overlap = if may_read_ahead { ALL } else { NOT_AHEAD };
                                let case = Case { overlap, ..case };
                                situations += explore(&case, chunks, pinned);
                            }
                        }
                    }
                }
            }
        }
    }
    assert!(situations > 100_000, "only {situations} situations");
}

#[test]
fn steps_follow_each_other_without_a_pause_and_every_buffer_is_busy() {
    for ending in [Ending::Behind, Ending::Written] {
        let case = Case::new(2, vec![(SweepKind::Update, ending); 3], true);
        for chunks in 0..=4 {
            explore(&case, chunks, 0);
            explore(&case, chunks, usize::from(chunks > 1));
        }
    }
    // The first chunks of the next step are read while the last ones of this step are written.
    let case = Case::new(2, vec![CHANGES[0]; 2], false);
    let mut world = World::new(&case, 3, 0);
    for what in [
        Happens::Begin,
        Happens::EndSwapIn(0),
        Happens::GiveBack(0),
        Happens::EndSwapOut(0),
        Happens::EndSwapIn(1),
        Happens::GiveBack(1),
        Happens::EndSwapIn(2),
        Happens::GiveBack(2),
    ] {
        world.happen(&case, what);
    }
    assert!(!world.is_sweeping, "the writes of two chunks go on");
    world.happen(&case, Happens::EndSwapOut(1));
    assert_eq!(world.indices(ChunkState::SwappingIn).collect::<Vec<_>>(), [0]);
    world.happen(&case, Happens::Begin);
    world.happen(&case, Happens::EndSwapOut(2));
    assert_eq!(world.indices(ChunkState::SwappingIn).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn every_mode_in_order_or_not_ends_and_keeps_its_promise() {
    let mut situations = 0;
    let sweep = |kind, ending| (kind, ending);
    for [read, write, ahead] in (0..8u8).map(|bits| [0, 1, 2].map(|bit| bits >> bit & 1 == 1)) {
        let ending = if write { Ending::Behind } else { Ending::Written };
        let changes = [SweepKind::Update, SweepKind::UpdateInOrder].map(|it| sweep(it, ending));
        let commit = sweep(SweepKind::UpdateInOrder, Ending::Flushed);
        for (first, second) in
            changes.into_iter().flat_map(|it| [changes[0], changes[1], commit].map(|at| (it, at)))
        {
            for (chunks, sub_group) in [(1, 1), (2, 1), (3, 1), (4, 2), (4, 3)] {
                for buffers in 1..=3 {
                    for pinned in [0, 1].into_iter().filter(|it| it < &buffers.min(chunks)) {
                        for stops in [false, true] {
                            let case = Case {
                                overlap: Overlap { ahead, read, write },
                                sub_group,
                                ..Case::new(buffers, vec![first, second], stops)
                            };
                            situations += explore(&case, chunks, pinned);
                        }
                    }
                }
            }
        }
    }
    assert!(situations > 100_000, "only {situations} situations");
}

#[test]
fn later_chunks_in_memory_make_room_for_the_one_that_comes_first() {
    let sweeps = vec![CHANGES[0], (SweepKind::UpdateInOrder, Ending::Behind)];
    let case = Case { overlap: NOT_AHEAD, ..Case::new(2, sweeps, true) };
    let mut world = World::new(&case, 3, 0);
    world.pipeline.chunks[1].state = ChunkState::Resident;
    world.pipeline.chunks[2].state = ChunkState::Resident;
    world.pipeline.free_buffers = 0;
    (world.in_buffer[1], world.in_buffer[2], world.begun) = (Some(0), Some(0), 1);
    world.happen(&case, Happens::Begin);
    assert_eq!(world.indices(ChunkState::SwappingIn).collect::<Vec<_>>(), [0]);
    assert_eq!(world.indices(ChunkState::Resident).collect::<Vec<_>>(), [1]);
    world.happen(&case, Happens::EndSwapIn(0));
    assert_eq!(world.lent, [0, 1]);
}

#[test]
fn what_is_still_being_written_is_served_from_its_buffer() {
    let case = Case::new(4, vec![CHANGES[0]; 2], false);
    let mut world = World::new(&case, 3, 0);
    world.happen(&case, Happens::Begin);
    (0..3).for_each(|chunk| world.happen(&case, Happens::EndSwapIn(chunk)));
    (0..3).for_each(|chunk| world.happen(&case, Happens::GiveBack(chunk)));
    (0..2).for_each(|chunk| world.happen(&case, Happens::EndSwapOut(chunk)));
    world.happen(&case, Happens::Begin);
    world.happen(&case, Happens::EndSwapOut(2));
    assert_eq!(world.lent, [2], "it was not read");
}

#[test]
fn a_failure_stops_everything_and_what_is_in_memory_is_forgotten() {
    let mut pipeline = Case::new(2, Vec::new(), false).pipeline(5, 0);
    pipeline.begin(SweepKind::Update, Ending::Behind);
    let swap_in = |index: u32| Action::SwapIn { chunk: ChunkIndex(index), is_whole: false };
    assert_eq!(
        [pipeline.next(), pipeline.next(), pipeline.next()],
        [swap_in(0), swap_in(1), Action::Wait]
    );
    pipeline.fail();
    assert_eq!(pipeline.end_swap_in(ChunkIndex(0)), Fate::Free);
    assert_eq!(pipeline.next(), Action::Wait);
    assert_eq!(pipeline.end_swap_in(ChunkIndex(1)), Fate::Free);
    assert_eq!(pipeline.next(), Action::Finish);
    pipeline.clear_failure();
    pipeline.forget();
    assert_eq!(pipeline.free_buffers, 2);
    // Between two sweeps, the next one ends with it.
    pipeline.fail();
    assert_eq!(pipeline.next(), Action::Wait);
    pipeline.begin(SweepKind::Update, Ending::Behind);
    assert_eq!(pipeline.next(), Action::Finish);
}

#[test]
#[should_panic(expected = "cannot become")]
fn a_chunk_cannot_be_given_back_twice() {
    let mut pipeline = Case::new(2, Vec::new(), false).pipeline(1, 0);
    pipeline.begin(SweepKind::Fill, Ending::Written);
    assert_eq!(pipeline.next(), Action::LendZeroed(ChunkIndex(0)));
    pipeline.give_back(ChunkIndex(0), true);
    pipeline.give_back(ChunkIndex(0), true);
}
