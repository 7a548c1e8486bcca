//! Steps of one rank, simulated chunk by chunk. The swapper's own [`Pipeline`] decides what happens
//! next; drives and processors only take time.

use std::collections::VecDeque;

use super::Bandwidth;
use optswap::internals::swap::{Action, Ending, Fate, Overlap, Pipeline, SweepKind};
use optswap::internals::units::ChunkIndex;

/// Steps before those that count. After them, every step takes as long as the one before.
const STEPS_BEFORE: u64 = 3;
/// Steps that count, in a job without commits.
const STEPS_COUNTED: u64 = 3;
/// The most steps that are simulated from one commit to the next; later ones take as long as the
/// last of them.
const PERIOD_MAX: u64 = 4;
/// Of more buffers than this, several are simulated as one.
const BUFFERS_MAX: u64 = 2048;
/// The same limit where many thousand steps are simulated.
pub(super) const BUFFERS_FEW: u64 = 64;

/// One rank of a node whose ranks are alike, with its part of drives and processors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rank {
    pub chunks: u64,
    pub buffers: u64,
    /// Chunks that stay in memory from one step to the next.
    pub kept: u64,
    /// Bytes read for one chunk.
    pub read_bytes: f64,
    /// Bytes written for one chunk.
    pub written_bytes: f64,
    /// Seconds that the rank's processors need for one chunk.
    pub update_seconds: f64,
    /// What the rank's part of the drives can do.
    pub bandwidth: Bandwidth,
    /// The moment of a step from which chunks may be updated: norm and all-reduce come first.
    pub norm_seconds: f64,
    /// What comes last: the agreement.
    pub agreement_seconds: f64,
    /// Seconds of the caller's own work between two steps.
    pub compute_seconds: f64,
    /// Bytes of one chunk's gradients that are written between two steps; the next one waits for
    /// them.
    pub spilled_bytes: f64,
    pub write_behind: bool,
    pub prefetch: bool,
    pub commit_every: Option<u64>,
}

impl Rank {
    /// Seconds of a step in the long run, from the call until it returns, and of the wait for
    /// gradients before it. The average of steps that commit and steps that do not.
    pub fn step_seconds(&self) -> f64 {
        self.with_buffers(BUFFERS_MAX).of_many_chunks()
    }

    /// The same rank with at most so many buffers, each of them larger: a little less exact, and
    /// faster to simulate.
    pub fn with_buffers(self, most: u64) -> Self {
        let factor = self.buffers as f64 / most as f64;
        if factor <= 1.0 {
            return self;
        }
        let fewer = |count: u64| (count as f64 / factor).round() as u64;
        let chunks = fewer(self.chunks).max(1);
        let factor = self.chunks as f64 / chunks as f64;
        let buffers = most.min(chunks);
        let kept = if self.kept == self.chunks {
            chunks
        } else {
            fewer(self.kept).min(buffers.saturating_sub(2))
        };
        Self {
            chunks,
            buffers,
            kept,
            read_bytes: self.read_bytes * factor,
            written_bytes: self.written_bytes * factor,
            spilled_bytes: self.spilled_bytes * factor,
            update_seconds: self.update_seconds * factor,
            ..self
        }
    }

    /// When buffers have gone round a few times, every further chunk takes as long as the last.
    fn of_many_chunks(&self) -> f64 {
        let enough = 4 * self.buffers + 64;
        if self.chunks <= enough {
            return self.mean_seconds();
        }
        let [some, more] =
            [enough / 2, enough].map(|chunks| Self { chunks, ..*self }.mean_seconds());
        let each = (more - some) / (enough - enough / 2) as f64;
        more + each * (self.chunks - enough) as f64
    }

