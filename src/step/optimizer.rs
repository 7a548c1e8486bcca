//! The swapped optimizer: an optimizer whose state lies on drives.

use std::sync::Arc;

use super::balance::Balance;
use super::checksums::Checksums;
use super::co_owned::CoOwned;
use super::custom::{LentChunk, Pass};
use super::durable::{Durable, Resumed, Snapshot};
use super::outcome::{Requests, Stop};
use super::owners::Owners;
use super::progress::Progress;
use super::records::Recorder;
use super::shard::Shard;
use super::start::{self, CreateOptions, Opened};
use super::watch::Watch;
use crate::config::Config;
use crate::coord::{Call, Checked, Communicator, Group, Topology, agree};
use crate::error::{Error, Result};
use crate::gradients::GradientSink;
use crate::io::DriveMeters;
use crate::partition::Partition;
use crate::plan::Plan;
use crate::state::{Hyperparameters, Inventory};
use crate::storage::Slots;
use crate::swap::LentChunks;
use crate::units::ParamIndex;

/// An optimizer with masters and moments on the drives. There is one on each rank, and all ranks
/// act together: every method marked as collective is called by all ranks, in the same order. An
/// error that all ranks get is agreed ([`Error::is_agreed`]). After any other error of a collective
/// method, the job must end.
///
/// It may be moved to another thread. Gradients may come from any thread at the same time, through
/// a [`GradientSink`].
pub struct SwappedOptimizer {
    /// Declared first, so dropped first: nothing is in flight when the files go.
    pub(super) shard: Shard,
    pub(super) progress: Progress,
    pub(super) watch: Watch,
    pub(super) gradients: GradientSink,
    /// `None` for a scratch job.
    pub(super) durable: Option<Durable>,
    job_id: String,
    pub(super) resumed: Option<Resumed>,
    pub(super) snapshot: Option<Snapshot>,
    /// The update by the caller that is under way.
    pub(super) pass: Option<Pass>,
    /// The chunks that the caller has at the moment.
    pub(super) lent: LentChunks<LentChunk>,
    pub(super) requests: Requests,
    /// Which rank owns what, from the first exchange on.
    pub(super) owners: Option<Owners>,
    pub(super) co_owned: CoOwned,
    pub(super) comm: Arc<dyn Communicator>,
    pub(super) group: Group,
}

impl SwappedOptimizer {
    /// Collective: checks everything, then creates this rank's files and starts its I/O thread. A
    /// durable job that has committed steps is found on its drives, in whatever order they are
    /// named now, and goes on from the newest commit that all ranks have: then [`Self::resumed`]
    /// says which, and nothing is to be initialised. Parameters of group 0 are put into the groups
    /// that the configuration names for them.
    ///
    /// # Errors
    /// The worst problem of any rank, agreed. Usage: a configuration out of range, no drives, a
    /// memory budget below the minimum; inventories that differ between ranks that share one;
    /// pieces that are wrong, overlap or leave gaps; copies of a replicated parameter that do not
    /// agree; committed steps of another model. Unavailable: a drive or shard is missing, a job of
    /// the name is alive, committed steps are of another number of ranks. Cannot create: a drive is
    /// too small. I/O, and lost state, where committed steps are damaged. After an error, a new job
    /// has left nothing on the drives, and a job that was there before is as it was.
    pub fn create(
        config: &Config,
        inventory: Inventory,
        comm: Arc<dyn Communicator>,
        options: CreateOptions,
    ) -> Result<Self> {
        let comm = Checked::over(comm);
        let _call = Call::enter(&*comm, "SwappedOptimizer::create", String::new);
        let topology = Topology::discover(&*comm)?;
        let Opened { plan, files, job_id, group, co_owned, comes_back } =
            start::open_files(config, inventory, &comm, &topology, &options)?;
        tracing::info!("{plan}");
        let meters = Arc::new(DriveMeters::new(plan.config().drives.paths.len()));
        let tracer = Recorder::tracer(&config.report);
        let threads = start::open_threads(&plan, &*comm, &files, &meters, &tracer);
        let (threads, durable) = agree(
            &*comm,
            threads
                .and_then(|it| Ok((it, start::open_records(&plan, &files, &job_id, comes_back)?))),
        )?;
        let has_own_weights = !config.drives.weights.is_empty();
        let balance = Balance::new(&plan, &files, meters, &topology, has_own_weights);
        let recorder = Recorder::new(files.paths(), Arc::clone(&tracer), config.report.trace_steps);
        let chunks = plan.partition().chunks().len();
        let gradients = (threads.spills, threads.resident);
        let mut optimizer = Self {
            progress: Progress::new(config, plan.inventory().parameters().len()),
            watch: Watch::open(config, &*comm, &plan, recorder, balance)?,
            gradients: GradientSink::new(&plan, Arc::clone(&threads.pool), gradients, tracer),
            durable,
            job_id,
            resumed: None,
            snapshot: None,
            pass: None,
            lent: LentChunks::new(chunks),
            requests: Requests::default(),
            owners: None,
            co_owned,
            shard: Shard {
                swapper: threads.swapper,
                files,
                slots: Slots::new(chunks, plan.config().is_durable()),
                checksums: Checksums::new(&plan),
                pool: threads.pool,
                arena: threads.arena,
                plan,
            },
            comm,
            group,
        };
        if comes_back {
            optimizer.go_back_to_commit()?;
        }
        Ok(optimizer)
    }

