//! Ranks that are threads of the test, with synthetic masters and gradients; and a small job of
//! them, for tests that do something to it half-way.

#![allow(dead_code, reason = "every test file uses its own part")]

use std::io::Write as _;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use half::bf16;
use optswap::internals::config::{Durability, EngineName, GroupConfig};
use optswap::internals::step::{fill_synthetic_gradients, fill_synthetic_masters};
use optswap::{
    Bytes, Communicator, Config, CreateOptions, Elems, Gradients, Inventory, NO_PARAMETERS,
    NoParameters, Parameter, Result, Run, StepOptions, StepOutcome, SwappedOptimizer,
    ThreadCommunicator,
};

use super::Drives;

/// Small stripe units and chunks, clipping, and two parameter groups.
pub fn config_for(drives: &Drives) -> Config {
    let mut config = Config::default();
    config.drives.paths = drives.paths();
    config.drives.stripe_unit = Bytes(16 << 10);
    config.swap.chunk_elements = Elems(4096);
    config.optimizer.clip_norm = 0.5;
    config.optimizer.groups.push(GroupConfig {
        names: vec!["*.bias".to_owned()],
        weight_decay: Some(0.0),
        lr: Some(0.01),
        ..GroupConfig::default()
    });
    config
}

/// As [`config_for`], committing every so many steps.
pub fn durable_config_for(drives: &Drives, commit_every: u64) -> Config {
    let mut config = config_for(drives);
    config.durability.mode = Durability::Step;
    config.durability.commit_every = commit_every;
    config
}

pub fn inventory(sizes: &[usize]) -> Inventory {
    let parameter = |(index, size): (usize, &usize)| {
        let kind = if index % 2 == 0 { "weight" } else { "bias" };
        Parameter::new(format!("layer{index}.{kind}"), [*size])
    };
    Inventory::new(sizes.iter().enumerate().map(parameter).collect()).unwrap()
}

/// Longer than anything here takes, on a busy machine too.
const DEADLINE: Duration = Duration::from_secs(240);

/// Runs `body` on every rank of a world of threads; gives every rank's result.
pub fn on_ranks<T: Send>(
    ranks: usize,
    body: impl Fn(Arc<dyn Communicator>) -> Result<T> + Sync,
) -> Vec<Result<T>> {
    on_ranks_in_case("", ranks, body)
}

/// Runs `body` on every rank in one of many cases of a test. A thread that hangs cannot be ended,
/// so a rank that hangs ends the process, with a message that names the test and the case.
pub fn on_ranks_in_case<T: Send>(
    case: &str,
    ranks: usize,
    body: impl Fn(Arc<dyn Communicator>) -> Result<T> + Sync,
) -> Vec<Result<T>> {
    let world = ThreadCommunicator::world(ranks, Duration::from_secs(20));
    std::thread::scope(|scope| {
        let mut results = Vec::new();
        for comm in world {
            let (result_in, result) = channel();
            let body = &body;
            scope.spawn(move || result_in.send(body(Arc::new(comm))));
            results.push(result);
        }
        let wait = |result: std::sync::mpsc::Receiver<_>| match result.recv_timeout(DEADLINE) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => abort_hanging(case),
            Err(RecvTimeoutError::Disconnected) => panic!("{case}: a rank panicked"),
        };
        results.into_iter().map(wait).collect()
    })
}

fn abort_hanging(case: &str) -> ! {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    // Not through a macro: the runner captures those.
    let _ = writeln!(std::io::stderr(), "{test}: {case}: a rank hangs");
    std::process::abort()
}

/// The synthetic masters of a shard that begins at `flat_start`.
pub fn masters(flat_start: u64) -> impl Fn(&Run, &mut [f32]) -> Result<()> {
    move |run, masters| {
        fill_synthetic_masters(3, flat_start + run.shard_offset, masters);
        Ok(())
    }
}

/// An optimizer that has come back, or one with synthetic masters.
pub fn start(
    config: &Config,
    sizes: &[usize],
    comm: Arc<dyn Communicator>,
) -> Result<SwappedOptimizer> {
    let mut optimizer =
        SwappedOptimizer::create(config, inventory(sizes), comm, CreateOptions::default())?;
    if optimizer.resumed().is_none() {
        let flat_start = optimizer.partition().flat().start;
        optimizer.initialize_parameters(&mut NoParameters, masters(flat_start))?;
    }
    Ok(optimizer)
}