    fn mean_seconds(&self) -> f64 {
        let mut steps = Steps::new(self);
        let mean = |seconds: &[f64]| seconds.iter().sum::<f64>() / seconds.len().max(1) as f64;
        let mut some = |count: u64, ending: Ending| -> Vec<f64> {
            (0..count).map(|_| steps.step(ending)).collect()
        };
        let plain = if self.write_behind { Ending::Behind } else { Ending::Written };
        let Some(every) = self.commit_every else {
            some(STEPS_BEFORE, plain);
            return mean(&some(STEPS_COUNTED, plain));
        };
        let period = every.min(PERIOD_MAX);
        let mut round = || {
            let mut seconds = some(period - 1, plain);
            seconds.extend(some(1, Ending::Flushed));
            seconds
        };
        round();
        round();
        let seconds = round();
        // Steps that are left out take as long as the step before the commit.
        let plain_seconds = seconds[(period as usize).saturating_sub(2)];
        (seconds.iter().sum::<f64>() + plain_seconds * (every - period) as f64) / every as f64
    }
}

/// The state of the simulation.
struct Steps<'a> {
    rank: &'a Rank,
    pipeline: Pipeline,
    now: f64,
    /// Chunks that are read and written, in order, and what the first of each still lacks, in
    /// bytes.
    reads: VecDeque<ChunkIndex>,
    writes: VecDeque<ChunkIndex>,
    read_left: f64,
    write_left: f64,
    /// Bytes of gradients that are yet to be written, after the chunks.
    spill_left: f64,
    /// Chunks that wait for their update, and the one under way with the moment of its end.
    lent: VecDeque<ChunkIndex>,
    update: Option<(ChunkIndex, f64)>,
    has_ended: bool,
}

impl<'a> Steps<'a> {
    fn new(rank: &'a Rank) -> Self {
        let [chunks, buffers, kept] =
            [rank.chunks, rank.buffers, rank.kept].map(|count| count as usize);
        let overlap = Overlap { ahead: rank.prefetch, read: true, write: true };
        Self {
            rank,
            pipeline: Pipeline::new(vec![0; chunks].into(), buffers, kept, overlap, false),
            now: 0.0,
            reads: VecDeque::new(),
            writes: VecDeque::new(),
            read_left: 0.0,
            write_left: 0.0,
            spill_left: 0.0,
            lent: VecDeque::new(),
            update: None,
            has_ended: true,
        }
    }

    /// One step, and what comes between it and the next one. Gives the seconds of the step, and of
    /// the wait for gradients that follows the pause.
    fn step(&mut self, ending: Ending) -> f64 {
        let start = self.now;
        self.pipeline.begin(SweepKind::Update, ending);
        self.has_ended = false;
        self.follow_pipeline();
        self.wait(self.rank.norm_seconds);
        while !self.has_ended {
            self.begin_update();
            if !self.advance(f64::INFINITY) {
                break;
            }
        }
        self.wait(self.rank.agreement_seconds);
        let seconds = self.now - start;
        self.spill_left = self.rank.spilled_bytes * self.rank.chunks as f64;
        self.wait(self.rank.compute_seconds);
        let pause_ends = self.now;
        while self.spill_left > 0.0 && self.advance(f64::INFINITY) {}
        seconds + (self.now - pause_ends)
    }

    /// The caller does something else for so long, while drives go on.
    fn wait(&mut self, seconds: f64) {
        let until = self.now + seconds;
        while self.now < until && self.advance(until) {}
        self.now = self.now.max(until);
    }

    fn begin_update(&mut self) {
        if self.update.is_none()
            && let Some(chunk) = self.lent.pop_front()
        {
            self.update = Some((chunk, self.now + self.rank.update_seconds));
        }
    }

    /// Does what the pipeline says, until it waits.
    fn follow_pipeline(&mut self) {
        loop {
            match self.pipeline.next() {
                Action::SwapIn { chunk, .. } => self.push_read(chunk),
                Action::SwapOut(chunk) => self.push_write(chunk),
                Action::Lend(chunk) | Action::LendZeroed(chunk) => self.lent.push_back(chunk),
                // Only sweeps in order drop chunks.
                Action::Drop(_) => {}
                Action::Finish => self.has_ended = true,
                Action::Wait => return,
            }
        }
    }

