//! A job from its start to its end: it goes on from the drives or from a checkpoint where there is
//! one, steps, saves checkpoints, and stops when asked.

mod builder;
mod gradients;
mod origin;
mod saving;
mod start;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytemuck::Pod;
use serde::Serialize;
use serde::de::DeserializeOwned;

use self::gradients::Collected;
use crate::checkpoint::Checkpoints;
use crate::config::{AccumulateIn, Config, GradientPlace};
use crate::coord::{Communicator, agree, mean_over_ranks};
use crate::error::{Error, Result};
use crate::gradients::{Gradients, MicroBatch};
use crate::optim::{GradElem, ParamElem};
use crate::step::{StepOptions, StepOutcome, SwappedOptimizer, UpdateRun, check_user_blob};
use crate::units::ParamIndex;

pub use builder::TrainingBuilder;
pub use origin::Origin;

/// A job under way, with this rank's shard of the parameters in the number format `P`. All methods
/// but the getters and setters are collective: all ranks call them, in the same order.
///
/// What it adds to a [`SwappedOptimizer`] is a job that survives: it goes on from where it was
/// killed, saves checkpoints while training goes on, and ends in order when a signal asks it to.
pub struct Training<P> {
    optimizer: SwappedOptimizer,
    checkpoints: Option<Checkpoints>,
    origin: Origin,
    params: Vec<P>,
    gradients: Collected,
    /// Committed with the next step.
    user_blob: Vec<u8>,
    checkpoint_every: u64,
    grace_period: Duration,
    last_step: Duration,
    last_save: Duration,
    /// When the save under way began.
    save_begun: Option<Instant>,
}

impl Training<f32> {
    /// Describes a job of this configuration on the ranks of `comm`; [`TrainingBuilder::start`]
    /// starts it.
    pub fn builder(config: &Config, comm: Arc<dyn Communicator>) -> TrainingBuilder<'_> {
        TrainingBuilder::new(config, comm)
    }
}

impl<P: ParamElem> Training<P> {
    fn new(
        config: &Config,
        optimizer: SwappedOptimizer,
        checkpoints: Option<Checkpoints>,
        origin: Origin,
        params: Vec<P>,
    ) -> Self {
        let gradients = Collected::new(optimizer.partition());
        Self {
            user_blob: origin.user_blob().to_vec(),
            checkpoint_every: config.checkpoint.every,
            grace_period: config.grace_period(),
            last_step: Duration::ZERO,
            last_save: Duration::ZERO,
            save_begun: None,
            optimizer,
            checkpoints,
            origin,
            params,
            gradients,
        }
    }

    /// Where the state came from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The optimizer beneath.
    pub fn optimizer(&self) -> &SwappedOptimizer {
        &self.optimizer
    }

    /// The optimizer beneath, to look at its state or to change hyper-parameters. (Its own `step`
    /// begins no checkpoints and heeds no signals.)
    pub fn optimizer_mut(&mut self) -> &mut SwappedOptimizer {
        &mut self.optimizer
    }

    /// The optimizer and the parameters of this rank's shard, for calls that take both.
    pub fn optimizer_and_params(&mut self) -> (&mut SwappedOptimizer, &[P]) {
        (&mut self.optimizer, &self.params)
    }

    /// The parameters of this rank's shard, in shard order, as the last step emitted them.
    pub fn params(&self) -> &[P] {
        &self.params
    }

    /// Number of elements of all parameters of the inventory together: the length of a slice with
    /// the whole model.
    pub fn total_elems(&self) -> usize {
        self.optimizer.plan().inventory().total_elems() as usize
    }

    /// The number of the next step, from 1, if it is one of the first `steps`.
    pub fn next_step(&self, steps: u64) -> Option<u64> {
        let next = self.optimizer.attempts() + 1;
        (next <= steps).then_some(next)
    }

