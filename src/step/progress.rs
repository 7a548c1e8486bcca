//! How far training is on this rank: what a commit makes permanent beside the state.

use std::collections::BTreeMap;

use super::outcome::{StepOptions, StepOutcome, StepResult, check_user_blob};
use crate::config::Config;
use crate::coord::Alike;
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::state::{Hyperparameters, LossScaler, ScaleChange};
use crate::storage::Record;
use crate::units::ParamIndex;

/// Counts, hyper-parameters, the loss scale and the caller's user blob.
pub(super) struct Progress {
    /// Hyper-parameters of every group, as the next step uses them.
    pub groups: Vec<Hyperparameters>,
    /// Updates taken so far, per parameter of the inventory.
    pub update_counts: Vec<u64>,
    /// Steps attempted so far, over all incarnations of the job.
    pub attempts: u64,
    /// The loss scale of the last step.
    pub loss_scale: f32,
    pub loss_scaler: LossScaler,
    /// Given with the last step that was taken.
    pub user_blob: Vec<u8>,
    /// Why the state on the drives cannot be used, if it cannot: it is not initialised yet, or a
    /// step failed half-way.
    pub unusable: Option<&'static str>,
}

/// See [`Progress::before_step`].
pub(super) struct BeforeStep {
    attempts: u64,
    loss_scale: f32,
    loss_scaler: LossScaler,
    user_blob: Vec<u8>,
}

impl Progress {
    /// Before the first step.
    pub fn new(config: &Config, parameters: usize) -> Self {
        Self {
            groups: config.optimizer.hyperparameters(),
            update_counts: vec![0; parameters],
            attempts: 0,
            loss_scale: 1.0,
            loss_scaler: LossScaler::new(config.loss_scale.rule()),
            user_blob: Vec::new(),
            unusable: Some("its parameters are not initialised"),
        }
    }

    /// Checks that the state on the drives can be used.
    ///
    /// # Errors
    /// Usage, with the reason.
    pub fn check_usable(&self) -> Result<()> {
        self.unusable.map_or(Ok(()), |reason| {
            Err(Error::usage(format!("the optimizer cannot be used: {reason}")))
        })
    }

    /// Checks that a step can be taken with these hyper-parameters and options.
    ///
    /// # Errors
    /// Usage, naming the group or the loss scale.
    pub fn check_step(&self, options: StepOptions<'_>) -> Result<()> {
        check_user_blob(options.user_blob)?;
        for (group, hyper) in self.groups.iter().enumerate() {
            if let Some(problem) = hyper.problem() {
                return Err(Error::usage("hyper-parameters of a group are out of range")
                    .with("group", group)
                    .because(problem));
            }
        }
        let loss_scale = self.loss_scale_of(options);
        if !(loss_scale.is_finite() && loss_scale > 0.0) {
            return Err(Error::usage("the loss scale must be finite and above 0")
                .with("loss scale", loss_scale));
        }
        Ok(())
    }

    /// What all ranks must bring to a step alike: its number, the hyper-parameters of every group
    /// and the loss scale.
    ///
    /// # Errors
    /// Internal if these cannot be encoded.
    pub fn alike(&self, loss_scale: f32) -> Result<Alike> {
        let groups = self.groups.iter().map(|it| (it.lr, it.betas, it.eps, it.weight_decay));
        Alike::of(&(self.attempts, groups.collect::<Vec<_>>(), loss_scale))
    }

    /// The same by name, for an error.
    pub fn values_to_compare(&self, loss_scale: f32) -> BTreeMap<String, String> {
        let mut values = BTreeMap::from([
            ("step".to_owned(), (self.attempts + 1).to_string()),
            ("loss scale".to_owned(), loss_scale.to_string()),
        ]);
        for (group, hyper) in self.groups.iter().enumerate() {
            let Hyperparameters { lr, betas, eps, weight_decay } = *hyper;
            let of_group = [
                ("lr", lr.to_string()),
                ("betas", format!("{betas:?}")),
                ("eps", eps.to_string()),
                ("weight_decay", weight_decay.to_string()),
            ];
            let named = of_group.map(|(name, value)| (format!("{name} of group {group}"), value));
            values.extend(named);
        }
        values
    }

    /// What gradients are divided by.
    pub fn loss_scale_of(&self, options: StepOptions<'_>) -> f32 {
        options.loss_scale * self.loss_scaler.scale()
    }

    /// What a step changes here whatever becomes of it.
    pub fn before_step(&self) -> BeforeStep {
        BeforeStep {
            attempts: self.attempts,
            loss_scale: self.loss_scale,
            loss_scaler: self.loss_scaler,
            user_blob: self.user_blob.clone(),
        }
    }

    /// Goes back to before a step that has changed nothing on any rank, and can be used again.
    pub fn forget_step(&mut self, before: BeforeStep, counted: &[ParamIndex]) {
        counted.iter().for_each(|param| self.update_counts[param.index()] -= 1);
        let BeforeStep { attempts, loss_scale, loss_scaler, user_blob } = before;
        (self.attempts, self.loss_scale) = (attempts, loss_scale);
        (self.loss_scaler, self.user_blob) = (loss_scaler, user_blob);
        self.unusable = None;
    }

    /// Counts an update of each of these parameters.
    pub fn count_updates(&mut self, params: &[ParamIndex]) {
        params.iter().for_each(|param| self.update_counts[param.index()] += 1);
    }

    /// The update counts of a shard's pieces.
    pub fn counts_of_pieces(&self, plan: &Plan) -> Vec<u64> {
        let pieces = plan.partition().pieces().iter();
        pieces.map(|piece| self.update_counts[piece.param.index()]).collect()
    }

    /// Goes back to the values of a commit.
    pub fn restore(&mut self, plan: &Plan, record: &Record) {
        self.attempts = record.attempts;
        self.user_blob.clone_from(&record.user_blob);
        self.loss_scaler.restore(record.loss_scaler);
        for (piece, count) in plan.partition().pieces().iter().zip(&record.update_counts) {
            self.update_counts[piece.param.index()] = *count;
        }
    }

    /// Moves the loss scale as the outcome of a step demands; all ranks do the same, since they
    /// have the same outcome. (DeepSpeed ends the job when an overflow meets the smallest scale.
    /// Here the step was skipped, so nothing is lost, and it may have been a single bad batch; if
    /// overflows go on, the log has a warning at every step.)
    pub fn follow_outcome(&mut self, outcome: &StepOutcome) {
        let before = self.loss_scaler.scale();
        let change = self.loss_scaler.update(outcome.result == StepResult::Skipped);
        let (step, scale) = (outcome.attempt, self.loss_scaler.scale());
        match change {
            ScaleChange::Kept => {}
            ScaleChange::Raised | ScaleChange::Lowered => {
                tracing::info!("step {step}: the loss scale goes from {before} to {scale}");
            }
            ScaleChange::AtMinimum => tracing::warn!(
                "step {step} was skipped for an infinity or NaN although the loss scale is at its \
                 minimum, {scale}: if this goes on, training diverges or loss_scale.minimum is \
                 too high"
            ),
        }
    }
}