    fn push_read(&mut self, chunk: ChunkIndex) {
        if self.reads.is_empty() {
            self.read_left = self.rank.read_bytes;
        }
        self.reads.push_back(chunk);
    }

    fn push_write(&mut self, chunk: ChunkIndex) {
        if self.writes.is_empty() {
            self.write_left = self.rank.written_bytes;
        }
        self.writes.push_back(chunk);
    }

    /// Bytes per second of reads and writes now. Each goes at its own speed; if the sum is more
    /// than both directions can do together, each gets half of that, or what the other leaves.
    fn speeds(&self) -> [f64; 2] {
        let Bandwidth { read, write, mixed } = self.rank.bandwidth;
        match (!self.reads.is_empty(), self.is_writing()) {
            (true, true) => {
                let read = read.min((mixed / 2.0).max(mixed - write));
                [read, write.min(mixed - read)]
            }
            _ => [read.min(mixed), write.min(mixed)],
        }
    }

    fn is_writing(&self) -> bool {
        !self.writes.is_empty() || self.spill_left > 0.0
    }

    /// Goes to the next moment at which something ends, but not beyond `until`. Gives whether
    /// anything is under way.
    fn advance(&mut self, until: f64) -> bool {
        let [read, write] = self.speeds();
        let in_seconds = |is_under_way: bool, left: f64, speed: f64| {
            if is_under_way { left / speed } else { f64::INFINITY }
        };
        let read_in = in_seconds(!self.reads.is_empty(), self.read_left, read);
        let to_write = if self.writes.is_empty() { self.spill_left } else { self.write_left };
        let write_in = in_seconds(self.is_writing(), to_write, write);
        let update_in = self.update.map_or(f64::INFINITY, |(_, end)| (end - self.now).max(0.0));
        let next = read_in.min(write_in).min(update_in);
        if next.is_infinite() {
            return false;
        }
        let seconds = next.min((until - self.now).max(0.0));
        self.now += seconds;
        self.read_left -= read * seconds;
        if self.writes.is_empty() {
            self.spill_left = (self.spill_left - write * seconds).max(0.0)
        } else {
            self.write_left -= write * seconds
        }
        if read_in <= seconds {
            self.end_read();
        }
        if write_in <= seconds {
            // Rounding may have left some bytes of gradients.
            self.spill_left = if self.writes.is_empty() { 0.0 } else { self.spill_left };
            self.end_write();
        }
        if update_in <= seconds {
            self.end_update();
        }
        self.follow_pipeline();
        true
    }

    fn end_read(&mut self) {
        let Some(chunk) = self.reads.pop_front() else { return };
        self.read_left = self.rank.read_bytes;
        self.pipeline.end_swap_in(chunk);
    }

    fn end_write(&mut self) {
        let Some(chunk) = self.writes.pop_front() else { return };
        self.write_left = self.rank.written_bytes;
        self.pipeline.end_swap_out(chunk);
    }

