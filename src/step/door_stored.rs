//! The caller's own update with the gradients that were handed over before it.

use half::bf16;

use super::door_core::{Pass, no_update};
use super::optimizer::SwappedOptimizer;
use super::run::{StepOptions, StepOutcome};
use super::source::StepGradients;
use crate::config::AccumulateIn;
use crate::error::{Error, Result};
use crate::optim::{GradElem, ParamElem};
use crate::swap::{ChunkHandle, SweepKind};
use crate::units::{ChunkIndex, ParamIndex};

/// Where gradients of a chunk that is swapped in lie in memory, in the format that
/// `gradients.accumulate_in` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GradientSection {
    /// The parameter.
    pub param: ParamIndex,
    /// The first element that it is of, within the arrays of the chunk's state.
    pub start: usize,
    /// The address of its first value. Nothing may be written there.
    pub address: usize,
    /// How many values.
    pub elems: usize,
}

impl SwappedOptimizer {
    /// Collective: as [`Self::begin_update_by_handle`], with the gradients that were handed over
    /// before: [`Self::gradient_sections`] tells where those of a chunk are. They are gone when the
    /// update has ended, in whatever way.
    ///
    /// # Errors
    /// As [`Self::step_gradients`].
    pub fn begin_update_gradients_by_handle<P: ParamElem>(
        &mut self,
        params: &[P],
        options: StepOptions<'_>,
    ) -> Result<StepOutcome> {
        self.begin_stored_pass(Ok(()), params, options)
    }

    /// Where the gradients of a chunk lie, in the order of its elements, as they were handed over:
    /// to be multiplied by `grad_scale` of the outcome. What is not among them has none. The
    /// addresses are valid as long as the handle is.
    ///
    /// # Errors
    /// Usage if the handle is stale, of another optimizer, or was never given out; or if the
    /// gradients of this update are the caller's own.
    pub fn gradient_sections(&mut self, handle: ChunkHandle) -> Result<Vec<GradientSection>> {
        self.swapper.check_process()?;
        if !self.pass.as_ref().ok_or_else(no_update)?.is_stored {
            return Err(Error::usage("the gradients of this update are the caller's own")
                .hint("begin it with begin_update_gradients_by_handle"));
        }
        match self.plan.config().gradients.accumulate_in {
            AccumulateIn::F32 => self.sections_of::<f32>(handle),
            AccumulateIn::Bf16 => self.sections_of::<bf16>(handle),
        }
    }

    fn sections_of<A: GradElem>(&mut self, handle: ChunkHandle) -> Result<Vec<GradientSection>> {
        let (plan, chunk) = (&self.plan, handle.chunk());
        let lent = self.lent.get_mut(handle)?;
        let gradients = self.gradients.of_chunk::<A>(plan, chunk, lent.resident.gradient())?;
        let at = plan.partition().chunk(chunk);
        let (start, elems) = (at.shard_offset as usize, at.elems as usize);
        let sections = gradients.within(start..start + elems);
        let sections = sections.map(|(range, fragment)| GradientSection {
            param: fragment.param,
            start: range.start - start,
            address: fragment.grad.as_ptr() as usize,
            elems: fragment.grad.len(),
        });
        Ok(sections.collect())
    }

    /// Collective: begins an update with what was handed over, unless something is `refused`.
    pub(super) fn begin_stored_pass<P: ParamElem>(
        &mut self,
        refused: Result<()>,
        params: &[P],
        options: StepOptions<'_>,
    ) -> Result<StepOutcome> {
        let begun = self.begin_step()?;
        let accepted = refused.and_then(|()| self.accept_stored(params, options));
        let store = std::mem::take(&mut self.gradients);
        // Norms are of all formats alike.
        let gradients = accepted.map(|()| StepGradients::<f32>::Stored(&store));
        let decided = self.decide_step(SweepKind::UpdateInOrder, begun, gradients, options);
        let decided = decided.map(|(begun, _)| begun);
        self.gradients = store;
        match decided {
            Err(error) => self.discard_if_used(Err(error)),
            Ok(begun) => {
                let chunks = (0..self.plan.partition().chunks().len()).map(ChunkIndex::from_index);
                let has_gradient = |chunk| self.gradients.has_gradient(&self.plan, chunk);
                let has_gradient = chunks.map(has_gradient).collect();
                let updated = self.gradients.params(&self.plan);
                let outcome = begun.outcome;
                self.pass = Some(Pass::new(begun, updated, has_gradient, true));
                Ok(outcome)
            }
        }
    }

    /// Whether there is a buffer that the next chunk's spilled gradient can come in.
    pub(super) fn check_gradient_buffers(&self, next: ChunkIndex) -> Result<()> {
        let is_stored = self.pass.as_ref().is_some_and(|pass| pass.is_stored);
        if !is_stored || !self.gradients.is_spilled(next) {
            return Ok(());
        }
        let has_gradient =
            |chunk: &&super::door_chunk::LentChunk| !chunk.resident.gradient().is_empty();
        let (held, buffers) =
            (self.lent.contents().filter(has_gradient).count(), self.plan.gradients().buffers());
        if held < buffers {
            return Ok(());
        }
        Err(Error::usage("every buffer for spilled gradients is in the caller's hands")
            .with("buffers", buffers)
            .hint("swap a chunk out before the next one, or raise swap.memory_budget"))
    }
}
