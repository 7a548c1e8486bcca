//! Where the time goes: the timer names, and a recorder of fixed size. Names that DeepSpeed has
//! keep their meaning (`deepspeed/runtime/swap_tensor`), so that tables can be laid side by side.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

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
    /// `step()` from its call to this rank's own last completion, before the agreement: what tells
    /// a slow rank from those that wait for it. Where writes go on behind a step, to the last
    /// update; what a rank's drives are slower in, the next step waits for.
    StepOwn = "step_own",
    /// `step()` looking through the caller's gradients for norm and overflow.
    SwapOutGradient = "swap_out_gradient",
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
    /// Time during which at least one swap-in was in flight (the I/O thread's view).
    AsyncSwapInState = "async_swap_in_state",
    /// Time during which at least one swap-out was in flight (the I/O thread's view).
    AsyncSwapOutState = "async_swap_out_state",
}

/// The total of one timer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Total {
    /// Nanoseconds, summed.
    pub total_ns: u64,
    /// How often it was recorded.
    pub count: u64,
}

/// A recorder of fixed size: one total per timer, no allocation per event.
#[derive(Clone, Debug, Default)]
pub struct Timers {
    totals: [Total; Timer::ALL.len()],
}

impl Timers {
    /// Adds one measured duration.
    pub fn record(&mut self, timer: Timer, duration: Duration) {
        let total = &mut self.totals[timer as usize];
        total.total_ns += u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        total.count += 1;
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

    /// Forgets everything, so that warm-up can be left out.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

/// Counts how long something was under way, with any number of overlapping beginnings and ends.
#[derive(Debug, Default)]
pub struct BusyClock {
    under_way: u32,
    since: Option<Instant>,
    busy: Duration,
}

impl BusyClock {
    /// One more is under way.
    pub fn begin(&mut self, now: Instant) {
        if self.under_way == 0 {
            self.since = Some(now);
        }
        self.under_way += 1;
    }

    /// One has ended.
    pub fn end(&mut self, now: Instant) {
        self.under_way -= 1;
        if self.under_way == 0
            && let Some(since) = self.since.take()
        {
            self.busy += now - since;
        }
    }

    /// The busy time so far, which starts again at zero.
    pub fn take(&mut self) -> Duration {
        std::mem::take(&mut self.busy)
    }

    /// As [`Self::take`], with the part up to now of what is still under way.
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
