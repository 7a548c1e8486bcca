//! Ranks that are threads of the test, with synthetic masters and gradients.

#![allow(dead_code, reason = "every test file uses its own part")]

use std::sync::Arc;
use std::time::Duration;

use half::bf16;
use optswap::internals::config::{Config, Durability, GroupConfig};
use optswap::internals::coord::{Communicator, ThreadCommunicator};
use optswap::internals::error::Result;
use optswap::internals::partition::Run;
use optswap::internals::state::{Inventory, Parameter};
use optswap::internals::step::{
    Gradients, StepOptions, StepOutcome, SwappedOptimizer, fill_synthetic_gradients,
    fill_synthetic_masters,
};
use optswap::internals::units::{Bytes, Elems};

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

/// Runs `body` on every rank of a world of threads; gives every rank's result.
pub fn on_ranks<T: Send>(
    ranks: usize,
    body: impl Fn(Arc<dyn Communicator>) -> Result<T> + Sync,
) -> Vec<Result<T>> {
    let world = ThreadCommunicator::world(ranks, Duration::from_secs(20));
    std::thread::scope(|scope| {
        let run = |comm: ThreadCommunicator| {
            let body = &body;
            scope.spawn(move || body(Arc::new(comm)))
        };
        let threads: Vec<_> = world.into_iter().map(run).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
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
    let mut optimizer = SwappedOptimizer::create(config, inventory(sizes), comm)?;
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
