//! The swapped optimizer: AdamW whose state lies on drives.

use std::sync::Arc;

use super::checksums::Checksums;
use super::door_chunk::LentChunk;
use super::door_core::Pass;
use super::durable::{Durable, Resumed};
use super::gradient_store::GradientStore;
use super::opening::{create_files, draw_job_id, open_parts, open_swapper, reclaim};
use super::plan::Plan;
use super::preflight::{check_node_memory, check_space, neighbours};
use super::process_io::ProcessIo;
use super::records::Recorder;
use super::resume;
use super::reweigh::Balance;
use super::seats;
use super::sharding::{Sharding, deal, warn_of_drift};
use super::snapshot::Snapshot;
use super::telling;
use super::weights::starting_weights;
use crate::config::Config;
use crate::coord::{Communicator, Group, Topology, agree};
use crate::error::{Error, Result};
use crate::io::DriveMeters;
use crate::partition::Partition;
use crate::state::{Hyperparameters, Inventory, LossScaler, Parameter};
use crate::storage::{ShardFiles, Slots, inspect_drives};
use crate::swap::{LentChunks, Swapper};
use crate::telemetry::Outlet;
use crate::units::ParamIndex;

/// AdamW with master and moments on the drives: one per rank, all ranks act together. Every method
/// marked collective is called by all ranks in the same order.
pub struct SwappedOptimizer {
    /// Declared first, so dropped first: nothing is in flight when the files go.
    pub(super) swapper: Swapper,
    pub(super) files: ShardFiles,
    pub(super) comm: Arc<dyn Communicator>,
    pub(super) group: Group,
    pub(super) plan: Plan,
    pub(super) pool: rayon::ThreadPool,
    pub(super) groups: Vec<Hyperparameters>,
    /// Updates taken so far, per parameter of the inventory.
    pub(super) update_counts: Vec<u64>,
    pub(super) attempts: u64,
    /// Of the last step.
    pub(super) loss_scale: f32,
    pub(super) loss_scaler: LossScaler,
    /// Handed over since the last step.
    pub(super) gradients: GradientStore,
    pub(super) user_blob: Vec<u8>,
    pub(super) slots: Slots,
    pub(super) checksums: Checksums,
    /// `None` for a scratch job.
    pub(super) durable: Option<Durable>,
    pub(super) resumed: Option<Resumed>,
    pub(super) snapshot: Option<Snapshot>,
    /// An update that the caller makes, chunk by chunk.
    pub(super) pass: Option<Pass>,
    /// The chunks that the caller has meanwhile.
    pub(super) lent: LentChunks<LentChunk>,
    pub(super) balance: Balance,
    pub(super) recorder: Recorder,
    pub(super) process_io: ProcessIo,
    /// `None` unless the configuration names a place for reports.
    pub(super) outlet: Option<Outlet>,
    /// Set when state on the drives is of no step: not initialised yet, or a step failed half-way.
    pub(super) unusable: Option<&'static str>,
}

impl SwappedOptimizer {
    /// Collective: checks everything, then creates this rank's files and starts its I/O thread. A
    /// durable job that has committed steps is found again on its drives, whatever the order in
    /// which they are named now, and goes on from the newest commit that all ranks have: then
    /// [`Self::resumed`] tells which, and there is nothing to initialise.
    /// Parameters of group 0 are put into the groups that the configuration names for them.
    ///
    /// # Errors
    /// The worst problem of any rank, agreed: see [`crate::error::ErrorKind`]. A new job leaves
    /// nothing on the drives then, and one that was there before stays as it is.
    pub fn create(
        config: &Config,
        inventory: Inventory,
        comm: Arc<dyn Communicator>,
    ) -> Result<Self> {
        Self::create_sharded(config, inventory, comm, &Sharding::default())
    }

    /// Collective: as [`Self::create`], with parameters dealt to ranks as the caller says: its own
    /// pieces, inventories that differ between ranks.
    ///
    /// # Errors
    /// As [`Self::create`]. Usage, naming the first difference: inventories that differ between
    /// ranks that share one; pieces that are wrong, overlap or leave gaps; copies of a replicated
    /// parameter that do not agree.
    pub fn create_sharded(
        config: &Config,
        inventory: Inventory,
        comm: Arc<dyn Communicator>,
        sharding: &Sharding,
    ) -> Result<Self> {
        Self::open(config, inventory, comm, sharding, true)
    }

