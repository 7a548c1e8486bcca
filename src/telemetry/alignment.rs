//! The difference between every rank's clock and rank 0's, measured by a few barriers.
//!
//! No rank leaves a barrier before all have entered it. So a rank's entry is before rank 0's exit,
//! and rank 0's entry before the rank's exit, which bounds the difference of their clocks from both
//! sides. Of many barriers, the narrowest bounds count.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::coord::{Communicator, gather_all};
use crate::error::Result;
use crate::timers::Tracer;

const ROUNDS: usize = 32;

/// A rank's clock at one moment, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reading {
    /// The moment, on the rank's clock.
    pub at_ns: i64,
    /// By how much the rank's clock is ahead of rank 0's.
    pub ahead_ns: i64,
    /// How much `ahead_ns` may be wrong.
    pub error_ns: i64,
}

/// When a rank entered and left each barrier, on its clock.
type Stamps = Vec<(i64, i64)>;

/// Collective: reads the clocks of all ranks.
///
/// # Errors
/// Those of the communicator: peer if a rank does not answer in time.
pub(super) fn read_clocks(comm: &dyn Communicator, tracer: &Tracer) -> Result<Vec<Reading>> {
    let now = || tracer.ns(Instant::now()) as i64;
    let mut mine = Stamps::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let entered = now();
        comm.barrier()?;
        mine.push((entered, now()));
    }
    let all: Vec<Stamps> = gather_all(comm, &mine)?;
    Ok(all.iter().map(|stamps| reading(stamps, &all[0])).collect())
}

fn reading(stamps: &Stamps, of_rank_0: &Stamps) -> Reading {
    let rounds = || stamps.iter().zip(of_rank_0);
    let least = rounds().map(|((entered, _), (_, left_0))| entered - left_0).max().unwrap_or(0);
    let most = rounds().map(|((_, left), (entered_0, _))| left - entered_0).min().unwrap_or(0);
    let at_ns = stamps.last().map_or(0, |(_, left)| *left);
    Reading { at_ns, ahead_ns: (least + most) / 2, error_ns: (most - least).abs() / 2 }
}

/// Converts a rank's clock to rank 0's by offset and drift, from one reading before and one after.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Alignment {
    before: Reading,
    after: Reading,
}

impl Alignment {
    /// The conversion that follows from two readings.
    pub fn new(before: Reading, after: Reading) -> Self {
        Self { before, after }
    }

    /// A moment on the rank's clock, as rank 0's clock shows it.
    pub fn on_rank_0(&self, ns: u64) -> i64 {
        let ns = ns as i64;
        let between = (self.after.at_ns - self.before.at_ns) as f64;
        let gained = (self.after.ahead_ns - self.before.ahead_ns) as f64;
        let drifted =
            if between > 0.0 { gained * ((ns - self.before.at_ns) as f64 / between) } else { 0.0 };
        ns - self.before.ahead_ns - drifted.round() as i64
    }

    /// How much a conversion may be wrong, in nanoseconds.
    pub fn error_ns(&self) -> i64 {
        self.before.error_ns.max(self.after.error_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offset_and_drift_are_found_within_the_bounds() {
        // Rank 1's clock shows 5 s more, and gains 1 us in each ms.
        let clock = |ns: i64| 5_000_000_000 + ns + ns / 1000;
        let rounds = |from: i64| -> (Stamps, Stamps) {
            // Rank 1 enters late in even rounds, rank 0 in odd ones; both leave a little later.
            let round = |k: i64| {
                let start = from + 100_000 * k;
                let (late, early) = (start + 50_000, start);
                let (in_0, in_1) = if k % 2 == 0 { (early, late) } else { (late, early) };
                ((in_0, late + 2_000), (clock(in_1), clock(late + 3_000)))
            };
            (0..8).map(round).unzip()
        };
        let ((before_0, before_1), (after_0, after_1)) = (rounds(0), rounds(1_000_000_000));
        let alignment = Alignment::new(reading(&before_1, &before_0), reading(&after_1, &after_0));
        assert!(alignment.error_ns() <= 3_000, "{alignment:?}");
        for ns in [0, 400_000_000, 1_000_000_000] {
            let found = alignment.on_rank_0(clock(ns) as u64);
            assert!((found - ns).abs() <= 4_000, "{ns}: {found}");
        }
        let same = Alignment::default();
        assert_eq!(same.on_rank_0(7), 7);
    }
}
