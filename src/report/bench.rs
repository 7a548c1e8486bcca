//! The result of `optswap bench`, as it is written to JSON.

use std::path::PathBuf;

use serde::Serialize;

use super::stats::{OverRanks, median};
use super::table::overlap;
use crate::config::Config;
use crate::step::RankRecord;
use crate::timers::Timer;

/// What the benchmark ran on.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Host of rank 0.
    pub host: String,
    /// Kernel release.
    pub kernel: String,
    /// Processors that rank 0 may use.
    pub cpus: usize,
    /// Rank 0's drives.
    pub drives: Vec<DriveInfo>,
}

/// A drive of rank 0.
#[derive(Clone, Debug, Serialize)]
pub struct DriveInfo {
    /// The directory that the user named.
    pub path: PathBuf,
    /// Its file system.
    pub file_system: String,
}

/// Everything that one run of the benchmark gave.
#[derive(Clone, Debug, Serialize)]
pub struct BenchResult {
    /// Version of this layout.
    pub schema: u32,
    /// Version of the program.
    pub optswap: &'static str,
    /// The command line.
    pub command: Vec<String>,
    /// Where it ran.
    pub machine: Machine,
    /// The full resolved configuration.
    pub config: Config,
    /// Ranks.
    pub ranks: usize,
    /// Parameters (elements) of the world.
    pub params: u64,
    /// Measured steps.
    pub steps: u64,
    /// Steps before those, not measured.
    pub warmup: u64,
    /// Seconds of every measured step: the slowest rank's.
    pub step_seconds: Vec<f64>,
    /// Median of them.
    pub step_seconds_median: f64,
    /// Nanoseconds per parameter of the world, from the median.
    pub ns_per_param: f64,
    /// Bytes read in steps, per parameter and step.
    pub bytes_read_per_param: f64,
    /// Bytes written in steps, per parameter and step.
    pub bytes_written_per_param: f64,
    /// The kernel's count of the same (`/proc/self/io`).
    pub kernel_bytes_read_per_param: f64,
    /// The kernel's count of the same.
    pub kernel_bytes_written_per_param: f64,
    /// How many of swap-in, swap-out and update were under way at a time, on average.
    pub overlap: f64,
    /// Each timer over the ranks, in seconds per step.
    pub timers_over_ranks: Vec<(String, OverRanks)>,
    /// Digest of master and moments after the last step.
    pub state_digest: String,
    /// Whether state was compared with the in-memory reference after every step.
    pub verified: bool,
    /// Timers and counters of every rank.
    pub rank_records: Vec<RankRecord>,
}

/// Bytes moved per parameter and step, over all ranks.
pub fn bytes_per_param(records: &[RankRecord], bytes: fn(&RankRecord) -> u64) -> f64 {
    let moved: u64 = records.iter().map(bytes).sum();
    let params: u64 = records.iter().map(|record| record.elems).sum();
    let steps = records.first().map_or(0, |record| record.steps);
    moved as f64 / (params * steps).max(1) as f64
}

impl BenchResult {
    /// Puts the figures together that follow from the records.
    #[expect(clippy::too_many_arguments, reason = "each is one independent fact of the run")]
    pub fn new(
        command: Vec<String>,
        machine: Machine,
        config: Config,
        warmup: u64,
        step_seconds: Vec<f64>,
        state_digest: String,
        verified: bool,
        rank_records: Vec<RankRecord>,
    ) -> Self {
        let records = &rank_records;
        let params: u64 = records.iter().map(|record| record.elems).sum();
        let steps = step_seconds.len() as u64;
        let per_step = |timer: Timer| -> Vec<f64> {
            let seconds = |record: &RankRecord| record.seconds(timer) / steps.max(1) as f64;
            records.iter().map(seconds).collect()
        };
        let over_ranks = |timer: &Timer| {
            OverRanks::of(&per_step(*timer)).map(|over| (timer.name().to_owned(), over))
        };
        let step_seconds_median = median(&step_seconds);
        Self {
            schema: 1,
            optswap: env!("CARGO_PKG_VERSION"),
            command,
            machine,
            config,
            ranks: records.len(),
            params,
            steps,
            warmup,
            ns_per_param: step_seconds_median * 1e9 / params.max(1) as f64,
            step_seconds_median,
            step_seconds,
            bytes_read_per_param: bytes_per_param(records, RankRecord::read_bytes),
            bytes_written_per_param: bytes_per_param(records, RankRecord::written_bytes),
            kernel_bytes_read_per_param: bytes_per_param(records, |r| r.kernel_read_bytes),
            kernel_bytes_written_per_param: bytes_per_param(records, |r| r.kernel_written_bytes),
            overlap: overlap(records),
            timers_over_ranks: Timer::ALL.iter().filter_map(over_ranks).collect(),
            state_digest,
            verified,
            rank_records,
        }
    }
}
