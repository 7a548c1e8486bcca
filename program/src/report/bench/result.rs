//! The result of `optswap bench`, as it is written to JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::throughput::{Limits, Scope, Throughput, throughputs};
use crate::measure::{BenchOptions, BenchRun, NodeFacts, RankPlace, Repetition};
use optswap::internals::config::Config;
use optswap::internals::telemetry::{OverRanks, RankRecord, bytes_per_param, median, overlap};
use optswap::internals::timers::Timer;

/// The version of the layout below.
pub const BENCH_SCHEMA: u32 = 4;
/// The oldest one that has all that a comparison needs.
pub const BENCH_SCHEMA_OLDEST: u32 = 2;
/// Shorter repetitions say little.
const SHORT_SECONDS: f64 = 1.0;
/// The part of the bytes that the kernel must have moved for I/O to count as direct.
const DIRECT_SHARE: f64 = 0.9;

/// What makes a result doubtful.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Flag {
    /// Repetitions of less than a second.
    Short,
    /// The page cache answered for the drives.
    Buffered,
}

/// What a node's ranks have on its drives, against its memory. State that fits memory could have
/// been read from the page cache instead of the drives.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Dataset {
    /// The node.
    pub host: String,
    /// Bytes that its ranks read in one step.
    pub state_bytes: u64,
    /// Memory that they may use together; 0 if it is not known.
    pub memory_bytes: u64,
    /// Whether memory could hold it.
    pub fits_memory: bool,
}

/// How the benchmark was started, and with what.
#[derive(Clone, Debug, Serialize)]
pub struct BenchSetup {
    /// The command line.
    pub command: Vec<String>,
    /// Who started the ranks.
    pub launcher: String,
    /// The launcher's own command line, where it is known.
    pub launcher_command: Option<Vec<String>>,
    /// Variables of the environment that matter.
    pub environment: BTreeMap<String, String>,
    /// The MPI library.
    pub mpi: Option<String>,
    /// When: seconds since 1970.
    pub started_at_unix_s: u64,
    /// A name that the user gave.
    pub label: Option<String>,
    /// The full resolved configuration.
    pub config: Config,
    /// What was asked for.
    pub options: BenchOptions,
}

/// Everything that one run of the benchmark gave.
#[derive(Clone, Debug, Serialize)]
pub struct BenchResult {
    /// Version of this layout.
    pub schema: u32,
    /// Version of the program.
    pub optswap: &'static str,
    /// The commit that it was built from.
    pub commit: &'static str,
    /// How it was started.
    #[serde(flatten)]
    pub setup: BenchSetup,
    /// Where it ran.
    pub nodes: Vec<NodeFacts>,
    /// Where each rank ran.
    pub places: Vec<RankPlace>,
    /// Ranks.
    pub ranks: usize,
    /// Parameters (elements) of the world.
    pub params: u64,
    /// Whether state was compared with the in-memory reference after every step.
    pub verified: bool,
    /// Seconds per step of every repetition: the slowest rank's, from the start of the first step
    /// until everything is on the drives.
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
    /// How much of what its drives can do the world reached, in percent.
    pub limit_percent: Option<f64>,
    /// Each rank's time per step until its own last write has ended, seconds, the median of the
    /// repetitions: `min` is the first rank that is done, `max` the last.
    pub done_seconds: Option<OverRanks>,
    /// World, nodes, drives and ranks.
    pub throughput: Vec<Throughput>,
    /// How many of swap-in, swap-out and update were under way at a time, on average.
    pub overlap: f64,
    /// Each timer over the ranks, in seconds per step.
    pub timers_over_ranks: Vec<(String, OverRanks)>,
    /// Digest of master and moments after the last step.
    pub state_digest: String,
    /// State and memory of every node.
    pub dataset: Vec<Dataset>,
    /// What makes the result doubtful.
    pub flags: Vec<Flag>,
    /// Ranks whose reads or writes the page cache answered.
    pub buffered_ranks: Vec<u32>,
    /// Everything that was timed.
    pub repetitions: Vec<Repetition>,
    /// Timers and counters of every rank, over all repetitions.
    pub rank_records: Vec<RankRecord>,
}