    /// Sets the learning rate of every group to `factor` times its configured one. All ranks give
    /// the same factor.
    ///
    /// # Errors
    /// Usage if the factor is negative, infinite or NaN.
    pub fn set_lr_factor(&mut self, factor: f64) -> Result<()> {
        self.optimizer.set_lr_factor(factor)
    }

    /// What the next loss is to be multiplied by: 1 unless `[loss_scale]` says otherwise.
    pub fn loss_scale(&self) -> f32 {
        self.optimizer.loss_scaler().scale()
    }

    /// Sets what is committed with the next step and saved with the next checkpoint, as JSON: the
    /// position in the training data, for instance. Every rank may give a value of its own. It
    /// stays with the rank's shard, so on as many ranks everyone gets back what was given for its
    /// shard, from the drives as from a checkpoint. On another number of ranks all get that of rank
    /// 0, with a warning if the values differed; [`Self::saved_user_states`] has all of them.
    ///
    /// # Errors
    /// Usage if the value cannot be written as JSON, or takes more than
    /// [`StepOptions::USER_BLOB_BYTES_MAX`].
    pub fn set_user_state(&mut self, state: &impl Serialize) -> Result<()> {
        let bytes = serde_json::to_vec(state)
            .map_err(|error| Error::usage("the user's state is no JSON").because(error))?;
        check_user_blob(&bytes)?;
        self.user_blob = bytes;
        Ok(())
    }

    /// What was given to [`Self::set_user_state`] before the step that this job goes on from;
    /// `None` for a new job.
    ///
    /// # Errors
    /// Usage if the committed value is of another type.
    pub fn user_state<T: DeserializeOwned>(&self) -> Result<Option<T>> {
        if self.user_blob.is_empty() {
            return Ok(None);
        }
        of_json(&self.user_blob).map(Some)
    }

    /// What every rank had given before the checkpoint that this job goes on from, in the order of
    /// ranks, for a job that now has another number of them; empty if it goes on from its drives or
    /// is new. It is read from the checkpoint, so call this before the next one is saved.
    ///
    /// # Errors
    /// Unavailable or I/O if the checkpoint cannot be read any more; usage if a value is of another
    /// type.
    pub fn saved_user_states<T: DeserializeOwned>(&self) -> Result<Vec<T>> {
        let Origin::Checkpoint { directory, .. } = &self.origin else { return Ok(Vec::new()) };
        let blobs = Checkpoints::user_blobs(directory)?;
        blobs.iter().filter(|blob| !blob.is_empty()).map(|blob| of_json(blob)).collect()
    }

    /// Collective: adds the gradients of all parameters over the ranks that share them, for the
    /// next step. `full` has every parameter, end to end in the order of the inventory. Unless
    /// `gradients.place` leaves gradients with the caller, the sums are handed over, and lie in
    /// memory or on the drives until the step.
    ///
    /// # Errors
    /// Usage, on this rank alone: `full` has another length than all parameters together, or
    /// gradients have been given before in this step. Peer, not agreed, if another rank does not
    /// come in time.
    pub fn reduce_gradients(&mut self, full: &[f32]) -> Result<()> {
        self.gradients.check_new(None, self.optimizer.plan().inventory())?;
        let shard = self.gradients.values_mut();
        self.optimizer.reduce_gradients(full, shard)?;
        self.gradients.note_all();
        self.hand_over(None)
    }

    /// Collective: adds the gradients of one parameter over the ranks that share it, for the next
    /// step. All ranks name the same parameter, in the same order. A parameter that is not given
    /// has no gradient.
    ///
    /// # Errors
    /// Usage, on this rank alone: an unknown parameter, a slice of another length than the
    /// parameter, or a gradient that has been given before in this step. Peer, not agreed, if
    /// another rank does not come in time.
    pub fn reduce_gradient(&mut self, param: ParamIndex, full: &[f32]) -> Result<()> {
        self.gradients.check_new(Some(param), self.optimizer.plan().inventory())?;
        let shard = self.gradients.values_mut();
        self.optimizer.reduce_gradient(param, full, shard)?;
        // Also where this rank owns none of it, so that all ranks refuse it the next time.
        self.gradients.note(param);
        self.hand_over(Some(param))
    }

