//! A job from its start to its end, whatever happens in between: go on from the drives or from a
//! checkpoint where there is one, step, save, stop when asked.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::environment::command_line;
use super::signals::{StopRequest, stop_request};
use super::table::{answer_table_request, table_request};
use crate::checkpoint::{Checkpoints, Progress};
use crate::config::Config;
use crate::coord::{Communicator, Group, gather_all};
use crate::error::{Error, ErrorKind, Result};
use crate::optim::{GradElem, ParamElem};
use crate::partition::Run;
use crate::state::Inventory;
use crate::step::{Gradients, Resumed, Sharding, StepOptions, StepOutcome, Stop, SwappedOptimizer};

/// Where a job's state came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It was initialised.
    Fresh,
    /// It lay on the drives.
    Drives(Resumed),
    /// It was loaded from a checkpoint.
    Checkpoint {
        /// Which.
        directory: PathBuf,
        /// Steps attempted up to it.
        attempt: u64,
        /// What had been handed to the last step before it was saved, by rank 0.
        user_blob: Vec<u8>,
    },
}

impl Origin {
    /// Steps attempted before this start.
    pub fn attempt(&self) -> u64 {
        match self {
            Self::Fresh => 0,
            Self::Drives(resumed) => resumed.attempt,
            Self::Checkpoint { attempt, .. } => *attempt,
        }
    }

    /// What had been handed to the last step before; empty for a new job.
    pub fn user_blob(&self) -> &[u8] {
        match self {
            Self::Fresh => &[],
            Self::Drives(resumed) => &resumed.user_blob,
            Self::Checkpoint { user_blob, .. } => user_blob,
        }
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fresh => write!(f, "a new job"),
            Self::Drives(Resumed { stamp, attempt, why, .. }) => {
                write!(f, "going on after step {attempt} from the drives: {stamp}, {why}")
            }
            Self::Checkpoint { directory, attempt, .. } => {
                write!(f, "going on after step {attempt} from checkpoint {}", directory.display())
            }
        }
    }
}

/// A job under way. All methods but the getters are collective.
pub struct Training {
    optimizer: SwappedOptimizer,
    checkpoints: Option<Checkpoints>,
    comm: Arc<dyn Communicator>,
    checkpoint_every: u64,
    grace_period: Duration,
    last_step: Duration,
    last_save: Duration,
    /// When the save under way began.
    save_begun: Option<Instant>,
}

impl Training {
    /// Starts the job: from its drives if it has committed steps there, else from its newest
    /// checkpoint, else with masters by `fill`. `params` becomes the parameters of this rank's
    /// shard, in shard order, as they are then. If the steps on the drives cannot be gone on with
    /// here (a drive or a node is gone, another number of ranks), the newest checkpoint replaces
    /// them, with a warning that names both.
    ///
    /// # Errors
    /// As [`SwappedOptimizer::create`], [`Checkpoints::load`] and
    /// [`SwappedOptimizer::initialize_parameters`].
    pub fn start<P: ParamElem>(
        config: &Config,
        inventory: Inventory,
        comm: Arc<dyn Communicator>,
        progress: Option<Progress>,
        params: &mut Vec<P>,
        fill: impl FnMut(&Run, &mut [f32]) -> Result<()>,
    ) -> Result<(Self, Origin)> {
        let sharding = Sharding::default();
        Self::start_sharded(config, inventory, comm, &sharding, progress, params, fill)
    }

    /// As [`Self::start`], with parameters dealt to ranks as the caller says.
    ///
    /// # Errors
    /// As [`Self::start`] and [`SwappedOptimizer::create_sharded`].
    pub fn start_sharded<P: ParamElem>(
        config: &Config,
        inventory: Inventory,
        comm: Arc<dyn Communicator>,
        sharding: &Sharding,
        progress: Option<Progress>,
        params: &mut Vec<P>,
        fill: impl FnMut(&Run, &mut [f32]) -> Result<()>,
    ) -> Result<(Self, Origin)> {
        let mut checkpoints = Checkpoints::open(config, Arc::clone(&comm));
        if let (Some(checkpoints), Some(progress)) = (&mut checkpoints, progress) {
            checkpoints.set_progress(progress);
        }
        let (optimizer, newest) = open(config, inventory, sharding, &comm, checkpoints.as_ref())?;
        let mut training = Self {
            optimizer,
            checkpoints,
            comm,
            checkpoint_every: config.checkpoint.every,
            grace_period: config.grace_period(),
            last_step: Duration::ZERO,
            last_save: Duration::ZERO,
            save_begun: None,
        };
        params.resize(training.optimizer.partition().elems() as usize, P::emit(0.0));
        let origin = training.fill_state(newest, params, fill)?;
        tracing::info!("{origin}");
        Ok((training, origin))
    }

