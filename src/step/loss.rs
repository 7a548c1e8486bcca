//! The loss scale of a job: what the next loss is multiplied by follows from how steps ended, and
//! so is the same on every rank.

use super::optimizer::SwappedOptimizer;
use super::run::{StepOptions, StepOutcome};
use crate::state::{LossScaler, LossScalerState, ScaleChange};

impl SwappedOptimizer {
    /// The scaler of `[loss_scale]`: multiply the next loss by its `scale()`. It is 1 unless one is
    /// configured. The next step divides gradients by it, and then it follows the step's outcome.
    pub fn loss_scaler(&self) -> &LossScaler {
        &self.loss_scaler
    }

    /// Goes on from what a scaler has remembered, as that of a checkpoint. All ranks do the same.
    pub fn restore_loss_scaler(&mut self, state: LossScalerState) {
        self.loss_scaler.restore(state);
    }

    /// What gradients are divided by.
    pub(super) fn loss_scale_of(&self, options: StepOptions<'_>) -> f32 {
        options.loss_scale * self.loss_scaler.scale()
    }

    /// The norm was agreed, and so is what follows from it. (DeepSpeed ends the job when an
    /// overflow meets the smallest scale. Here the step was skipped, so nothing is lost, and a bad
    /// batch may be all there was; if it goes on, the log says so at every step.)
    pub(super) fn follow_outcome(&mut self, outcome: &StepOutcome) {
        let before = self.loss_scaler.scale();
        let change = self.loss_scaler.update(outcome.skipped);
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
