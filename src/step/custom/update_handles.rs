//! The caller's own update, by handle: values without lifetimes, each checked when it is used, for
//! callers in other languages. [`super::SubGroups`] is the same for Rust, checked by the compiler.

use half::bf16;

use super::super::optimizer::SwappedOptimizer;
use super::super::outcome::{StepOptions, StepOutcome};
use super::super::parameters::ParameterSink;
use super::sections::{GradientSection, StateSection};
use super::update::no_update;
use crate::config::AccumulateIn;
use crate::error::{Error, Result};
use crate::gradients::Gradients;
use crate::optim::GradElem;
use crate::swap::ChunkHandle;

/// Whether a chunk that is given back has other values than it came with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The chunk is written, and its parameters are emitted.
    Changed,
    /// The chunk is not written.
    Unchanged,
}

/// An optimizer's update by handle, from [`SwappedOptimizer::handles`]. Sub-groups come in order,
/// each once; the chunks of the one that is in come one after the other, and those of later ones
/// are read meanwhile. Until [`Self::finish`], nothing else can be done with the optimizer.
pub struct UpdateHandles<'o> {
    optimizer: &'o mut SwappedOptimizer,
}

impl SwappedOptimizer {
    /// The update that the caller makes by handle, to begin one or to go on with one that is under
    /// way.
    pub fn handles(&mut self) -> UpdateHandles<'_> {
        UpdateHandles { optimizer: self }
    }
}