    fn end_update(&mut self) {
        let Some((chunk, _)) = self.update.take() else { return };
        if self.pipeline.give_back(chunk, true) == Fate::Write {
            self.push_write(chunk);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A hundred chunks of a second's work for the drives, and nothing else to do.
    pub fn rank() -> Rank {
        Rank {
            chunks: 100,
            buffers: 10,
            kept: 0,
            read_bytes: 1e6,
            written_bytes: 1e6,
            update_seconds: 0.0,
            bandwidth: Bandwidth::symmetric(1e8),
            norm_seconds: 0.0,
            agreement_seconds: 0.0,
            compute_seconds: 0.0,
            spilled_bytes: 0.0,
            write_behind: true,
            prefetch: true,
            commit_every: None,
        }
    }

    #[track_caller]
    fn takes(rank: Rank, seconds: f64) {
        let found = rank.step_seconds();
        assert!((found - seconds).abs() < 1e-6, "{found} s");
    }

    #[test]
    fn steps_that_follow_each_other_take_as_long_as_what_binds_them() {
        takes(rank(), 1.0);
        takes(Rank { norm_seconds: 0.05, agreement_seconds: 0.04, ..rank() }, 1.0);
        let slow_write = Bandwidth { write: 5e7, ..Bandwidth::symmetric(1e8) };
        takes(Rank { bandwidth: slow_write, ..rank() }, 2.0);
        takes(Rank { update_seconds: 0.05, norm_seconds: 1.0, ..rank() }, 6.0);
        // One buffer: one after the other.
        takes(Rank { buffers: 1, ..rank() }, 2.0);
        takes(Rank { chunks: 0, ..rank() }, 0.0);
        takes(Rank { chunks: 100_000, ..rank() }, 1000.0);
        let shared = Bandwidth { mixed: 1e8, ..Bandwidth::symmetric(1e8) };
        takes(Rank { bandwidth: shared, ..rank() }, 2.0);
    }

    #[test]
    fn what_the_pipeline_may_not_do_costs_filling_and_draining() {
        // The first chunk's reading, and the last one's writing.
        let neither = Rank { write_behind: false, prefetch: false, ..rank() };
        takes(neither, 1.01);
        takes(Rank { update_seconds: 0.05, ..neither }, 0.01 + 5.0 + 0.01);
        // With chunks read ahead, there is something to write from the beginning.
        takes(Rank { write_behind: false, ..rank() }, 1.0);
        // A commit waits for its last chunk; what follows is read meanwhile.
        let commits = |every| Rank { commit_every: Some(every), ..rank() };
        assert!((0.999..1.02).contains(&commits(1).step_seconds()));
        assert!(commits(100).step_seconds() < 1.0 + 1e-3);
    }

    #[test]
    fn what_is_done_between_steps_takes_no_time_of_a_step() {
        // Ten chunks are read ahead, and as many written behind.
        let resting = Rank { compute_seconds: 1.0, ..rank() };
        let found = resting.step_seconds();
        assert!((0.89..0.92).contains(&found), "{found}");
        takes(Rank { buffers: 100, compute_seconds: 2.0, ..resting }, 0.0);
    }

    #[test]
    fn gradients_are_written_between_steps_and_the_next_one_waits_for_them() {
        // Half a second more to write.
        let spilling = Rank { spilled_bytes: 5e5, ..rank() };
        takes(spilling, 1.5);
        // Reads go on meanwhile, as far as there are buffers.
        let slow_read = Bandwidth { read: 5e7, ..Bandwidth::symmetric(1e8) };
        let found = Rank { bandwidth: slow_read, ..spilling }.step_seconds();
        assert!((2.25..2.35).contains(&found), "{found}");
        takes(Rank { bandwidth: slow_read, buffers: 50, ..spilling }, 2.0);
        let hidden = Rank { compute_seconds: 1.0, ..spilling }.step_seconds();
        assert!((0.89..0.92).contains(&hidden), "{hidden}");
        let many = Rank { chunks: 100_000, ..spilling }.step_seconds();
        assert!((1490.0..1510.0).contains(&many), "{many}");
    }

    #[test]
    fn chunks_that_stay_in_memory_are_not_moved() {
        takes(Rank { kept: 5, ..rank() }, 0.95);
        takes(Rank { kept: 100, buffers: 100, ..rank() }, 0.0);
        // A commit writes them.
        let durable = Rank { kept: 5, commit_every: Some(1), ..rank() };
        let found = durable.step_seconds();
        assert!((0.999..1.02).contains(&found), "{found}");
    }

    #[test]
    fn coarser_steps_take_as_long() {
        let fine = Rank { chunks: 1600, buffers: 640, kept: 100, compute_seconds: 3.0, ..rank() };
        let coarse = fine.with_buffers(BUFFERS_FEW);
        assert_eq!((coarse.chunks, coarse.buffers, coarse.kept), (160, 64, 10));
        let (fine, coarse) = (fine.step_seconds(), coarse.step_seconds());
        assert!((coarse / fine - 1.0).abs() < 0.01, "{fine} {coarse}");
    }
}
