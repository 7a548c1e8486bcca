//! Where the time goes: the timer names, and a recorder of fixed size. Names that DeepSpeed has
//! keep their meaning (`deepspeed/runtime/swap_tensor`), so that tables can be laid side by side.

mod latency;
mod patience;
mod spans;

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub use latency::Latency;
pub use patience::{CLOSING, Patience, join_within};
pub use spans::{NO_CHUNK, Span, SpanKind, Tracer};

macro_rules! timers {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// What is timed. Times of one rank; see each name for whose time it is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Timer {
            $($(#[$doc])* $variant,)*
        }

        impl Timer {
            /// All timers, in the order of tables.
            pub const ALL: &'static [Timer] = &[$(Timer::$variant,)*];

            /// The name in tables and files.
            pub fn name(self) -> &'static str {
                match self {
                    $(Timer::$variant => $name,)*
                }
            }
        }
    };
}

timers! {
    /// The whole of `step()`, from its call to its return.
    Step = "step",
    /// `step()` without waiting for other ranks: it is long for a slow rank and short for those
    /// that wait for it. Time in which a rank was stopped while it waited counts here.
    StepOwn = "step_own",
    /// From the return of `step()` to its next call: the caller's own work, without waiting for
    /// other ranks in collectives.
    BetweenSteps = "between_steps",
    /// `step()` looking through the caller's gradients for norm and overflow.
    SwapOutGradient = "swap_out_gradient",
    /// `step()` waiting until spilled gradients are on the drives.
    AsyncSwapGradientWait = "async_swap_gradient_wait",
    /// Copying, adding up and spilling gradients that are handed over before a step, and waiting in
    /// a flush. This is a part of the time between steps.
    HandOverGradient = "hand_over_gradient",
    /// The one all-reduce for norm, overflow and status, waiting for slower ranks included.
    GradientNorm = "gradient_norm",
    /// `step()` waiting for a chunk to be swapped in: reads that nothing hid.
    SwapInState = "swap_in_state",
    /// Comparing swapped-in chunks with their checksums, before the update.
    VerifyChecksums = "verify_checksums",
    /// The update kernel: unscale, clip, AdamW, parameter output.
    OptimizerStep = "optimizer_step",
    /// Taking the checksums of updated chunks.
    TakeChecksums = "take_checksums",
    /// `step()` waiting for the last chunks to be swapped out: writes that nothing hid.
    SwapOutState = "swap_out_state",
    /// Writing the record of a commit; with `durability.sync`, flushing drives first.
    Commit = "commit",
    /// The agreement on errors at the end of a step, waiting for slower ranks included.
    Agreement = "agreement",
    /// Waiting for other ranks between steps, in collectives of this communicator.
    CollectivesBetween = "collectives_between",
    /// Time in a collective in which the rank did not run, because it was stopped or had no
    /// processor, so that the others waited for it.
    NotRunning = "not_running",
    /// Time during which at least one swap-in was in flight (the I/O thread's view).
    AsyncSwapInState = "async_swap_in_state",
    /// Time during which at least one swap-out was in flight (the I/O thread's view).
    AsyncSwapOutState = "async_swap_out_state",
}

/// A coarse division of a step's time. Every timer of `step()` that does not overlap with others
/// belongs to one section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Section {
    /// Waiting for swap-ins.
    Read,
    /// Waiting for swap-outs.
    Write,
    /// The update.
    Compute,
    /// Looking through the gradients, and bringing them where they are needed.
    Gradient,
    /// Checksums, compared and taken.
    Checksum,
    /// Records of commits.
    Commit,
    /// Waiting for other ranks.
    Collective,
}

impl Section {
    /// All sections, in the order of pictures.
    pub const ALL: [Section; 7] = [
        Section::Read,
        Section::Write,
        Section::Compute,
        Section::Gradient,
        Section::Checksum,
        Section::Commit,
        Section::Collective,
    ];

    /// The name in tables and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read wait",
            Self::Write => "write wait",
            Self::Compute => "update",
            Self::Gradient => "gradients",
            Self::Checksum => "checksums",
            Self::Commit => "commit",
            Self::Collective => "other ranks",
        }
    }
}

impl Timer {
    /// The section that this timer belongs to; `None` for totals, and for work that overlaps with
    /// other work.
    pub fn section(self) -> Option<Section> {
        Some(match self {
            Self::SwapInState => Section::Read,
            Self::SwapOutState => Section::Write,
            Self::OptimizerStep => Section::Compute,
            Self::SwapOutGradient | Self::AsyncSwapGradientWait => Section::Gradient,
            Self::VerifyChecksums | Self::TakeChecksums => Section::Checksum,
            Self::Commit => Section::Commit,
            Self::GradientNorm | Self::Agreement => Section::Collective,
            _ => return None,
        })
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// What is counted beside the operations on drives.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Counter {
            $($(#[$doc])* $variant,)*
        }

        impl Counter {
            /// All counters, in the order of tables.
            pub const ALL: &'static [Counter] = &[$(Counter::$variant,)*];

            /// The name in tables and files.
            pub fn name(self) -> &'static str {
                match self {
                    $(Counter::$variant => $name,)*
                }
            }
        }
    };
}

