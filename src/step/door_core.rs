//! The caller's own update, by handle: values without lifetimes, each checked when it is used, for
//! callers in other languages. [`super::SubGroups`] is the same for Rust, checked by the compiler.

use super::door_chunk::LentChunk;
use super::gradients::{Gradients, ShardGradients};
use super::optimizer::SwappedOptimizer;
use super::passage::Parts;
use super::run::{Begun, StepOptions, StepOutcome, halves_of};
use super::source::StepGradients;
use crate::coord::Phase;
use crate::error::{Error, Result};
use crate::optim::{GradElem, ParamElem};
use crate::swap::{ChunkHandle, SweepKind};
use crate::timers::{NO_CHUNK, Timer};
use crate::units::{ChunkIndex, ParamIndex};

/// An update that the caller makes.
pub(super) struct Pass {
    begun: Begun,
    /// The parameters that have a gradient, and whether each chunk has any of one.
    updated: Vec<ParamIndex>,
    has_gradient: Vec<bool>,
    /// Gradients are those that were handed over before.
    pub is_stored: bool,
    /// The sub-group that is in.
    open: Option<u32>,
    /// Sub-groups, and chunks, that have been in or are.
    sub_groups: u32,
    chunks: usize,
    /// State on the drives, or on its way there, may be of no step.
    has_changed: bool,
    /// Memory for decoded values.
    spare: Vec<Vec<Vec<f32>>>,
}

impl Pass {
    pub fn new(
        begun: Begun,
        updated: Vec<ParamIndex>,
        has_gradient: Vec<bool>,
        is_stored: bool,
    ) -> Self {
        begun.activity.turn_to(Phase::SwapAndUpdate);
        Self {
            updated: if begun.outcome.skipped { Vec::new() } else { updated },
            has_gradient,
            is_stored,
            begun,
            open: None,
            sub_groups: 0,
            chunks: 0,
            has_changed: false,
            spare: Vec::new(),
        }
    }
}

/// Where a state tensor of a chunk that is swapped in lies in memory, as f32 values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateSection {
    /// The tensor's name.
    pub name: String,
    /// The address of its first value.
    pub address: usize,
    /// How many values.
    pub elems: usize,
}

