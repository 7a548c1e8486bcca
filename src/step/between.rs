//! Between steps: waiting for what is on its way, and gradients that are handed over.

use super::optimizer::SwappedOptimizer;
use crate::coord::{Activity, Phase, agree};
use crate::error::{ErrorKind, Result};
use crate::gradients::GradientSink;
use crate::state::{LossScaler, LossScalerState};
use crate::timers::Timer;

impl SwappedOptimizer {
    /// Collective: waits for the I/O that is under way: the last writes of the steps so far, and
    /// reads ahead. Chunks that `swap.cache` keeps in memory stay there; [`Self::write_back`]
    /// writes them as well.
    ///
    /// # Errors
    /// Agreed: I/O, if a write behind a step has failed on any rank. Then the optimizer is
    /// unusable; a durable job can go back to its last commit with [`Self::recover`].
    pub fn flush(&mut self) -> Result<()> {
        let _call = self.enter("flush");
        let settled = self.check_usable().and_then(|()| self.shard.swapper.settle());
        self.agree_on_arrival(settled)
    }

    /// Collective: waits as [`Self::flush`] does, and writes the chunks that are newer in memory,
    /// so that the files hold the whole state.
    ///
    /// # Errors
    /// Agreed: I/O, if a write behind a step, or one of these, has failed on any rank. Then the
    /// optimizer is unusable; a durable job can go back to its last commit with [`Self::recover`].
    pub fn write_back(&mut self) -> Result<()> {
        let _call = self.enter("write_back");
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

    /// The sink for gradients that are handed over while backward goes on, from any thread. The
    /// next step with [`Gradients::HandedOver`](crate::Gradients) uses them.
    pub fn gradient_sink(&self) -> GradientSink {
        self.gradients.clone()
    }

    /// Collective: waits until the gradients that were handed over are where they belong, on every
    /// rank. A step does this too, so call it only to learn of an error before the step.
    ///
    /// # Errors
    /// Agreed. Usage leaves everything as it was: a piece was refused, or the last piece of a
    /// parameter has not come. After an I/O error the gradients of all ranks are lost, but the
    /// state is whole: they may be handed over again.
    pub fn flush_gradients(&mut self) -> Result<()> {
        let _call = self.enter("flush_gradients");
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