    fn fill_state<P: ParamElem>(
        &mut self,
        newest: Option<PathBuf>,
        params: &mut [P],
        fill: impl FnMut(&Run, &mut [f32]) -> Result<()>,
    ) -> Result<Origin> {
        if let Some(resumed) = self.optimizer.resumed().cloned() {
            self.optimizer.emit_parameters(params)?;
            return Ok(Origin::Drives(resumed));
        }
        let (Some(checkpoints), Some(directory)) = (&self.checkpoints, newest) else {
            self.optimizer.initialize_parameters_into(params, fill)?;
            return Ok(Origin::Fresh);
        };
        let user_blob = checkpoints.load_into(&mut self.optimizer, &directory, params)?;
        Ok(Origin::Checkpoint { directory, attempt: self.optimizer.attempts(), user_blob })
    }

    /// The optimizer.
    pub fn optimizer(&self) -> &SwappedOptimizer {
        &self.optimizer
    }

    /// The optimizer, to look at its state or to change hyper-parameters.
    pub fn optimizer_mut(&mut self) -> &mut SwappedOptimizer {
        &mut self.optimizer
    }

    /// One step, and what follows from it: a checkpoint that is due begins, one that is under way
    /// ends. A failed checkpoint is a warning.
    ///
    /// # Errors
    /// As [`SwappedOptimizer::step`]. If a rank has been asked to stop, all ranks get an error of
    /// kind [`ErrorKind::Requeue`] if the job can go on later (committed, or saved), otherwise
    /// [`ErrorKind::Terminated`].
    pub fn step<G: GradElem, P: ParamElem>(
        &mut self,
        gradients: &Gradients<'_, G>,
        params: &mut [P],
        options: StepOptions<'_>,
    ) -> Result<StepOutcome> {
        let options = self.with_requests(options);
        let outcome = self.optimizer.step(gradients, params, options)?;
        self.follow_step(outcome, params, options)
    }

    /// As [`Self::step`], with the gradients that were handed over before.
    ///
    /// # Errors
    /// As [`SwappedOptimizer::step_gradients`] and [`Self::step`].
    pub fn step_gradients<P: ParamElem>(
        &mut self,
        params: &mut [P],
        options: StepOptions<'_>,
    ) -> Result<StepOutcome> {
        let options = self.with_requests(options);
        let outcome = self.optimizer.step_gradients(params, options)?;
        self.follow_step(outcome, params, options)
    }

