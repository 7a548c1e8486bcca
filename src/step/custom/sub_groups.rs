//! The caller's own update: a sub-group is swapped in, the caller changes slices of its state, and
//! the sub-group is swapped out. The compiler ensures that no slice outlives its sub-group.

use std::borrow::Cow;
use std::ops::Range;

use super::super::optimizer::SwappedOptimizer;
use super::super::outcome::{StepOptions, StepOutcome};
use super::super::parameters::ParameterSink;
use super::chunk::{UpdateChunk, UpdateRun};
use super::lent_chunk::OpenChunk;
use super::update::no_update;
use crate::error::{Error, ErrorKind, Result};
use crate::gradients::{Gradients, ShardGradients};
use crate::optim::GradElem;
use crate::partition::{Chunk, Run};
use crate::swap::ChunkHandle;

impl SwappedOptimizer {
    /// Collective: begins an update that the caller makes, sub-group by sub-group. It checks the
    /// arguments, takes the norm, and decides with all ranks whether the step is skipped; chunks
    /// are read from here on. [`SubGroups::finish`] ends the update.
    ///
    /// `params` receives the updated parameters of the shard, in shard order: those of every chunk
    /// that was changed, all its elements. Gradients that were handed over before come with the
    /// chunks, in the format in which they were summed, so `G` must be the one of
    /// `gradients.accumulate_in`, f32 or bf16. They are forgotten when the update has ended, in
    /// whatever way.
    ///
    /// # Errors
    /// Agreed. Usage leaves everything as it was: gradients that do not fit the shard, are only
    /// partly there, or are asked for in another format than they are kept in; parameters of
    /// another length or format; hyper-parameters out of range; an optimizer without initial state.
    /// After an I/O error the optimizer is unusable; a durable job can go back to its last commit
    /// with [`Self::recover`].
    pub fn begin_update<'o, 'g, G: GradElem, S: ParameterSink + ?Sized>(
        &'o mut self,
        gradients: &Gradients<'g, G>,
        params: &'o mut S,
        options: StepOptions<'_>,
    ) -> Result<SubGroups<'o, 'g, G, S>> {
        let (outcome, gradients) = self.begin_pass(gradients, params, options)?;
        Ok(SubGroups::new(self, gradients, params, outcome))
    }
}

/// An update under way: the sub-groups of this rank's shard, in order, each once. While one is in,
/// the next ones are read and the ones before are written (`swap.pipeline_read`, `pipeline_write`).
///
/// If it is dropped before [`Self::finish`], by an early return for instance, the update ends with
/// an error on all ranks. A step that is skipped has no sub-groups.
#[must_use = "an update that is not finished is an error on all ranks"]
pub struct SubGroups<'o, 'g, G: GradElem, S: ParameterSink + ?Sized> {
    optimizer: &'o mut SwappedOptimizer,
    /// Gradients of the caller's memory; `None` if those that were handed over are used.
    gradients: Option<ShardGradients<'g, G>>,
    params: &'o mut S,
    outcome: StepOutcome,
    left: Range<u32>,
    end: End,
}

/// How an update ends.
enum End {
    /// It is under way.
    Open,
    /// It is under way and has failed: dropped now, it ends with this error.
    Failed(ErrorKind, String),
    /// It has ended.
    Over,
}

impl<'o, 'g, G: GradElem, S: ParameterSink + ?Sized> SubGroups<'o, 'g, G, S> {
    fn new(
        optimizer: &'o mut SwappedOptimizer,
        gradients: Option<ShardGradients<'g, G>>,
        params: &'o mut S,
        outcome: StepOutcome,
    ) -> Self {
        let left = if outcome.is_taken() { 0..optimizer.sub_groups() } else { 0..0 };
        Self { optimizer, gradients, params, outcome, left, end: End::Open }
    }

    /// What has been decided: whether the step is taken or skipped, the norm, and the factor for
    /// gradients.
    pub fn outcome(&self) -> &StepOutcome {
        &self.outcome
    }