impl SwappedOptimizer {
    /// Collective: begins an update that the caller makes, by handle: arguments, norm, the one
    /// all-reduce and the decision whether to skip, as [`Self::step`]. Gradients stay the caller's,
    /// who multiplies them by `grad_scale` of the outcome. [`Self::finish_update`] ends it; until
    /// then nothing else can be done with the optimizer.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn begin_update_by_handle<G: GradElem, P: ParamElem>(
        &mut self,
        gradients: &Gradients<'_, G>,
        params: &[P],
        options: StepOptions<'_>,
    ) -> Result<StepOutcome> {
        self.begin_pass(gradients, params, options).map(|(outcome, _)| outcome)
    }

    pub(super) fn begin_pass<'g, G: GradElem, P: ParamElem>(
        &mut self,
        gradients: &Gradients<'g, G>,
        params: &[P],
        options: StepOptions<'_>,
    ) -> Result<(StepOutcome, ShardGradients<'g, G>)> {
        let begun = self.begin_step()?;
        let accepted = self.accept(gradients, params, options).map(StepGradients::Borrowed);
        let kind = SweepKind::UpdateInOrder;
        let (begun, gradients) = self.decide_step(kind, begun, accepted, options)?;
        let StepGradients::Borrowed(laid_out) = gradients else {
            return Err(Error::internal("gradients that were handed over are stored"));
        };
        let has_gradient = |chunk: &crate::partition::Chunk| {
            let start = chunk.shard_offset as usize;
            laid_out.within(start..start + chunk.elems as usize).next().is_some()
        };
        let has_gradient = self.plan.partition().chunks().iter().map(has_gradient).collect();
        let pass = Pass::new(begun, laid_out.params(), has_gradient, false);
        Ok((self.pass.insert(pass).begun.outcome, laid_out))
    }

    /// Sub-groups of this rank's shard.
    pub fn sub_groups(&self) -> u32 {
        let chunks = self.plan.partition().chunks().len();
        let last = chunks.checked_sub(1).map(ChunkIndex::from_index);
        last.map_or(0, |last| self.plan.sub_group_of(last) + 1)
    }

    /// Swaps a sub-group in; its chunks come with [`Self::next_chunk_handle`], and those of later
    /// sub-groups are read meanwhile. Sub-groups come in order, each once.
    ///
    /// # Errors
    /// Usage, naming the sub-group: no update is under way, the step is skipped, another sub-group
    /// is in, this one was, or it is not the next one. Nothing has changed then.
    pub fn swap_in_optimizer_state(&mut self, sub_group: u32) -> Result<()> {
        self.swapper.check_process()?;
        let count = self.sub_groups();
        let pass = self.pass.as_mut().ok_or_else(no_update)?;
        let wrong = |message: &str| Err(Error::usage(message).with("sub-group", sub_group));
        let outcome = &pass.begun.outcome;
        if outcome.skipped || !outcome.is_taken {
            return wrong("a step that is not taken swaps no sub-group in");
        }
        if sub_group >= count {
            return wrong("there is no such sub-group")
                .map_err(|error| error.with("sub-groups", count));
        }
        if pass.open == Some(sub_group) {
            return wrong("a sub-group is swapped in twice");
        }
        if sub_group < pass.sub_groups {
            return wrong("a sub-group that was swapped out in this step is swapped in again");
        }
        if let Some(open) = pass.open {
            return wrong("a sub-group is swapped in before another is swapped out")
                .map_err(|error| error.with("still in", open));
        }
        if sub_group > pass.sub_groups {
            return wrong("sub-groups are swapped in in order")
                .map_err(|error| error.with("the next one", pass.sub_groups));
        }
        (pass.open, pass.sub_groups) = (Some(sub_group), sub_group + 1);
        Ok(())
    }

    /// Waits for the next chunk of the sub-group that is in; `None` after its last one. The caller
    /// may have as many at a time as there are buffers beside those that keep chunks in memory.
    /// `params` are the parameters of the shard.
    ///
    /// # Errors
    /// Usage if no sub-group is in, or no buffer is left; errors of the drives.
    pub fn next_chunk_handle<P: ParamElem>(&mut self, params: &[P]) -> Result<Option<ChunkHandle>> {
        self.check_params(params)?;
        let pass = self.pass.as_mut().ok_or_else(no_update)?;
        let open = pass.open.ok_or_else(|| Error::usage("no sub-group is swapped in"))?;
        let chunk = ChunkIndex::from_index(pass.chunks);
        let is_in = pass.chunks < self.plan.partition().chunks().len();
        if !is_in || self.plan.sub_group_of(chunk) != open {
            return Ok(None);
        }
        let pinned = self.plan.cached_chunks();
        let is_moving = |handle: &ChunkHandle| handle.chunk().index() >= pinned;
        let buffers = self.plan.buffer_count() - pinned;
        if pass.chunks >= pinned && self.lent.handles().filter(is_moving).count() >= buffers {
            return Err(Error::usage("every buffer is in the caller's hands")
                .with("sub-group", open)
                .with("buffers", buffers)
                .hint("swap a chunk out before the next one, or raise swap.memory_budget"));
        }
        self.check_gradient_buffers(chunk)?;
        let pass = self.pass.as_mut().ok_or_else(no_update)?;
        let mut sweep = self.swapper.resume()?;
        let timers = &mut self.recorder.timers;
        let arrived = timers.time(Timer::SwapInState, || sweep.next_chunk());
        sweep.keep();
        let arrived = arrived.inspect_err(|_| pass.has_changed = true)?;
        let resident = arrived.filter(|resident| resident.index() == chunk);
        let resident = resident.ok_or_else(|| Error::internal("another chunk has come"))?;
        pass.chunks += 1;
        let decoded = pass.spare.pop().unwrap_or_default();
        let at = self.plan.partition().chunk(chunk);
        let params = &params[at.shard_offset as usize..][..at.elems as usize];
        let uppers = halves_of(&self.plan, params);
        let Parts { mut passage, gradients, .. } = self.parts();
        let taken = passage
            .take_in(&resident, uppers)
            .and_then(|()| passage.verify_gradient(gradients, chunk, resident.gradient()));
        taken.inspect_err(|_| self.note_change())?;
        let chunk_in = LentChunk::new(&self.plan, &self.pool, resident, uppers, decoded);
        self.lent.lend(chunk, chunk_in).map(Some)
    }

    /// Where the state tensors of a chunk lie, master first. State that does not lie as fp32 on the
    /// drives is decoded here, and encoded again when the chunk is swapped out. The addresses are
    /// valid as long as the handle is.
    ///
    /// # Errors
    /// Usage if the handle is stale, of another optimizer, or was never given out.
    pub fn state_sections(&mut self, handle: ChunkHandle) -> Result<Vec<StateSection>> {
        self.swapper.check_process()?;
        let chunk = self.lent.get_mut(handle)?;
        chunk.is_exposed = true;
        let arrays = chunk.open(&self.plan).arrays;
        let sections = arrays.into_iter().zip(self.plan.tensors());
        let sections = sections.map(|(array, tensor)| StateSection {
            name: tensor.name.clone().into_owned(),
            address: array.as_mut_ptr() as usize,
            elems: array.len(),
        });
        Ok(sections.collect())
    }

    /// Gives a chunk back. If it has changed, its parameters are emitted into `params`, those of
    /// the shard, and it is written; otherwise what lies on the drives stays.
    ///
    /// # Errors
    /// Usage as [`Self::state_sections`], or if `params` has not the shard's length; nothing has
    /// changed then.
    pub fn swap_out_chunk<P: ParamElem>(
        &mut self,
        handle: ChunkHandle,
        params: &mut [P],
        has_changed: bool,
    ) -> Result<()> {
        self.swapper.check_process()?;
        self.check_params(params)?;
        let mut chunk = self.lent.take(handle)?;
        self.recorder.timers.record(Timer::OptimizerStep, chunk.since.elapsed());
        let has_changed = has_changed || chunk.has_changed;
        if has_changed {
            let at = self.plan.partition().chunk(handle.chunk());
            let params = &mut params[at.shard_offset as usize..][..at.elems as usize];
            chunk.encode(&self.plan, &self.pool, self.plan.rounder(self.attempts), params);
            let (resident, decoded) = chunk.into_parts();
            let uppers = halves_of(&self.plan, params);
            self.parts().passage.swap_out(resident, uppers);
            self.note_change();
            self.keep_spare(decoded);
        } else {
            let (resident, decoded) = chunk.into_parts();
            resident.release();
            self.keep_spare(decoded);
        }
        self.recorder.timers.turn_to(NO_CHUNK);
        Ok(())
    }

    /// Swaps out the sub-group that is in; chunks without a gradient that were not asked for stay
    /// as they are. Returns when it is on the drives, if `swap.pipeline_write` is off.
    ///
    /// # Errors
    /// Usage, naming the sub-group, if it is not in, the caller still has chunks of it, or has not
    /// asked for one with a gradient; errors of the drives.
    pub fn swap_out_optimizer_state(&mut self, sub_group: u32) -> Result<()> {
        self.swapper.check_process()?;
        let pass = self.pass.as_mut().ok_or_else(no_update)?;
        if pass.open != Some(sub_group) {
            return Err(Error::usage("a sub-group that is not in is swapped out")
                .with("sub-group", sub_group));
        }
        if let Some(handle) = self.lent.handles().next() {
            return Err(Error::usage("a sub-group is swapped out before its chunks")
                .with("sub-group", sub_group)
                .with("handle", handle));
        }
        let end = self.plan.chunks_of(sub_group).end;
        if let Some(left) = (pass.chunks..end).find(|chunk| pass.has_gradient[*chunk]) {
            return Err(Error::usage(
                "a sub-group is swapped out before its last gradient is used",
            )
            .with("sub-group", sub_group)
            .with("holding", self.plan.describe(ChunkIndex::from_index(left))));
        }
        let mut sweep = self.swapper.resume()?;
        let mut skip = || {
            while pass.chunks < end {
                sweep.next_chunk()?.into_iter().for_each(|chunk| chunk.release());
                pass.chunks += 1;
            }
            Ok(())
        };
        let skipped: Result<()> = skip();
        sweep.keep();
        skipped.inspect_err(|_| pass.has_changed = true)?;
        pass.open = None;
        if !self.plan.config().swap.pipeline_write {
            let timers = &mut self.recorder.timers;
            timers.time(Timer::SwapOutState, || self.swapper.wait_written())?;
        }
        Ok(())
    }

    /// Collective: ends an update: everything is written that must be, and all ranks agree, as at
    /// the end of [`Self::step`]. `result` is what the update came to on this rank: an error here
    /// is an error on all.
    ///
    /// # Errors
    /// Agreed. If any rank has changed anything, the optimizer is then unusable as after a step
    /// that failed; otherwise everything is as it was before.
    pub fn finish_update(&mut self, result: Result<()>) -> Result<StepOutcome> {
        self.swapper.check_process()?;
        let pass = self.pass.take().ok_or_else(no_update)?;
        let outcome = pass.begun.outcome;
        if !outcome.is_taken {
            return crate::coord::agree(&*self.comm, result).map(|()| outcome);
        }
        let is_stored = pass.is_stored;
        let ended = self.end_pass(pass, result);
        if is_stored {
            self.discard_gradients();
        }
        ended
    }

    fn end_pass(&mut self, pass: Pass, result: Result<()>) -> Result<StepOutcome> {
        let outcome = pass.begun.outcome;
        let result = result.and_then(|()| self.check_complete(&pass));
        let is_changed = |chunk: &LentChunk| chunk.has_changed || chunk.is_exposed;
        let has_changed = pass.has_changed || self.lent.contents().any(is_changed);
        self.lent.clear();
        let ends_early = result.is_err() || outcome.skipped;
        let timers = &mut self.recorder.timers;
        let ended = self.swapper.resume().and_then(|sweep| match ends_early {
            true => sweep.abandon(),
            false => timers.time(Timer::SwapOutState, || sweep.finish()),
        });
        let has_changed = has_changed || ended.is_err();
        let result = result.and(ended);
        let was_fine = result.is_ok();
        let ended = self.end_step(pass.begun, result, &pass.updated);
        if ended.as_ref().is_err_and(Error::is_agreed) {
            self.pardon_if_unchanged(has_changed, if was_fine { &pass.updated } else { &[] })?;
        }
        ended
    }

    /// Collective: after an error, the optimizer stays usable if no rank has changed anything.
    fn pardon_if_unchanged(&mut self, has_changed: bool, counted: &[ParamIndex]) -> Result<()> {
        let mut changed = [u64::from(has_changed)];
        self.comm.all_reduce_sum(&mut changed)?;
        if changed == [0] {
            counted.iter().for_each(|param| self.update_counts[param.index()] -= 1);
            self.unusable = None;
        }
        Ok(())
    }

    /// Whether every chunk with a gradient has been with the caller, and is back.
    fn check_complete(&self, pass: &Pass) -> Result<()> {
        if let Some(handle) = self.lent.handles().next() {
            return Err(
                Error::usage("an update ends before a chunk is swapped out").with("handle", handle)
            );
        }
        if let Some(open) = pass.open {
            return Err(Error::usage("an update ends before a sub-group is swapped out")
                .with("sub-group", open));
        }
        let left =
            pass.has_gradient.iter().skip(pass.chunks).position(|has_gradient| *has_gradient);
        let Some(left) = left.filter(|_| !pass.begun.outcome.skipped) else { return Ok(()) };
        let chunk = ChunkIndex::from_index(pass.chunks + left);
        Err(Error::usage("an update ends before a sub-group with gradients is swapped in")
            .with("sub-group", self.plan.sub_group_of(chunk))
            .with("holding", self.plan.describe(chunk)))
    }

    /// Gives up an update that was not ended.
    pub(super) fn forget_pass(&mut self) {
        self.lent.clear();
        if let Some(pass) = self.pass.take() {
            drop(self.swapper.resume());
            if pass.is_stored {
                self.discard_gradients();
            }
        }
    }

    fn note_change(&mut self) {
        self.pass.iter_mut().for_each(|pass| pass.has_changed = true);
    }

    fn keep_spare(&mut self, decoded: Vec<Vec<f32>>) {
        if let Some(pass) = &mut self.pass {
            pass.spare.push(decoded);
        }
    }
}

pub(super) fn no_update() -> Error {
    Error::usage("no update is under way").hint("begin one with begin_update_by_handle")
}