    /// Gives the gradients of this rank's shard for the next step, in shard order, as they have
    /// been reduced elsewhere.
    ///
    /// # Errors
    /// Usage, on this rank alone: a slice of another length than the shard, or gradients that have
    /// been given before in this step.
    pub fn set_gradients(&mut self, shard: &[f32]) -> Result<()> {
        self.gradients.check_new(None, self.optimizer.plan().inventory())?;
        let values = self.gradients.values_mut();
        if shard.len() != values.len() {
            return Err(Error::usage("a shard's gradients have another length than the shard")
                .with("gradients", shard.len())
                .with("shard", values.len()));
        }
        values.copy_from_slice(shard);
        self.gradients.note_all();
        self.hand_over(None)
    }

    /// The gradients of this rank's shard that have been reduced for the next step, in shard order.
    pub fn shard_gradients(&self) -> &[f32] {
        self.gradients.values()
    }

    fn is_handed_over(&self) -> bool {
        self.optimizer.plan().config().gradients.place != GradientPlace::Caller
    }

    /// Hands reduced gradients over unless they stay with the caller: the last parameters first,
    /// the order in which backward produces them.
    fn hand_over(&mut self, param: Option<ParamIndex>) -> Result<()> {
        if !self.is_handed_over() {
            return Ok(());
        }
        let sink = self.optimizer.gradient_sink();
        for piece in self.optimizer.partition().pieces().iter().rev() {
            if param.is_none_or(|param| param == piece.param) {
                let values = &self.gradients.values()[piece.in_shard()];
                sink.add(piece.param, piece.param_offset, values, MicroBatch::Last)?;
            }
        }
        Ok(())
    }

    /// Collective: one step with the gradients that were reduced, or handed over through the
    /// optimizer's [`GradientSink`](crate::GradientSink), and what follows from it: a checkpoint
    /// that is due begins, one that is under way ends. A failed checkpoint is a warning.
    ///
    /// # Errors
    /// Agreed. Usage leaves everything as it was: gradients that are only partly there,
    /// hyper-parameters out of range. I/O, and lost state, end training: a durable job goes on from
    /// its last commit when it is started again. If a rank has been asked to stop, all ranks get an
    /// error of kind [`ErrorKind::Requeue`](crate::ErrorKind) if the job can go on later
    /// (committed, or saved), otherwise [`ErrorKind::Terminated`](crate::ErrorKind).
    pub fn step(&mut self) -> Result<StepOutcome> {
        let _call = self.optimizer.enter_step("step");
        let collected = std::mem::take(&mut self.gradients);
        let result = if self.is_handed_over() {
            self.step_on(&Gradients::handed_over())
        } else {
            self.step_on(&collected.gradients(self.optimizer.partition()))
        };
        self.gradients = collected.emptied();
        result
    }

    /// Collective: one step with gradients that the caller names, those of this rank's shard, and
    /// otherwise as [`Self::step`].
    ///
    /// # Errors
    /// Agreed. Usage leaves everything as it was: gradients that do not fit the shard or are only
    /// partly there, hyper-parameters out of range. I/O, and lost state, end training: a durable
    /// job goes on from its last commit when it is started again. If a rank has been asked to stop,
    /// [`ErrorKind::Requeue`](crate::ErrorKind) if the job can go on later, otherwise
    /// [`ErrorKind::Terminated`](crate::ErrorKind).
    pub fn step_on<G: GradElem>(&mut self, gradients: &Gradients<'_, G>) -> Result<StepOutcome> {
        let _call = self.optimizer.enter_step("step");
        self.pass_requests_on();
        let options = StepOptions { user_blob: &self.user_blob, ..StepOptions::default() };
        let outcome = self.optimizer.step(gradients, &mut self.params, options)?;
        self.follow_step(outcome)
    }