    /// Swaps in the next sub-group; `None` after the last one. This does not wait for its data:
    /// [`SubGroup::next_chunk`] does, chunk by chunk.
    ///
    /// # Errors
    /// Usage, on this rank alone, if the sub-group before was dropped instead of swapped out.
    pub fn swap_in(&mut self) -> Result<Option<SubGroup<'_, 'g, G, S>>> {
        let Some(index) = self.left.next() else { return Ok(None) };
        let swapped_in = self.optimizer.swap_in_sub_group(index);
        self.end.note(swapped_in)?;
        Ok(Some(SubGroup {
            optimizer: self.optimizer,
            gradients: self.gradients.as_ref(),
            params: self.params,
            grad_scale: self.outcome.grad_scale,
            end: &mut self.end,
            index,
            chunk: None,
        }))
    }

    /// Goes through all sub-groups that are left, and calls `update` for every run with a gradient:
    /// with the run, its gradient as f32 multiplied by `grad_scale`, and its part of every state
    /// array (masters first), to be changed. All slices have one value for each element of the run.
    /// [`Self::finish`] must be called afterwards.
    ///
    /// # Errors
    /// On this rank alone: the first error of `update`; errors of the drives. Hand the result to
    /// [`Self::finish`], which gives it to all ranks.
    pub fn for_each_gradient(
        &mut self,
        update: &mut impl FnMut(&UpdateRun<'_, f32>, &[f32], &mut [&mut [f32]]) -> Result<()>,
    ) -> Result<()> {
        let mut scaled = Vec::new();
        while let Some(mut sub_group) = self.swap_in()? {
            while let Some(mut chunk) = sub_group.next_chunk()? {
                chunk.update_scaled(&mut scaled, update)?;
            }
            sub_group.swap_out()?;
        }
        Ok(())
    }

    /// Collective: ends the update as a step ends: it waits for the writes that must be on the
    /// drives, counts the updates, commits the step if that is due, and agrees on the outcome.
    /// `result` is the result of the update on this rank; an error here is an error on all ranks.
    ///
    /// # Errors
    /// Agreed: an error in the `result` of any rank; errors of the drives; usage if a sub-group
    /// with gradients was left out. If any rank has changed anything, the optimizer is unusable
    /// afterwards; a durable job can go back to its last commit with [`SwappedOptimizer::recover`].
    pub fn finish(mut self, result: Result<()>) -> Result<StepOutcome> {
        self.end = End::Over;
        self.optimizer.end_update(result)
    }
}

impl End {
    /// Keeps the first error for the other ranks.
    fn note<T>(&mut self, result: Result<T>) -> Result<T> {
        if let (Err(error), Self::Open) = (&result, &*self) {
            *self = Self::Failed(error.kind(), error.to_string());
        }
        result
    }
}

impl<G: GradElem, S: ParameterSink + ?Sized> Drop for SubGroups<'_, '_, G, S> {
    fn drop(&mut self) {
        let error = match std::mem::replace(&mut self.end, End::Over) {
            End::Over => return,
            End::Open => Error::usage("an update was left before its end")
                .hint("end it with SubGroups::finish on every rank"),
            End::Failed(kind, text) => Error::new(kind, "an update failed").because(text),
        };
        // The caller drops it because of an error of its own; the other ranks get this one.
        let _ = self.optimizer.end_update(Err(error));
    }
}

/// A sub-group that is swapped in. Its chunks come one after the other; where a sub-group is not
/// larger than `swap.chunk_elements`, the one chunk is the whole.
#[must_use = "a sub-group that is not swapped out ends the update with an error"]
pub struct SubGroup<'s, 'g, G: GradElem, S: ParameterSink + ?Sized> {
    optimizer: &'s mut SwappedOptimizer,
    gradients: Option<&'s ShardGradients<'g, G>>,
    params: &'s mut S,
    grad_scale: f32,
    end: &'s mut End,
    index: u32,
    /// The chunk that the caller has.
    chunk: Option<ChunkHandle>,
}

impl<G: GradElem, S: ParameterSink + ?Sized> SubGroup<'_, '_, G, S> {
    /// Its number within the shard.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The number of its chunks.
    pub fn chunks(&self) -> usize {
        self.optimizer.plan().chunks_of(self.index).len()
    }