pub fn shard_gradients(optimizer: &SwappedOptimizer, step: u64) -> Vec<f32> {
    let range = optimizer.partition().flat();
    let mut shard = vec![0.0; (range.end - range.start) as usize];
    fill_synthetic_gradients(5, step, range.start, &mut shard, |gradient| gradient);
    shard
}

/// The next step, with its own synthetic gradients; parameters go to `params`.
pub fn step_into(optimizer: &mut SwappedOptimizer, params: &mut [bf16]) -> Result<StepOutcome> {
    let shard = shard_gradients(optimizer, optimizer.attempts() + 1);
    let gradients = Gradients::Shard(&shard);
    optimizer.step(&gradients, params, StepOptions::default())
}

/// Steps until so many have been attempted.
pub fn step_until(optimizer: &mut SwappedOptimizer, attempts: u64) -> Result<()> {
    let mut params = vec![bf16::ZERO; optimizer.partition().elems() as usize];
    while optimizer.attempts() < attempts {
        step_into(optimizer, &mut params)?;
    }
    Ok(())
}

/// What every rank gave; an error of any ends the test.
pub fn all<T>(results: Vec<Result<T>>) -> Vec<T> {
    results.into_iter().map(|result| result.unwrap_or_else(|error| panic!("{error}"))).collect()
}

/// Steps of a whole [`Job`].
pub const STEPS: u64 = 3;

/// Six chunks, the last of which is not full.
const JOB_SIZES: [usize; 2] = [20_000, 4000];

/// The configuration of a [`Job`]: what a step moves, it moves between its beginning and its end.
pub fn job_config_for(drives: &Drives, mode: Durability, engine: EngineName) -> Config {
    let mut config = config_for(drives);
    config.durability.mode = mode;
    config.io.engine = engine;
    (config.swap.write_behind, config.swap.prefetch) = (false, false);
    config
}

/// One rank's optimizer and the parameters that it emits.
pub struct Job {
    pub optimizer: SwappedOptimizer,
    pub params: Vec<f32>,
}

impl Job {
    /// Creates the job, or finds it on its drives, as a training program would.
    pub fn start(config: &Config, comm: Arc<dyn Communicator>) -> Result<Self> {
        let mut optimizer = start(config, &JOB_SIZES, comm)?;
        let mut params = vec![0.0; optimizer.partition().elems() as usize];
        optimizer.emit_parameters(&mut params)?;
        Ok(Self { optimizer, params })
    }

    /// The next step; its number is the blob that is committed with it.
    pub fn step(&mut self) -> Result<StepOutcome> {
        let step = self.optimizer.attempts() + 1;
        let shard = shard_gradients(&self.optimizer, step);
        let gradients = Gradients::Shard(&shard);
        let options = StepOptions { user_blob: &[step as u8], ..StepOptions::default() };
        self.optimizer.step(&gradients, &mut self.params, options)
    }

    /// All steps that are left, and the digest.
    pub fn finish(&mut self) -> Result<String> {
        while self.optimizer.attempts() < STEPS {
            self.step()?;
        }
        self.optimizer.state_digest(NO_PARAMETERS)
    }
}

/// Digests of an undisturbed job after 0 to [`STEPS`] steps.
pub fn undisturbed_digests(ranks: usize) -> Vec<String> {
    let digests = all(on_ranks_in_case("undisturbed", ranks, |comm| {
        let drives = Drives::new(1);
        let config = job_config_for(&drives, Durability::Scratch, EngineName::Threads);
        let mut job = Job::start(&config, comm)?;
        let mut digests = vec![job.optimizer.state_digest(NO_PARAMETERS)?];
        for _ in 0..STEPS {
            job.step()?;
            digests.push(job.optimizer.state_digest(NO_PARAMETERS)?);
        }
        job.optimizer.close();
        Ok(digests)
    }));
    assert!(digests.iter().all(|theirs| *theirs == digests[0]));
    digests.into_iter().next().unwrap()
}