    /// Collective: as [`Self::create`], but what a dead job of this name has left on the drives is
    /// overwritten, committed or not: for a start from a checkpoint.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn create_anew(
        config: &Config,
        inventory: Inventory,
        comm: Arc<dyn Communicator>,
    ) -> Result<Self> {
        Self::create_anew_sharded(config, inventory, comm, &Sharding::default())
    }

    /// Collective: as [`Self::create_anew`] and [`Self::create_sharded`].
    ///
    /// # Errors
    /// As [`Self::create_sharded`].
    pub fn create_anew_sharded(
        config: &Config,
        inventory: Inventory,
        comm: Arc<dyn Communicator>,
        sharding: &Sharding,
    ) -> Result<Self> {
        Self::open(config, inventory, comm, sharding, false)
    }

    fn open(
        config: &Config,
        inventory: Inventory,
        comm: Arc<dyn Communicator>,
        sharding: &Sharding,
        looks_back: bool,
    ) -> Result<Self> {
        let topology = Topology::discover(&*comm)?;
        let config = &agree(&*comm, config.with_drives_found())?;
        let inventory = agree(&*comm, with_groups(config, inventory))?;
        let dealt = deal(&inventory, sharding, &comm)?;
        warn_of_drift(config, &inventory, &dealt.group);
        let by_rank: Vec<u32> = (0..comm.size() as u32).collect();
        let allotment = dealt.allot(&by_rank, comm.rank());
        let plan = agree(&*comm, Plan::resolve(config, inventory, &allotment))?;
        let drives = &config.drives;
        let inspected = inspect_drives(&drives.paths, &drives.allow_filesystems);
        let inspected = agree(&*comm, inspected)?;
        seats::announce(config, &*comm, &topology)?;
        let weights = starting_weights(config, &inspected, &*comm, &topology)?;
        let plan = agree(&*comm, weighed(plan, &weights))?;
        let found = match looks_back {
            true => resume::reopen(config, plan.inventory(), &dealt, &*comm)?,
            false => None,
        };
        let comes_back = found.is_some();
        let (plan, files, job_id) = match found {
            Some(found) => found,
            None => {
                let job_id = draw_job_id(&*comm)?;
                let directories = check_space(&plan, &inspected, &*comm, &topology)?;
                // On all ranks before any allocates: neighbours share the drives.
                agree(&*comm, reclaim(config, comm.size() as u32, &directories))?;
                let created = create_files(&plan, &*comm, directories, &job_id);
                let files = agree(&*comm, created)?;
                (plan, files, job_id)
            }
        };
        agree(&*comm, neighbours(&plan))?;
        check_node_memory(&plan, &*comm, &topology)?;
        tracing::info!("{plan}");
        let meters = Arc::new(DriveMeters::new(plan.config().drives.paths.len()));
        let tracer = Recorder::tracer(&config.report);
        let swapper = open_swapper(&plan, &*comm, &files, &meters, &tracer);
        let parts = swapper.and_then(|it| Ok((it, open_parts(&plan, &files, job_id, comes_back)?)));
        let ((swapper, resident), (pool, durable)) = agree(&*comm, parts)?;
        let tells_apart = !config.drives.weights.is_empty();
        let balance = Balance::new(&plan, &files, meters, &topology, tells_apart);
        let recorder = Recorder::new(files.paths(), tracer, config.report.trace_steps);
        let outlet = telling::open(config, &*comm, &plan, &recorder)?;
        let mut optimizer = Self {
            swapper,
            groups: config.optimizer.hyperparameters(),
            update_counts: vec![0; plan.inventory().parameters().len()],
            attempts: 0,
            loss_scale: 1.0,
            loss_scaler: LossScaler::new(config.loss_scale.rule()),
            gradients: GradientStore::new(&plan, resident),
            user_blob: Vec::new(),
            slots: Slots::new(plan.partition().chunks().len(), config.is_durable()),
            checksums: Checksums::new(&plan),
            durable,
            resumed: None,
            snapshot: None,
            pass: None,
            lent: LentChunks::new(plan.partition().chunks().len()),
            balance,
            recorder,
            process_io: ProcessIo::open(),
            outlet,
            unusable: Some("its parameters are not initialised"),
            files,
            comm,
            group: dealt.group,
            plan,
            pool,
        };
        if comes_back {
            optimizer.go_back_to_commit()?;
        }
        Ok(optimizer)
    }

    /// The plan that this optimizer follows.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The ranks that this optimizer acts with.
    pub fn communicator(&self) -> &dyn Communicator {
        &*self.comm
    }

    /// The ranks that share this rank's inventory: all of them, unless the caller says otherwise.
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// This rank's part of the parameters.
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

    /// What the loss was multiplied by in the last step.
    pub fn loss_scale(&self) -> f32 {
        self.loss_scale
    }

    /// Says what the loss was last multiplied by, before this optimizer was there.
    pub fn set_loss_scale(&mut self, loss_scale: f32) {
        self.loss_scale = loss_scale;
    }

    /// Ends the job: waits for what is in flight, and removes the files from the drives, committed
    /// or not, unless the configuration keeps them. (Dropping the optimizer instead leaves what is
    /// committed, for a later start.)
    pub fn close(mut self) {
        self.forget_pass();
        // What is lost here nobody would have used: a scratch job's state goes, and a durable job's
        // commits are on the drives.
        if self.unusable.is_none()
            && let Err(error) = self.swapper.flush()
        {
            tracing::warn!("the last writes failed: {error}");
        }
        self.record_moved();
        self.end_telling();
        self.files.keep(self.plan.config().drives.keep_files);
    }

    /// An error if the state on the drives is of no step.
    pub(super) fn check_usable(&self) -> Result<()> {
        self.swapper.check_process()?;
        match self.unusable {
            None => self.check_no_update(),
            Some(reason) => Err(Error::usage(format!("the optimizer cannot be used: {reason}"))),
        }
    }

    pub(super) fn check_no_update(&self) -> Result<()> {
        match self.pass {
            None => Ok(()),
            Some(_) => Err(Error::usage("an update is under way")
                .hint("end it with finish_update before anything else")),
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

/// The plan with these weights of the drives.
fn weighed(plan: Plan, weights: &[f64]) -> Result<Plan> {
    let mut config = plan.config().clone();
    if config.drive_weights() == weights {
        return Ok(plan);
    }
    weights.clone_into(&mut config.drives.weights);
    Plan::resolve(&config, plan.inventory().clone(), plan.allotment())
}

/// Any thread may have the optimizer, one at a time.
const _: fn() = || {
    fn is_send<T: Send>() {}
    is_send::<SwappedOptimizer>();
};