    /// Gives the chunk before back, and waits for the next one; `None` after the last one.
    ///
    /// # Errors
    /// On this rank alone: a read that failed, or bytes that are not those that were written.
    pub fn next_chunk(&mut self) -> Result<Option<UpdateChunk<'_, G>>> {
        self.give_back()?;
        let next = self.optimizer.next_lent_chunk(self.params);
        self.chunk = self.end.note(next)?;
        self.chunk.map(|handle| self.open(handle)).transpose()
    }

    /// Swaps the sub-group out: changed chunks are written, while the following ones are updated
    /// unless `swap.pipeline_write` is off. Chunks without a gradient that were not asked for stay
    /// as they are.
    ///
    /// # Errors
    /// On this rank alone: usage if a chunk with a gradient was not asked for; errors of the
    /// drives.
    pub fn swap_out(mut self) -> Result<()> {
        self.give_back()?;
        let swapped_out = self.optimizer.swap_out_sub_group(self.index);
        self.end.note(swapped_out)
    }

    fn give_back(&mut self) -> Result<()> {
        let Some(handle) = self.chunk.take() else { return Ok(()) };
        // The chunk itself has noted whether it may have changed.
        let given_back = self.optimizer.return_chunk(handle, self.params, false);
        self.end.note(given_back)
    }

    fn open(&mut self, handle: ChunkHandle) -> Result<UpdateChunk<'_, G>> {
        let SwappedOptimizer { shard, lent, progress, pass, .. } = &mut *self.optimizer;
        let (plan, index) = (&shard.plan, handle.chunk());
        let OpenChunk { arrays, spilled, has_changed } = lent.get_mut(handle)?.open(plan);
        let gradients = match self.gradients {
            Some(gradients) => Cow::Borrowed(gradients),
            None => {
                let stored = pass.as_ref().and_then(|pass| pass.stored.as_ref());
                stored.ok_or_else(no_update)?.of_chunk(plan, index, spilled)?
            }
        };
        let chunk = plan.partition().chunk(index);
        let mut runs = Vec::new();
        for run in plan.partition().runs_of(index) {
            let whole = UpdateRun {
                param: run.param,
                parameter: plan.inventory().parameter(run.param),
                param_offset: run.param_offset,
                at: in_chunk(chunk, run.in_shard()),
                hyper: progress.groups[plan.inventory().parameter(run.param).group],
                number: progress.update_counts[run.param.index()] + 1,
                gradient: None,
            };
            push_fragments(&mut runs, whole, run, chunk, &gradients);
        }
        let (tensors, grad_scale) = (plan.tensors(), self.grad_scale);
        Ok(UpdateChunk { index, runs, arrays, tensors, has_changed, grad_scale })
    }
}

/// Adds a run as the pieces of its gradient cut it; whole, if it has none.
fn push_fragments<'c, G: GradElem>(
    runs: &mut Vec<UpdateRun<'c, G>>,
    whole: UpdateRun<'c, G>,
    run: &Run,
    chunk: &Chunk,
    gradients: &ShardGradients<'c, G>,
) {
    let before = runs.len();
    for (in_shard, fragment) in gradients.within(run.in_shard()) {
        runs.push(UpdateRun {
            param_offset: run.param_offset + (in_shard.start as u64 - run.shard_offset),
            at: in_chunk(chunk, in_shard),
            gradient: Some(fragment.grad),
            ..whole.clone()
        });
    }
    if runs.len() == before {
        runs.push(whole);
    }
}

fn in_chunk(chunk: &Chunk, in_shard: Range<usize>) -> Range<usize> {
    let start = chunk.shard_offset as usize;
    in_shard.start - start..in_shard.end - start
}