    /// Collective: one step with an update of the caller's own, with everything that [`Self::step`]
    /// does around it. `update` is called for every run of elements of one parameter that has a
    /// gradient, with the run, its gradient, and its state: arrays of as many f32 values as the run
    /// has elements. The gradient is unscaled and clipped already. The state, to be changed in
    /// place, is the masters, then the state tensors in the order in which `optimizer.own` declares
    /// them.
    ///
    /// # Errors
    /// Agreed. An error of `update` on any rank is one on all. Usage leaves everything as it was:
    /// gradients that are only partly there, hyper-parameters out of range. I/O, and lost state,
    /// end training: a durable job goes on from its last commit when it is started again. If a rank
    /// has been asked to stop, [`ErrorKind::Requeue`](crate::ErrorKind) if the job can go on later,
    /// otherwise [`ErrorKind::Terminated`](crate::ErrorKind).
    pub fn step_with(
        &mut self,
        update: impl FnMut(&UpdateRun<'_, f32>, &[f32], &mut [&mut [f32]]) -> Result<()>,
    ) -> Result<StepOutcome> {
        let _call = self.optimizer.enter_step("step");
        let collected = std::mem::take(&mut self.gradients);
        let result = if !self.is_handed_over() {
            let gradients = collected.gradients(self.optimizer.partition());
            self.update_with(&gradients, update)
        } else if self.optimizer.plan().config().gradients.accumulate_in == AccumulateIn::F32 {
            self.update_with(&Gradients::<f32>::HandedOver, update)
        } else {
            self.update_with(&Gradients::<half::bf16>::HandedOver, update)
        };
        self.gradients = collected.emptied();
        result
    }

    fn update_with<G: GradElem>(
        &mut self,
        gradients: &Gradients<'_, G>,
        mut update: impl FnMut(&UpdateRun<'_, f32>, &[f32], &mut [&mut [f32]]) -> Result<()>,
    ) -> Result<StepOutcome> {
        self.pass_requests_on();
        let options = StepOptions { user_blob: &self.user_blob, ..StepOptions::default() };
        let mut groups = self.optimizer.begin_update(gradients, &mut self.params, options)?;
        let updated = groups.for_each_gradient(&mut update);
        let outcome = groups.finish(updated)?;
        self.follow_step(outcome)
    }

    /// Collective: writes every element of all parameters to `full`, end to end in the order of the
    /// inventory.
    ///
    /// # Errors
    /// Usage, on this rank alone, if `full` has not [`Self::total_elems`] elements. Peer, not
    /// agreed, if another rank does not come in time.
    pub fn gather_parameters(&mut self, full: &mut [P]) -> Result<()>
    where
        P: Pod,
    {
        self.optimizer.gather_parameters(&self.params, full)
    }

    /// Collective: the mean of a value, such as a loss, over all ranks. Every rank gets the same
    /// bits.
    ///
    /// # Errors
    /// Peer, not agreed, if another rank does not come in time.
    pub fn mean(&self, value: f64) -> Result<f64> {
        let _call = self.optimizer.enter("mean");
        mean_over_ranks(&**self.optimizer.communicator(), value)
    }

    /// Collective: gives every rank the worst result of any, so that what has failed on one fails
    /// on all.
    ///
    /// # Errors
    /// Agreed: the worst error of any rank, by exit code.
    pub fn agree<T>(&self, result: Result<T>) -> Result<T> {
        let _call = self.optimizer.enter("agree");
        agree(&**self.optimizer.communicator(), result)
    }
}

fn of_json<T: DeserializeOwned>(blob: &[u8]) -> Result<T> {
    serde_json::from_slice(blob).map_err(|error| {
        Error::usage("the user's state that was committed is of another type").because(error)
    })
}

/// The job may be moved to another thread.
const _: fn() = || {
    fn is_send<T: Send>() {}
    is_send::<Training<f32>>();
};
