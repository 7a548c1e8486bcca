//! Gradients handed over while backward goes on, and the step that uses them.

use std::time::Instant;

use super::gradient_store::{GradientStore, StoreTools};
use super::optimizer::SwappedOptimizer;
use super::run::{StepOptions, StepOutcome};
use super::source::StepGradients;
use crate::config::AccumulateIn;
use crate::coord::{Activity, Phase, agree};
use crate::error::{ErrorKind, Result};
use crate::optim::{GradElem, ParamElem};
use crate::timers::Timer;
use crate::units::ParamIndex;

impl SwappedOptimizer {
    /// Hands over the gradients of elements `offset..` of a parameter, of any format and length.
    /// They are copied, or added to those of earlier micro-batches, before this returns. A
    /// micro-batch of a parameter ends when all of this rank's share has come; pieces of it may
    /// come in any order. In the last one before a step, `is_last` is true for every piece.
    ///
    /// Where `gradients.place` says so, what is complete is written to the drives while the caller
    /// goes on. If that fails, [`Self::flush_gradients`] or the step tells all ranks.
    ///
    /// # Errors
    /// Usage, naming the parameter: unknown, beyond its end, outside of this rank's share, twice in
    /// one micro-batch, or after the last one. Nothing has changed then. All ranks are told at the
    /// next flush or step, once; the right piece may be handed over all the same. Usage on this
    /// rank alone while an update is under way.
    pub fn swap_out_gradients<G: GradElem>(
        &mut self,
        param: ParamIndex,
        offset: u64,
        piece: &[G],
        is_last: bool,
    ) -> Result<()> {
        self.check_no_update()?;
        let start = Instant::now();
        let (store, mut tools) = self.store_and_tools();
        let added = store.add(&mut tools, (param, offset), piece, is_last);
        self.recorder.timers.record(Timer::HandOverGradient, start.elapsed());
        added
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
        let flushed = self.check_usable();
        let flushed = flushed.and_then(|()| self.flush_store(Timer::HandOverGradient));
        let agreed = agree(&*self.comm, flushed);
        if agreed.as_ref().is_err_and(|error| error.kind() != ErrorKind::Usage) {
            self.discard_gradients();
        }
        agreed
    }

    /// Forgets the gradients that were handed over since the last step. All ranks do the same. (An
    /// update that is under way keeps its own to its end.)
    pub fn discard_gradients(&mut self) {
        if self.pass.is_some() {
            return;
        }
        self.gradients.clear(self.plan.partition(), &mut self.swapper);
    }

    /// Collective: as [`Self::step`], with the gradients that were handed over before. They are
    /// gone then, whether the step was taken or skipped.
    ///
    /// # Errors
    /// As [`Self::step`] and [`Self::flush_gradients`].
    pub fn step_gradients<P: ParamElem>(
        &mut self,
        params: &mut [P],
        options: StepOptions<'_>,
    ) -> Result<StepOutcome> {
        let result = match self.plan.config().gradients.accumulate_in {
            AccumulateIn::F32 => self.step_stored::<f32, P>(params, options),
            AccumulateIn::Bf16 => self.step_stored::<half::bf16, P>(params, options),
        };
        self.discard_if_used(result)
    }

    fn step_stored<A: GradElem, P: ParamElem>(
        &mut self,
        params: &mut [P],
        options: StepOptions<'_>,
    ) -> Result<StepOutcome> {
        let begun = self.begin_step()?;
        let accepted = self.accept_stored(params, options);
        let store = std::mem::take(&mut self.gradients);
        let gradients = accepted.map(|()| StepGradients::<A>::Stored(&store));
        let result = self.take_step(begun, gradients, params, options);
        self.gradients = store;
        result
    }

    /// Checks the arguments of a step with gradients that were handed over, and waits for these.
    pub(super) fn accept_stored<P: ParamElem>(
        &mut self,
        params: &[P],
        options: StepOptions<'_>,
    ) -> Result<()> {
        self.check_arguments(params, options)?;
        self.flush_store(Timer::AsyncSwapGradientWait)?;
        self.gradients.check_missing(&self.plan)
    }

    /// Forgets gradients that a step has used, or lost.
    pub(super) fn discard_if_used(&mut self, result: Result<StepOutcome>) -> Result<StepOutcome> {
        let are_used = match &result {
            Ok(outcome) => outcome.is_taken,
            Err(error) => error.kind() != ErrorKind::Usage,
        };
        if are_used {
            self.discard_gradients();
        }
        result
    }

    fn flush_store(&mut self, timer: Timer) -> Result<()> {
        let start = Instant::now();
        let (store, mut tools) = self.store_and_tools();
        let flushed = store.flush(&mut tools);
        self.recorder.timers.record(timer, start.elapsed());
        flushed
    }

    fn store_and_tools(&mut self) -> (&mut GradientStore, StoreTools<'_>) {
        let tools = StoreTools {
            plan: &self.plan,
            pool: &self.pool,
            swapper: &mut self.swapper,
            timers: &mut self.recorder.timers,
        };
        (&mut self.gradients, tools)
    }
}
