//! Between steps: waiting for what is on its way, and gradients that are handed over.

use super::optimizer::SwappedOptimizer;
use crate::coord::{Activity, Phase, agree};
use crate::error::{ErrorKind, Result};
use crate::gradients::GradientSink;
use crate::state::{LossScaler, LossScalerState};
use crate::timers::Timer;

impl SwappedOptimizer {
    /// Collective: waits until everything that is on its way has arrived: the last writes of the
    /// steps so far, and reads ahead. Chunks that `swap.cache` keeps in memory stay there, see
    /// [`Self::write_back`].
    ///
    /// # Errors
    /// Agreed: what has failed behind a step, on any rank. The optimizer is then as unusable as
    /// after a step that failed.
    pub fn flush(&mut self) -> Result<()> {
        let settled = self.check_usable().and_then(|()| self.shard.swapper.settle());
        self.agree_on_arrival(settled)
    }

    /// Collective: waits as [`Self::flush`] does, and writes the chunks that are newer in memory, so
    /// that the files hold the whole state.
    ///
    /// # Errors
    /// Agreed: what has failed behind a step, or now, on any rank. The optimizer is then as unusable
    /// as after a step that failed.
    pub fn write_back(&mut self) -> Result<()> {
        let flushed = self.check_usable().and_then(|()| {
            self.shard.swapper.flush()?;
            self.shard.swapper.settle()
        });
        self.agree_on_arrival(flushed)
    }

    fn agree_on_arrival(&mut self, flushed: Result<()>) -> Result<()> {
        let _activity = Activity::begin(&*self.comm, Phase::Sweep);
        self.record_moved();
        agree(&*self.comm, flushed).inspect_err(|error| {
            // Refused, nothing has been asked of the drives.
            if error.kind() == ErrorKind::Usage {
                return;
            }
            self.progress.unusable.get_or_insert("writes behind an earlier step failed");
        })
    }

    /// Where gradients are handed over while backward goes on, from any thread. What it takes is
    /// used by the next step with [`Gradients::HandedOver`](crate::Gradients).
    pub fn gradient_sink(&self) -> GradientSink {
        self.gradients.clone()
    }

    /// Collective: waits until the gradients that were handed over are where they belong, on every
    /// rank. A step does it too, so that this is only needed to learn of an error before it.
    ///
    /// # Errors
    /// Agreed. Usage (a piece was refused, or the last piece of a parameter has not come) leaves
    /// everything as it was. After an I/O error the gradients of all ranks are gone, but the state
    /// is whole: hand them over again.
    pub fn flush_gradients(&mut self) -> Result<()> {
        let _activity = Activity::begin(&*self.comm, Phase::Sweep);
        let mut held = self.gradients.hold();
        let flushed = self.check_usable();
        let flushed = flushed.and_then(|()| held.flush(Timer::HandOverGradient));
        self.watch.record_handed_over(&mut held);
        let agreed = agree(&*self.comm, flushed);
        if agreed.as_ref().is_err_and(|error| error.kind() != ErrorKind::Usage) {
            held.clear();
        }
        agreed
    }

    /// Forgets the gradients that were handed over since the last step. All ranks do the same. (An
    /// update that is under way keeps its own to its end.)
    pub fn discard_gradients(&mut self) {
        self.gradients.hold().clear();
    }

    /// The scaler of `[loss_scale]`: multiply the next loss by its `scale()`. It is 1 unless one is
    /// configured. The next step divides gradients by it, and then it follows the step's outcome.
    pub fn loss_scaler(&self) -> &LossScaler {
        &self.progress.loss_scaler
    }

    /// What the loss was multiplied by in the last step.
    pub fn loss_scale(&self) -> f32 {
        self.progress.loss_scale
    }

    /// Goes on from what was known of the loss scale, as from a checkpoint. All ranks do the same.
    pub(crate) fn restore_loss_scale(&mut self, loss_scale: f32, scaler: Option<LossScalerState>) {
        self.progress.loss_scale = loss_scale;
        if let Some(scaler) = scaler {
            self.progress.loss_scaler.restore(scaler);
        }
    }
}