    /// The plan that this optimizer follows.
    pub fn plan(&self) -> &Plan {
        &self.shard.plan
    }

    /// The ranks that this optimizer acts with.
    pub fn communicator(&self) -> &Arc<dyn Communicator> {
        &self.comm
    }

    /// The ranks that share this rank's inventory: all ranks, unless [`CreateOptions::sharding`]
    /// says otherwise.
    pub fn shard_group(&self) -> &Group {
        &self.group
    }

    /// This rank's shard: its pieces of the parameters, its number of elements, and its chunks.
    pub fn partition(&self) -> &Partition {
        self.shard.plan.partition()
    }

    /// The hyper-parameters of every group of parameters, as the next step uses them. They begin as
    /// the configuration has them, also when a job goes on.
    pub fn param_groups(&self) -> &[Hyperparameters] {
        &self.progress.groups
    }

    /// The hyper-parameters of every group, to be changed between steps. All ranks make the same
    /// change.
    pub fn param_groups_mut(&mut self) -> &mut [Hyperparameters] {
        &mut self.progress.groups
    }

    /// Sets the learning rate of every group to `factor` times its configured one, as a schedule
    /// does at every step. All ranks give the same factor.
    ///
    /// # Errors
    /// Usage, on this rank alone, if the factor is negative, infinite or NaN.
    pub fn set_lr_factor(&mut self, factor: f64) -> Result<()> {
        if !(factor.is_finite() && factor >= 0.0) {
            return Err(Error::usage(
                "the factor of the learning rate must be finite and at least 0",
            )
            .with("factor", factor));
        }
        let configured = self.shard.plan.config().optimizer.hyperparameters();
        for (group, configured) in self.progress.groups.iter_mut().zip(configured) {
            group.lr = configured.lr * factor;
        }
        Ok(())
    }

    /// The number of updates that a parameter has taken.
    pub fn update_count(&self, param: ParamIndex) -> u64 {
        self.progress.update_counts[param.index()]
    }

    /// The number of steps attempted so far, skipped ones included, over all starts of the job.
    pub fn attempts(&self) -> u64 {
        self.progress.attempts
    }

    /// What tells this creation of the job from all others of its name.
    pub(crate) fn job_id(&self) -> &str {
        &self.job_id
    }

    /// The bytes that were given as [`StepOptions::user_blob`](super::StepOptions) with the last
    /// step.
    pub fn user_blob(&self) -> &[u8] {
        &self.progress.user_blob
    }

    /// Notes that this rank has been asked to stop, or with [`Stop::No`] that it no longer is. All
    /// ranks learn of it in the next step: [`StepOutcome::stop`](super::StepOutcome) is true on all
    /// if any rank was asked. [`crate::Training`] calls this when a signal comes.
    pub fn request_stop(&mut self, stop: Stop) {
        self.requests.stop = stop;
    }

    /// All ranks learn in the next step that a table of the world is wanted.
    #[doc(hidden)]
    pub fn request_table(&mut self) {
        self.requests.wants_table = true;
    }

    /// Ends the job: waits for what is in flight, and removes the files from the drives, committed
    /// or not, unless the configuration keeps them. (Dropping the optimizer instead leaves what is
    /// committed, for a later start.)
    pub fn close(mut self) {
        self.forget_pass();
        // A failure here loses nothing that would be used: the state of a scratch job is removed,
        // and the commits of a durable job are on the drives.
        if self.progress.unusable.is_none()
            && let Err(error) = self.shard.swapper.flush()
        {
            tracing::warn!("the last writes failed: {error}");
        }
        self.record_moved();
        self.watch.close();
        self.shard.files.keep(self.shard.plan.config().drives.keep_files);
    }

    /// Tells the other ranks, in the collectives to come, which call this rank is in.
    pub(crate) fn enter(&self, call: &'static str) -> Call {
        Call::enter(&*self.comm, call, String::new)
    }

    /// As [`Self::enter`], for the step after those attempted so far.
    pub(crate) fn enter_step(&self, call: &'static str) -> Call {
        Call::enter(&*self.comm, call, || format!("step {}", self.progress.attempts + 1))
    }

    /// An error if the state on the drives is of no step, or an update is under way.
    pub(super) fn check_usable(&self) -> Result<()> {
        self.shard.swapper.check_process()?;
        self.progress.check_usable()?;
        self.check_no_update()
    }

    pub(super) fn check_no_update(&self) -> Result<()> {
        if self.pass.is_none() {
            return Ok(());
        }
        Err(Error::usage("an update is under way")
            .hint("end it with its finish before anything else"))
    }

    /// Counts what has been moved for steps since the last call.
    pub(super) fn record_moved(&mut self) {
        self.watch.record_moved(&mut self.shard.swapper);
    }
}

impl Drop for SwappedOptimizer {
    fn drop(&mut self) {
        // In a forked child another thread may have had the lock, which nobody gives back there.
        if self.shard.swapper.check_process().is_ok() {
            self.gradients.hold().end();
        }
    }
}

/// Any thread may have the optimizer, one at a time.
const _: fn() = || {
    fn is_send<T: Send>() {}
    is_send::<SwappedOptimizer>();
};