impl BenchResult {
    /// Computes all figures from what was gathered.
    pub fn new(setup: BenchSetup, run: BenchRun, limits: &Limits) -> Self {
        let BenchRun { nodes, places, repetitions, records: rank_records, state_digest } = run;
        let records = &rank_records;
        let params: u64 = records.iter().map(|record| record.elems).sum();
        let throughput = throughputs(&nodes, &places, records, &repetitions, limits);
        let world = throughput.iter().find(|it| it.scope == Scope::World);
        let step_seconds = world.map(|world| world.seconds.clone()).unwrap_or_default();
        let step_seconds_median = median(&step_seconds);
        let buffered_ranks = buffered_ranks(records);
        let dataset = datasets(&nodes, &throughput);
        Self {
            schema: BENCH_SCHEMA,
            optswap: env!("CARGO_PKG_VERSION"),
            commit: env!("OPTSWAP_COMMIT"),
            ranks: records.len(),
            params,
            verified: setup.options.verify,
            ns_per_param: step_seconds_median * 1e9 / params.max(1) as f64,
            limit_percent: world.and_then(|world| world.limit_percent),
            step_seconds_median,
            bytes_read_per_param: bytes_per_param(records, RankRecord::read_bytes),
            bytes_written_per_param: bytes_per_param(records, RankRecord::written_bytes),
            kernel_bytes_read_per_param: bytes_per_param(records, |r| r.kernel_read_bytes),
            kernel_bytes_written_per_param: bytes_per_param(records, |r| r.kernel_written_bytes),
            done_seconds: world.and_then(|world| world.done_seconds),
            throughput,
            overlap: overlap(records),
            timers_over_ranks: timers_over_ranks(records),
            state_digest,
            dataset,
            flags: flags(&step_seconds, &setup.options, &buffered_ranks),
            buffered_ranks,
            step_seconds,
            repetitions,
            nodes,
            places,
            setup,
            rank_records,
        }
    }
}

/// Each timer over the ranks, in seconds per step.
fn timers_over_ranks(records: &[RankRecord]) -> Vec<(String, OverRanks)> {
    let mut timers = Vec::new();
    for timer in Timer::ALL {
        let seconds = |record: &RankRecord| record.seconds(*timer) / record.steps.max(1) as f64;
        if let Some(over) = OverRanks::of(&records.iter().map(seconds).collect::<Vec<_>>()) {
            timers.push((timer.name().to_owned(), over));
        }
    }
    timers
}

/// State and memory of every node.
fn datasets(nodes: &[NodeFacts], throughput: &[Throughput]) -> Vec<Dataset> {
    let mut datasets = Vec::new();
    for node in nodes {
        let same = throughput.iter().find(|it| it.scope == Scope::Node && it.name == node.host);
        let state_bytes = same.map_or(0, |it| it.read_bytes as u64);
        datasets.push(Dataset {
            host: node.host.clone(),
            state_bytes,
            memory_bytes: node.memory_bytes,
            fits_memory: state_bytes < node.memory_bytes,
        });
    }
    datasets
}

/// Ranks for which the kernel moved less than optswap did.
fn buffered_ranks(records: &[RankRecord]) -> Vec<u32> {
    let is_below = |kernel: u64, ours: u64| (kernel as f64) < DIRECT_SHARE * ours as f64;
    let mut ranks = Vec::new();
    for record in records {
        if is_below(record.kernel_read_bytes, record.read_bytes())
            || is_below(record.kernel_written_bytes, record.written_bytes())
        {
            ranks.push(record.rank);
        }
    }
    ranks
}

fn flags(step_seconds: &[f64], options: &BenchOptions, buffered_ranks: &[u32]) -> Vec<Flag> {
    let is_short = median(step_seconds) * (options.steps as f64) < SHORT_SECONDS;
    let mut flags = Vec::new();
    flags.extend(is_short.then_some(Flag::Short));
    flags.extend((!buffered_ranks.is_empty()).then_some(Flag::Buffered));
    flags
}