    /// With what this process has been asked for.
    fn with_requests<'a>(&self, options: StepOptions<'a>) -> StepOptions<'a> {
        let stop = options.stop.max(self.stop_wanted());
        let wants_table = options.wants_table | table_request();
        StepOptions { stop, wants_table, ..options }
    }

    fn follow_step<P: ParamElem>(
        &mut self,
        outcome: StepOutcome,
        params: &[P],
        options: StepOptions<'_>,
    ) -> Result<StepOutcome> {
        answer_table_request(&self.optimizer, &outcome)?;
        if outcome.is_taken {
            self.last_step = outcome.duration;
        }
        if outcome.stop {
            return Err(self.stop(params)?);
        }
        let every = self.checkpoint_every;
        let is_due = every > 0 && outcome.attempt.is_multiple_of(every);
        tolerate(self.save_on(is_due, params, options.user_blob))?;
        Ok(outcome)
    }

    /// After a step: ends the save under way if it has all it needs, or if the next is due.
    fn save_on<P: ParamElem>(
        &mut self,
        is_due: bool,
        params: &[P],
        user_blob: &[u8],
    ) -> Result<()> {
        let Some(checkpoints) = &mut self.checkpoints else { return Ok(()) };
        let saved = match is_due && checkpoints.is_saving() {
            true => Some(checkpoints.finish_with(&mut self.optimizer, params)?),
            false => checkpoints.poll(&mut self.optimizer)?,
        };
        if let Some(saved) = saved {
            self.last_save = self.save_begun.take().map_or(Duration::ZERO, |begun| begun.elapsed());
            log_saved(&saved);
        }
        if is_due {
            self.save_begun = Some(Instant::now());
            checkpoints.begin(&mut self.optimizer, None, user_blob)?;
        }
        Ok(())
    }

    fn stop_wanted(&self) -> Stop {
        match stop_request() {
            None => Stop::No,
            // Half again as long as the last one, so that the commit fits too.
            Some(request) if self.time_left(request) <= self.last_step.mul_f64(1.5) => Stop::Now,
            Some(_) => Stop::AfterThisStep,
        }
    }

    fn time_left(&self, request: StopRequest) -> Duration {
        self.grace_period.saturating_sub(request.since.elapsed())
    }

    /// The error that ends a stopped job, after saving what can be saved.
    fn stop<P: ParamElem>(&mut self, params: &[P]) -> Result<Error> {
        let asked: Vec<Option<(String, i32, u64)>> = {
            let left_ms = |request| self.time_left(request).as_millis() as u64;
            let mine = stop_request().map(|it| (it.name().to_owned(), it.signal, left_ms(it)));
            gather_all(&*self.comm, &mine)?
        };
        let by = asked.iter().enumerate().find_map(|(rank, asked)| Some((rank, asked.as_ref()?)));
        let (rank, name, signal) = match by {
            Some((rank, (name, signal, _))) => (rank, name.as_str(), *signal),
            None => (0, "its caller", 0),
        };
        let left_ms = asked.iter().flatten().map(|(.., left_ms)| *left_ms).min().unwrap_or(0);
        self.optimizer.finish_report(command_line())?;
        let step = self.optimizer.attempts();
        let is_committed = self.optimizer.epoch().is_some();
        tolerate(self.save_before_end(is_committed, left_ms, params))?;
        let newest = match &self.checkpoints {
            Some(checkpoints) => checkpoints.newest()?,
            None => None,
        };
        let stopped = format!("stopped by {name} (rank {rank}) after step {step}");
        let again = "start the same command again to go on";
        let error = match (self.optimizer.epoch(), newest) {
            (Some(epoch), _) => {
                Error::new(ErrorKind::Requeue, format!("{stopped}; epoch {epoch} is committed"))
                    .hint(again)
            }
            (None, Some((_, newest))) => {
                let saved = format!("{stopped}; checkpoint {} is there", newest.display());
                Error::new(ErrorKind::Requeue, saved).hint(again)
            }
            (None, None) if signal == signal_hook::consts::SIGINT => {
                Error::new(ErrorKind::Interrupted, format!("{stopped}; nothing is saved"))
            }
            (None, None) => {
                Error::new(ErrorKind::Terminated, format!("{stopped}; nothing is saved"))
                    .hint("set durability.mode = \"step\", or checkpoint.dir, to go on later")
            }
        };
        Ok(error.agreed())
    }

    /// A checkpoint of the last state, if one is configured and there is time. A committed job
    /// needs none to go on where it is, only to go on elsewhere.
    fn save_before_end<P: ParamElem>(
        &mut self,
        is_committed: bool,
        left_ms: u64,
        params: &[P],
    ) -> Result<()> {
        let Some(checkpoints) = &mut self.checkpoints else { return Ok(()) };
        checkpoints.abandon(&mut self.optimizer);
        // All ranks must decide alike: by the slowest save so far of any rank, and a save reads
        // what a step reads and writes it elsewhere.
        let expected = self.last_save.max(2 * self.last_step).as_millis() as u64;
        let expected_ms = gather_all(&*self.comm, &expected)?.into_iter().max().unwrap_or(0);
        if is_committed && left_ms <= expected_ms {
            return Ok(());
        }
        let user_blob = self.optimizer.user_blob().to_vec();
        log_saved(&checkpoints.save_with(&mut self.optimizer, None, &user_blob, params)?);
        Ok(())
    }

    /// Ends the job: saves its last state where checkpoints go, if that is configured, and removes
    /// the files from the drives, unless the configuration keeps them. `params` are those of the
    /// shard as the last step emitted them.
    ///
    /// # Errors
    /// As [`Checkpoints::save`]; the files are still there then.
    pub fn finish<P: ParamElem>(mut self, params: &[P]) -> Result<()> {
        if let Some(checkpoints) = &mut self.checkpoints {
            let attempts = self.optimizer.attempts();
            let mut last = None;
            if checkpoints.is_saving() {
                last = Some(checkpoints.finish_with(&mut self.optimizer, params)?);
            }
            if last.as_ref().is_none_or(|saved| saved.attempts != attempts) {
                let user_blob = self.optimizer.user_blob().to_vec();
                let optimizer = &mut self.optimizer;
                last = Some(checkpoints.save_with(optimizer, None, &user_blob, params)?);
            }
            last.iter().for_each(log_saved);
        }
        self.optimizer.finish_report(command_line())?;
        // Nobody removes anything before all have come to their end.
        self.comm.barrier()?;
        self.optimizer.close();
        Ok(())
    }
}

