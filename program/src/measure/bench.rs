//! The benchmark: repetitions of some steps each, after a warm-up.

use std::sync::Arc;

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use super::node::{NodeFacts, RankPlace, survey};
use super::workload::{Stretch, Workload, synthetic_inventory};
use optswap::internals::config::Config;
use optswap::internals::coord::{Communicator, agree, gather_all};
use optswap::internals::error::Result;
use optswap::internals::job::command_line;
use optswap::internals::optim::GradElem;
use optswap::internals::telemetry::RankRecord;

/// Number formats of gradients in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum GradientFormat {
    /// Four bytes.
    F32,
    /// Two bytes, the exponents of f32.
    Bf16,
    /// Two bytes, IEEE.
    F16,
}

/// What to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BenchOptions {
    /// Parameters (elements) of the model, over all ranks.
    pub params: u64,
    /// How often a measurement is repeated.
    pub repetitions: u64,
    /// Steps of each repetition.
    pub steps: u64,
    /// Steps before the first repetition, which do not count.
    pub warmup: u64,
    /// Number format of the gradients.
    pub gradients: GradientFormat,
    /// Seed of masters and gradients.
    pub seed: u64,
    /// Compare with an AdamW in memory after every step.
    pub verify: bool,
}

/// What each rank timed in one repetition.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Repetition {
    /// Seconds of all its steps together, until everything is on the rank's drives.
    pub rank_seconds: Vec<f64>,
    /// The same until the rank's own last write has ended, before it waits for the others.
    pub rank_done_seconds: Vec<f64>,
    /// The same until its last write to each of its drives has ended; 0 where nothing was written.
    #[serde(default)]
    pub rank_drive_done_seconds: Vec<Vec<f64>>,
    /// Seconds of every `step()`.
    pub rank_step_seconds: Vec<Vec<f64>>,
}

impl Repetition {
    /// Collective.
    fn gather(comm: &dyn Communicator, mine: Stretch) -> Result<Self> {
        let all: Vec<Stretch> = gather_all(comm, &mine)?;
        Ok(Self {
            rank_seconds: all.iter().map(|it| it.seconds).collect(),
            rank_done_seconds: all.iter().map(|it| it.done_seconds).collect(),
            rank_drive_done_seconds: all.iter().map(|it| it.drive_done_seconds.clone()).collect(),
            rank_step_seconds: all.into_iter().map(|it| it.step_seconds).collect(),
        })
    }
}

/// What the benchmark gathered, on every rank.
#[derive(Clone, Debug)]
pub struct BenchRun {
    /// Where it ran.
    pub nodes: Vec<NodeFacts>,
    /// Where each rank ran.
    pub places: Vec<RankPlace>,
    /// What was timed.
    pub repetitions: Vec<Repetition>,
    /// Timers and counters of every rank over all repetitions.
    pub records: Vec<RankRecord>,
    /// Digest of master and moments after the last step.
    pub state_digest: String,
}

/// Collective: runs the benchmark.
///
/// # Errors
/// Agreed: usage if the configuration does not fit the model, the drives or memory, errors of the
/// drives or of lost ranks, terminated after a signal. Internal if a comparison found a difference.
pub fn run_bench(
    comm: &Arc<dyn Communicator>,
    config: &Config,
    options: &BenchOptions,
) -> Result<BenchRun> {
    match options.gradients {
        GradientFormat::F32 => run_with(comm, config, options, |gradient| gradient),
        GradientFormat::Bf16 => run_with(comm, config, options, bf16::from_f32),
        GradientFormat::F16 => run_with(comm, config, options, f16::from_f32),
    }
}

fn run_with<G: GradElem>(
    comm: &Arc<dyn Communicator>,
    config: &Config,
    options: &BenchOptions,
    convert: impl Fn(f32) -> G,
) -> Result<BenchRun> {
    let BenchOptions { params, repetitions, steps, warmup, seed, verify, .. } = *options;
    let inventory = agree(&**comm, synthetic_inventory(params))?;
    let (nodes, mut places) = survey(&**comm, &config.drives)?;
    let mut work = Workload::create(comm, config, inventory, seed, verify, convert)?;
    let are_direct = gather_all(&**comm, &work.optimizer.are_direct())?;
    places.iter_mut().zip(are_direct).for_each(|(place, it)| place.direct_io = it);
    work.run(warmup)?;
    work.optimizer.reset_records();
    let mut timed = Vec::new();
    for _ in 0..repetitions {
        let stretch = work.run(steps)?;
        timed.push(Repetition::gather(&**comm, stretch)?);
    }
    let records = work.optimizer.gather_records()?;
    work.optimizer.finish_report(command_line())?;
    let state_digest = work.state_digest()?;
    work.optimizer.close();
    Ok(BenchRun { nodes, places, repetitions: timed, records, state_digest })
}