counters! {
    /// Chunks that were updated.
    Chunks = "chunks",
    /// Bytes of state that were still in memory.
    CacheHitBytes = "cache_hit_bytes",
    /// Bytes of gradients that were written to drives for want of memory.
    SpilledGradientBytes = "spilled_gradient_bytes",
}

/// The total of one timer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Total {
    /// Nanoseconds, summed.
    pub total_ns: u64,
    /// How many times it was recorded.
    pub count: u64,
}

/// A recorder of fixed size: one total per timer and counter, no allocation per event.
#[derive(Clone, Debug, Default)]
pub struct Timers {
    totals: [Total; Timer::ALL.len()],
    counts: [u64; Counter::ALL.len()],
    /// Where spans go, in steps that are traced.
    tracer: Option<Arc<Tracer>>,
    /// The chunk that the next spans are about.
    chunk: u32,
}

impl Timers {
    /// A recorder whose times are spans as well, while the tracer is on.
    pub fn traced(tracer: Arc<Tracer>) -> Self {
        Self { tracer: Some(tracer), chunk: NO_CHUNK, ..Self::default() }
    }

    /// Adds one measured duration, which ends now.
    pub fn record(&mut self, timer: Timer, duration: Duration) {
        let total = &mut self.totals[timer as usize];
        total.total_ns += u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        total.count += 1;
        if let Some(tracer) = &self.tracer
            && tracer.is_on()
            && (timer.section().is_some() || timer == Timer::Step)
        {
            let end = Instant::now();
            let kind = SpanKind::Timer(timer as u8);
            tracer.record(kind, self.chunk, 0, (end - duration, end));
        }
    }

    /// Sets the chunk that the next spans are about; [`NO_CHUNK`] for none.
    pub fn turn_to(&mut self, chunk: u32) {
        self.chunk = chunk;
    }

    /// Adds to a counter.
    pub fn count(&mut self, counter: Counter, more: u64) {
        self.counts[counter as usize] += more;
    }

    /// The value of a counter.
    pub fn counted(&self, counter: Counter) -> u64 {
        self.counts[counter as usize]
    }

    /// Runs `work` and records how long it took.
    pub fn time<T>(&mut self, timer: Timer, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        self.record(timer, start.elapsed());
        result
    }

    /// The total of one timer.
    pub fn total(&self, timer: Timer) -> Total {
        self.totals[timer as usize]
    }

    /// The sum of all timers of a section, in nanoseconds.
    pub fn section_ns(&self, section: Section) -> u64 {
        let timers = Timer::ALL.iter().filter(|timer| timer.section() == Some(section));
        timers.map(|timer| self.total(*timer).total_ns).sum()
    }

    /// Takes over what another recorder has, which begins anew.
    pub fn absorb(&mut self, other: &mut Self) {
        for (total, more) in self.totals.iter_mut().zip(&other.totals) {
            total.total_ns += more.total_ns;
            total.count += more.count;
        }
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        other.reset();
    }

    /// Forgets everything, so that warm-up can be left out.
    pub fn reset(&mut self) {
        *self = Self { tracer: self.tracer.take(), chunk: self.chunk, ..Self::default() };
    }
}

/// Measures for how long at least one of any number of overlapping operations was in flight.
#[derive(Clone, Debug, Default)]
pub struct BusyClock {
    under_way: u32,
    since: Option<Instant>,
    busy: Duration,
}

impl BusyClock {
    /// One more operation has begun.
    pub fn begin(&mut self, now: Instant) {
        if self.under_way == 0 {
            self.since = Some(now);
        }
        self.under_way += 1;
    }

    /// How many operations are in flight.
    pub fn under_way(&self) -> u32 {
        self.under_way
    }

    /// An operation has ended.
    pub fn end(&mut self, now: Instant) {
        self.under_way -= 1;
        if self.under_way == 0
            && let Some(since) = self.since.take()
        {
            self.busy += now - since;
        }
    }

    /// Returns the busy time since the last call, without that of operations still in flight.
    pub fn take(&mut self) -> Duration {
        std::mem::take(&mut self.busy)
    }

    /// Returns the busy time since the last call, up to now.
    pub fn take_at(&mut self, now: Instant) -> Duration {
        if let Some(since) = self.since.replace(now).filter(|_| self.under_way > 0) {
            self.busy += now - since;
        }
        if self.under_way == 0 {
            self.since = None;
        }
        self.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_in_step_with_the_enum() {
        let mut names: Vec<_> = Timer::ALL.iter().map(|timer| timer.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Timer::ALL.len());
        assert!(Timer::ALL.iter().enumerate().all(|(index, timer)| *timer as usize == index));
    }

    #[test]
    fn overlapping_work_counts_once() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut clock = BusyClock::default();
        clock.begin(at(0));
        clock.begin(at(5));
        clock.end(at(10));
        clock.end(at(20));
        clock.begin(at(30));
        clock.end(at(31));
        assert_eq!(clock.take(), Duration::from_millis(21));
        assert_eq!(clock.take(), Duration::ZERO);
    }
}
