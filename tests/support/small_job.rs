//! A small training job on ranks that are threads, for tests that do something to it half-way.

#![allow(dead_code, reason = "every test file uses its own part")]

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use optswap::internals::config::{Config, Durability, EngineName};
use optswap::internals::coord::{Communicator, ThreadCommunicator};
use optswap::internals::error::Result;
use optswap::internals::partition::Run;
use optswap::internals::state::{Inventory, Parameter};
use optswap::internals::step::{
    Gradients, StepOptions, StepOutcome, SwappedOptimizer, fill_synthetic_gradients,
    fill_synthetic_masters,
};
use optswap::internals::units::{Bytes, Elems};

use crate::support::Drives;

/// Steps of a whole job.
pub const STEPS: u64 = 3;
/// Longer than anything here takes, on a busy machine too.
const DEADLINE: Duration = Duration::from_secs(60);

/// Chunks of one block, each in three stripe units.
pub fn config_for(drives: &Drives, mode: Durability, engine: EngineName) -> Config {
    let mut config = Config::default();
    config.drives.paths = drives.paths();
    config.drives.stripe_unit = Bytes(16 << 10);
    config.swap.chunk_elements = Elems(4096);
    config.optimizer.clip_norm = 0.5;
    config.durability.mode = mode;
    config.io.engine = engine;
    // What a step moves, it moves between its beginning and its end.
    (config.swap.write_behind, config.swap.prefetch) = (false, false);
    config
}

/// Six blocks in two parameters; the last block is not full.
fn inventory() -> Inventory {
    let parameters = [("weight", 20_000), ("bias", 4000)];
    Inventory::new(parameters.map(|(name, size)| Parameter::new(name, [size])).to_vec()).unwrap()
}

/// Runs `body` on every rank of a world of threads; gives every rank's result. A rank that hangs is
/// a failed test that says which, in good time.
pub fn on_ranks<T: Send + 'static>(
    ranks: usize,
    what: &str,
    body: impl Fn(Arc<dyn Communicator>) -> T + Clone + Send + 'static,
) -> Vec<T> {
    let world = ThreadCommunicator::world(ranks, Duration::from_secs(20));
    let run = |comm: ThreadCommunicator| {
        let body = body.clone();
        let (result_in, result) = channel();
        std::thread::spawn(move || result_in.send(body(Arc::new(comm))));
        result
    };
    let results: Vec<_> = world.into_iter().map(run).collect();
    let wait = |result: std::sync::mpsc::Receiver<T>| match result.recv_timeout(DEADLINE) {
        Ok(value) => value,
        Err(RecvTimeoutError::Timeout) => panic!("{what}: hangs"),
        Err(RecvTimeoutError::Disconnected) => panic!("{what}: a rank panicked"),
    };
    results.into_iter().map(wait).collect()
}

/// One rank's optimizer and the parameters that it emits.
pub struct Job {
    pub optimizer: SwappedOptimizer,
    pub params: Vec<f32>,
}

impl Job {
    /// Creates the job, or finds it on its drives, as a training program would.
    pub fn start(config: &Config, comm: Arc<dyn Communicator>) -> Result<Self> {
        let mut optimizer = SwappedOptimizer::create(config, inventory(), comm)?;
        let range = optimizer.partition().flat();
        let mut params = vec![0.0; (range.end - range.start) as usize];
        if optimizer.resumed().is_none() {
            optimizer.initialize_parameters(
                &mut NoParameters,
                |run: &Run, masters: &mut [f32]| {
                    fill_synthetic_masters(3, range.start + run.shard_offset, masters);
                    Ok(())
                },
            )?;
        }
        optimizer.emit_parameters(&mut params)?;
        Ok(Self { optimizer, params })
    }

    /// The next step; its number is the blob that is committed with it.
    pub fn step(&mut self) -> Result<StepOutcome> {
        let step = self.optimizer.attempts() + 1;
        let start = self.optimizer.partition().flat().start;
        let mut shard = vec![0.0f32; self.params.len()];
        fill_synthetic_gradients(5, step, start, &mut shard, |gradient| gradient);
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
    let digests = on_ranks(ranks, "undisturbed", move |comm| {
        let drives = Drives::new(1);
        let config = config_for(&drives, Durability::Scratch, EngineName::Threads);
        let mut job = Job::start(&config, comm).unwrap();
        let mut digests = vec![job.optimizer.state_digest(NO_PARAMETERS).unwrap()];
        for _ in 0..STEPS {
            job.step().unwrap();
            digests.push(job.optimizer.state_digest(NO_PARAMETERS).unwrap());
        }
        job.optimizer.close();
        digests
    });
    assert!(digests.iter().all(|theirs| *theirs == digests[0]));
    digests.into_iter().next().unwrap()
}

/// Copies a tree of files, as another process finds them that starts after this one has ended: a
/// thread that has given up an operation keeps its locks as long as the process lives.
pub fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_tree(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}
