//! The swapped optimizer: AdamW whose state lies on drives.

use std::rc::Rc;

use super::plan::Plan;
use super::preflight::preflight;
use super::process_io::ProcessIo;
use super::records::{RankRecord, Recorder};
use crate::config::{Config, FaultConfig};
use crate::coord::{Communicator, Topology, agree, gather_all};
use crate::error::{Error, ErrorKind, Result};
use crate::io::{EngineSpec, allocate_buffers};
use crate::partition::Partition;
use crate::state::{Hyperparameters, Inventory, Parameter};
use crate::storage::{Owner, ShardDirectory, ShardFiles};
use crate::swap::{Swapper, SwapperSpec};
use crate::units::ParamIndex;

/// AdamW with master and moments on the drives: one per rank, all ranks act together. Every method
/// marked collective is called by all ranks in the same order.
pub struct SwappedOptimizer {
    /// Declared first, so dropped first: nothing is in flight when the files go.
    pub(super) swapper: Swapper,
    _files: ShardFiles,
    pub(super) comm: Rc<dyn Communicator>,
    pub(super) plan: Plan,
    pub(super) pool: rayon::ThreadPool,
    pub(super) groups: Vec<Hyperparameters>,
    /// Updates taken so far, per parameter of the inventory.
    pub(super) update_counts: Vec<u64>,
    pub(super) attempts: u64,
    pub(super) recorder: Recorder,
    pub(super) process_io: ProcessIo,
    /// Set when state on the drives is of no step: not initialised yet, or a step failed half-way.
    pub(super) unusable: Option<&'static str>,
}

impl SwappedOptimizer {
    /// Collective: checks everything, then creates this rank's files and starts its I/O thread.
    /// Parameters of group 0 are put into the groups that the configuration names for them.
    ///
    /// # Errors
    /// The worst problem of any rank, agreed: see [`crate::error::ErrorKind`]. Nothing is left on
    /// the drives then.
    pub fn create(
        config: &Config,
        inventory: Inventory,
        comm: Rc<dyn Communicator>,
    ) -> Result<Self> {
        let topology = Topology::discover(&*comm)?;
        let inventory = with_groups(config, inventory);
        let plan = agree(&*comm, inventory.and_then(|it| Plan::resolve(config, it, &*comm)))?;
        tracing::info!("{plan}");
        let directories = preflight(&plan, &*comm, &topology)?;
        let opened = agree(&*comm, open(&plan, &*comm, directories))?;
        let (files, swapper, pool) = opened;
        Ok(Self {
            swapper,
            groups: config.optimizer.hyperparameters(),
            update_counts: vec![0; plan.inventory().parameters().len()],
            attempts: 0,
            recorder: Recorder::new(files.paths()),
            process_io: ProcessIo::open(),
            unusable: Some("its parameters are not initialised"),
            _files: files,
            comm,
            plan,
            pool,
        })
    }

    /// The plan that this optimizer follows.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The ranks that this optimizer acts with.
    pub fn communicator(&self) -> &dyn Communicator {
        &*self.comm
    }

    /// This rank's part of the flat space.
    pub fn partition(&self) -> &Partition {
        self.plan.partition()
    }

    /// Hyper-parameters of every group, read anew at every step.
    pub fn groups(&self) -> &[Hyperparameters] {
        &self.groups
    }

    /// The same, to be changed between steps: a learning-rate schedule, for instance. All ranks
    /// make the same change.
    pub fn groups_mut(&mut self) -> &mut [Hyperparameters] {
        &mut self.groups
    }

    /// Updates that a parameter has taken.
    pub fn update_count(&self, param: ParamIndex) -> u64 {
        self.update_counts[param.index()]
    }

    /// Collective: what every rank has recorded since the last [`Self::reset_records`].
    ///
    /// # Errors
    /// As every collective.
    pub fn gather_records(&self) -> Result<Vec<RankRecord>> {
        let partition = self.plan.partition();
        gather_all(&*self.comm, &self.recorder.record(&*self.comm, partition.elems()))
    }

    /// Forgets timers and counters, so that warm-up can be left out.
    pub fn reset_records(&mut self) {
        self.recorder.reset();
    }

    /// Ends the optimizer, as dropping it does: waits for what is in flight, and removes the files
    /// from the drives unless the configuration keeps them.
    pub fn close(self) {
        drop(self);
    }

    /// An error if the state on the drives is of no step.
    pub(super) fn check_usable(&self) -> Result<()> {
        match self.unusable {
            None => Ok(()),
            Some(reason) => Err(Error::usage(format!("the optimizer cannot be used: {reason}"))),
        }
    }
}

/// Puts parameters of the default group into the groups that the configuration names for them.
fn with_groups(config: &Config, inventory: Inventory) -> Result<Inventory> {
    let groups = config.optimizer.groups.len() + 1;
    let parameters = inventory.parameters().iter().map(|parameter| {
        let group = match parameter.group {
            0 => config.optimizer.group_of(&parameter.name),
            group => group,
        };
        if group >= groups {
            return Err(Error::usage("a parameter is in a group that is not configured")
                .with("parameter", &parameter.name)
                .with("group", group)
                .with("groups", groups));
        }
        Ok(Parameter { group, ..parameter.clone() })
    });
    Inventory::new(parameters.collect::<Result<_>>()?)
}

/// Creates files, buffers, I/O thread and update threads.
fn open(
    plan: &Plan,
    comm: &dyn Communicator,
    directories: Vec<ShardDirectory>,
) -> Result<(ShardFiles, Swapper, rayon::ThreadPool)> {
    let config = plan.config();
    let owner = Owner::this_process(&config.job, comm.rank().0, comm.size() as u32, comm.host());
    let keep = config.drives.keep_files;
    let files = ShardFiles::create(directories, plan.placement().drive_bytes(), &owner, keep)?;
    let swapper = open_swapper(plan, comm.rank().0, &files)?;
    Ok((files, swapper, update_pool()?))
}

fn open_swapper(plan: &Plan, rank: u32, files: &ShardFiles) -> Result<Swapper> {
    let config = plan.config();
    let faults = config.faults.iter().filter(|fault| fault.rank == rank);
    let faults: Vec<FaultConfig> = faults.copied().collect();
    Swapper::open(SwapperSpec {
        engine: EngineSpec {
            choice: config.io.engine,
            depth: config.io.depth,
            files: files.handles()?,
            faults,
        },
        paths: files.paths(),
        placement: plan.placement().clone(),
        chunks: plan.partition().chunks().len(),
        buffers: allocate_buffers(plan.buffer_count(), plan.buffer_bytes())?,
        io_timeout: config.io_timeout(),
        describe: plan.describer(),
    })
}

/// A pool of this rank's own, as large as its share of processors (the affinity mask).
fn update_pool() -> Result<rayon::ThreadPool> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("optswap-cpu{index}"))
        .build()
        .map_err(|error| {
            Error::new(ErrorKind::Unavailable, "update threads cannot be started").because(error)
        })
}