impl UpdateHandles<'_> {
    /// Collective: begins an update. It checks the arguments, takes the norm, and decides with all
    /// ranks whether the step is skipped. The caller multiplies gradients by the outcome's
    /// `grad_scale`, those in its own memory and those that were handed over before;
    /// [`Self::gradient_sections`] has the addresses of the latter.
    ///
    /// # Errors
    /// Agreed. Usage leaves everything as it was: gradients that do not fit the shard or are only
    /// partly there, parameters of another length or format, hyper-parameters out of range, an
    /// optimizer without initial state. After an I/O error the optimizer is unusable; a durable job
    /// can go back to its last commit with [`SwappedOptimizer::recover`].
    pub fn begin<G: GradElem, S: ParameterSink + ?Sized>(
        &mut self,
        gradients: &Gradients<'_, G>,
        params: &mut S,
        options: StepOptions<'_>,
    ) -> Result<StepOutcome> {
        if !matches!(gradients, Gradients::HandedOver) {
            return Ok(self.optimizer.begin_pass(gradients, params, options)?.0);
        }
        // In whatever format they are kept: their sections are addresses.
        match self.optimizer.plan().config().gradients.accumulate_in {
            AccumulateIn::F32 => self.begin_handed_over::<f32, S>(params, options),
            AccumulateIn::Bf16 => self.begin_handed_over::<bf16, S>(params, options),
        }
    }

    fn begin_handed_over<A: GradElem, S: ParameterSink + ?Sized>(
        &mut self,
        params: &mut S,
        options: StepOptions<'_>,
    ) -> Result<StepOutcome> {
        Ok(self.optimizer.begin_pass(&Gradients::<A>::HandedOver, params, options)?.0)
    }

    /// Swaps a sub-group in; they are numbered from 0 and come in order.
    ///
    /// # Errors
    /// Usage, naming the sub-group: no update is under way, the step is skipped, another sub-group
    /// is in, this one was, or it is not the next one. Nothing has changed then.
    pub fn swap_in_optimizer_state(&mut self, sub_group: u32) -> Result<()> {
        self.optimizer.swap_in_sub_group(sub_group)
    }

    /// Waits for the next chunk of the sub-group that is in; `None` after its last one. The caller
    /// may have as many at a time as there are buffers beside those that keep chunks in memory.
    /// `params` are the parameters of the shard.
    ///
    /// # Errors
    /// Usage if no sub-group is in, or no buffer is left; errors of the drives.
    pub fn next_chunk<S: ParameterSink + ?Sized>(
        &mut self,
        params: &mut S,
    ) -> Result<Option<ChunkHandle>> {
        self.optimizer.next_lent_chunk(params)
    }

    /// Where the state tensors of a chunk lie in memory, the master first. State that does not lie
    /// as fp32 on the drives has been decoded, and is encoded again when the chunk is swapped out.
    /// The addresses are valid as long as the handle is.
    ///
    /// # Errors
    /// Usage if the handle is stale, of another optimizer, or was never given out.
    pub fn state_sections(&mut self, handle: ChunkHandle) -> Result<Vec<StateSection>> {
        let SwappedOptimizer { shard, lent, .. } = &mut *self.optimizer;
        shard.swapper.check_process()?;
        let chunk = lent.get_mut(handle)?;
        chunk.is_exposed = true;
        let arrays = chunk.open(&shard.plan).arrays;
        let sections = arrays.into_iter().zip(shard.plan.tensors());
        let sections = sections.map(|(array, tensor)| StateSection {
            name: tensor.name.clone().into_owned(),
            address: array.as_mut_ptr() as usize,
            elems: array.len(),
        });
        Ok(sections.collect())
    }

    /// Where the gradients of a chunk lie that were handed over before, in the order of its
    /// elements. They are to be multiplied by the outcome's `grad_scale`. Elements that no section
    /// covers have no gradient. The addresses are valid as long as the handle is.
    ///
    /// # Errors
    /// Usage if the handle is stale, of another optimizer, or was never given out; or if the
    /// gradients of this update are in the caller's memory.
    pub fn gradient_sections(&mut self, handle: ChunkHandle) -> Result<Vec<GradientSection>> {
        self.optimizer.shard.swapper.check_process()?;
        match self.optimizer.shard.plan.config().gradients.accumulate_in {
            AccumulateIn::F32 => self.gradient_sections_of::<f32>(handle),
            AccumulateIn::Bf16 => self.gradient_sections_of::<bf16>(handle),
        }
    }

    fn gradient_sections_of<A: GradElem>(
        &mut self,
        handle: ChunkHandle,
    ) -> Result<Vec<GradientSection>> {
        let SwappedOptimizer { shard, lent, pass, .. } = &mut *self.optimizer;
        let pass = pass.as_ref().ok_or_else(no_update)?;
        let store = pass.stored.as_ref().ok_or_else(|| {
            Error::usage("the gradients of this update are the caller's own")
                .hint("begin it with Gradients::HandedOver")
        })?;
        let (plan, chunk) = (&shard.plan, handle.chunk());
        let chunk_in = lent.get_mut(handle)?;
        let gradients = store.of_chunk::<A>(plan, chunk, chunk_in.resident.gradient())?;
        let live = plan.partition().chunk(chunk).in_shard();
        let sections = gradients.within(live.clone()).map(|(range, fragment)| GradientSection {
            param: fragment.param,
            start: range.start - live.start,
            address: fragment.grad.as_ptr() as usize,
            elems: fragment.grad.len(),
        });
        Ok(sections.collect())
    }

    /// Gives a chunk back. If it has changed, its parameters are emitted into `params`, those of
    /// the shard, and it is written; otherwise what lies on the drives stays.
    ///
    /// # Errors
    /// Usage if the handle is stale, of another optimizer, or was never given out, or if `params`
    /// does not fit the shard; nothing has changed then.
    pub fn swap_out_chunk<S: ParameterSink + ?Sized>(
        &mut self,
        handle: ChunkHandle,
        params: &mut S,
        change: Change,
    ) -> Result<()> {
        self.optimizer.return_chunk(handle, params, change == Change::Changed)
    }

    /// Swaps out the sub-group that is in; chunks without a gradient that were not asked for stay
    /// as they are. Returns when it is on the drives, if `swap.pipeline_write` is off.
    ///
    /// # Errors
    /// Usage, naming the sub-group, if it is not in, the caller still has chunks of it, or has not
    /// asked for one with a gradient; errors of the drives.
    pub fn swap_out_optimizer_state(&mut self, sub_group: u32) -> Result<()> {
        self.optimizer.swap_out_sub_group(sub_group)
    }

    /// Collective: ends the update as a step ends: it waits for the writes that must be on the
    /// drives, counts the updates, commits the step if that is due, and agrees on the outcome.
    /// `result` is the result of the update on this rank; an error here is an error on all ranks.
    ///
    /// # Errors
    /// Agreed: an error in the `result` of any rank; errors of the drives; usage if a chunk with a
    /// gradient was left out or not given back. If any rank has changed anything, the optimizer is
    /// unusable afterwards, and a durable job can go back to its last commit with
    /// [`SwappedOptimizer::recover`]; otherwise everything is as it was before.
    pub fn finish(self, result: Result<()>) -> Result<StepOutcome> {
        self.optimizer.end_update(result)
    }
}
