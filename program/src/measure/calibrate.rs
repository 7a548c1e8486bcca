//! What a forecast needs to know of this machine beside its drives: the time of processors for a
//! parameter, and the time of a collective between ranks.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use half::bf16;
use serde::Serialize;

use super::workload::{Workload, synthetic_inventory};
use optswap::internals::config::{CodecsConfig, Config};
use optswap::internals::coord::{Communicator, Solo, gather_all};
use optswap::internals::error::{Error, ErrorKind, Result};
use optswap::internals::storage::PrivateDirectory;
use optswap::internals::telemetry::RankRecord;
use optswap::internals::timers::Timer;
use optswap::internals::units::Elems;

/// Where the state lies, so that no drive slows the steps down.
const MEMORY: &str = "/dev/shm";
/// Parameters: enough work for every thread, and still only a fraction of a second.
const PARAMS: u64 = 4 << 20;
/// Steps that are measured, after one that is not.
const STEPS: u64 = 4;
/// Collectives that are measured.
const COLLECTIVES: usize = 300;

/// Nanoseconds per parameter, all processors of this process working.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ProcessorSpeed {
    /// Checksums and update.
    pub update_ns_per_param: f64,
    /// The gradient's norm.
    pub norm_ns_per_param: f64,
}

/// A directory that is removed when this is dropped.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        // It is empty by then, unless the optimizer could not be created.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Takes some steps with the state in memory, with these codecs.
///
/// # Errors
/// If there is no room for it.
pub fn measure_processors(codecs: &CodecsConfig) -> Result<ProcessorSpeed> {
    // The user started no job, so nothing is logged.
    let quiet = tracing::subscriber::NoSubscriber::default();
    tracing::subscriber::with_default(quiet, || measure_in_memory(codecs))
}

fn measure_in_memory(codecs: &CodecsConfig) -> Result<ProcessorSpeed> {
    let name = format!("optswap-calibrate-{}", std::process::id());
    // Everybody may write there, so the directory must be this user's.
    let created = PrivateDirectory::create(Path::new(MEMORY), &[&name]).map_err(|error| {
        Error::new(ErrorKind::CannotCreate, "no directory in memory can be created")
            .with("path", Path::new(MEMORY).join(&name).display())
            .because(error)
    })?;
    let directory = Directory(created.path().to_owned());
    let mut config = Config { codecs: codecs.clone(), ..Config::default() };
    config.drives.paths = vec![directory.0.clone()];
    config.drives.allow_filesystems = vec!["tmpfs".to_owned()];
    config.swap.chunk_elements = Elems(1 << 20);
    let solo: Arc<dyn Communicator> = Arc::new(Solo::default());
    let inventory = synthetic_inventory(PARAMS)?;
    let mut work = Workload::create(&solo, &config, inventory, 0, false, bf16::from_f32)?;
    work.run(1)?;
    // The fastest counts: others may be at work on this machine, too.
    let mut fastest = [f64::INFINITY; 2];
    for _ in 0..STEPS {
        work.optimizer.reset_records();
        work.run(1)?;
        let records = work.optimizer.gather_records()?;
        let ns = |timers: &[Timer]| {
            let seconds =
                |record: &RankRecord| timers.iter().map(|it| record.seconds(*it)).sum::<f64>();
            records.iter().map(seconds).sum::<f64>() * 1e9 / PARAMS as f64
        };
        let update = [Timer::VerifyChecksums, Timer::OptimizerStep, Timer::TakeChecksums];
        fastest[0] = fastest[0].min(ns(&update));
        fastest[1] = fastest[1].min(ns(&[Timer::SwapOutGradient]));
    }
    work.optimizer.close();
    Ok(ProcessorSpeed { update_ns_per_param: fastest[0], norm_ns_per_param: fastest[1] })
}

/// How long ranks need to reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CollectiveSpeed {
    /// Seconds from one rank to the next.
    pub hop_seconds: f64,
    /// The mean of what delays a rank by chance.
    pub noise_seconds: f64,
}

/// Collective: measures all-reduces of a step's size; `None` for one rank, which has none.
///
/// # Errors
/// Those of a collective: a rank that is lost or does not come.
pub fn measure_collectives(comm: &dyn Communicator) -> Result<Option<CollectiveSpeed>> {
    if comm.size() < 2 {
        return Ok(None);
    }
    let mut values = [0; 64];
    let mut seconds = Vec::with_capacity(COLLECTIVES);
    for _ in 0..COLLECTIVES {
        comm.barrier()?;
        let start = Instant::now();
        comm.all_reduce_sum(&mut values)?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    let all: Vec<Vec<f64>> = gather_all(comm, &seconds)?;
    let mut all: Vec<f64> = all.into_iter().flatten().collect();
    all.sort_by(f64::total_cmp);
    let median = all[all.len() / 2];
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    // An all-reduce goes up and down a tree.
    let hops = 2 * (usize::BITS - (comm.size() - 1).leading_zeros());
    Ok(Some(CollectiveSpeed {
        hop_seconds: median / f64::from(hops),
        noise_seconds: (mean - median).max(0.0),
    }))
}