/// Opens the optimizer where the job is the furthest: on its drives, or at the checkpoint that is
/// given too, for which the drives are then made new.
fn open(
    config: &Config,
    inventory: Inventory,
    sharding: &Sharding,
    comm: &Arc<dyn Communicator>,
    checkpoints: Option<&Checkpoints>,
) -> Result<(SwappedOptimizer, Option<PathBuf>)> {
    let newest = checkpoints.map_or(Ok(None), Checkpoints::newest)?;
    let create = SwappedOptimizer::create_sharded;
    let created = create(config, inventory.clone(), Arc::clone(comm), sharding);
    let (Some(checkpoints), Some((saved_step, newest))) = (checkpoints, newest) else {
        return Ok((created?, None));
    };
    let why = match &created {
        Ok(optimizer) => match optimizer.resumed() {
            None => return Ok((created?, Some(newest))),
            Some(resumed) if resumed.attempt >= saved_step => return Ok((created?, None)),
            Some(resumed) => format!("the drives have step {} only", resumed.attempt),
        },
        Err(error) if can_be_replaced(error) => error.to_string(),
        Err(_) => return Ok((created?, None)),
    };
    // Nothing on the drives goes before it is known that the checkpoint can be loaded.
    let on_drives = created.as_ref().ok().and_then(SwappedOptimizer::resumed);
    let reached = on_drives.map(|resumed| resumed.attempt);
    let group = Group::discover(comm, sharding.shared.clone())?;
    let whole = checkpoints.newest_whole(&inventory, &group)?;
    match whole.filter(|(saved_step, _)| reached.is_none_or(|reached| *saved_step > reached)) {
        None => Ok((created?, None)),
        Some((saved_step, directory)) => {
            drop(created);
            let path = directory.display();
            tracing::warn!("{why}\n  checkpoint {path} of step {saved_step} takes their place");
            let create = SwappedOptimizer::create_anew_sharded;
            let optimizer = create(config, inventory, Arc::clone(comm), sharding)?;
            Ok((optimizer, Some(directory)))
        }
    }
}

/// A checkpoint that all ranks have failed to save is a warning: training goes on without it.
fn tolerate(saved: Result<()>) -> Result<()> {
    match saved {
        Err(error) if error.is_agreed() && !error.kind().is_damage() => {
            tracing::warn!("no checkpoint: {error}");
            Ok(())
        }
        saved => saved,
    }
}

fn log_saved(saved: &crate::checkpoint::Saved) {
    tracing::info!("checkpoint of step {} saved: {}", saved.attempts, saved.directory.display());
}

/// Whether a checkpoint may take the place of what is on the drives.
fn can_be_replaced(error: &Error) -> bool {
    error.is_agreed() && matches!(error.kind(), ErrorKind::StateUnavailable | ErrorKind::StateLost)
}

const _: fn() = || {
    fn is_send<T: Send>() {}
    is_send::<Training>();
};
