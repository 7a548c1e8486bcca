//! The caller's own update: a sub-group in, slices of its state to change, the sub-group out. The
//! compiler sees to it that nothing is kept after it was swapped out.

use std::ops::Range;

use super::door_chunk::OpenChunk;
use super::gradients::Gradients;
use super::optimizer::SwappedOptimizer;
use super::run::{StepOptions, StepOutcome};
use super::source::PassGradients;
use crate::error::{Error, ErrorKind, Result};
use crate::optim::{GradElem, ParamElem};
use crate::partition::Chunk;
use crate::state::{Hyperparameters, Parameter, StateTensor};
use crate::swap::ChunkHandle;
use crate::units::{ChunkIndex, ParamIndex};

impl SwappedOptimizer {
    /// Collective: begins an update that the caller makes, sub-group by sub-group: arguments, norm,
    /// the one all-reduce and the decision whether to skip, as [`Self::step`]. Chunks are read from
    /// here on. [`SubGroups::finish`] ends it.
    ///
    /// `params` receives the updated parameters of the shard: those of all live elements of a chunk
    /// that was changed.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn begin_update<'o, 'g, G: GradElem, P: ParamElem>(
        &'o mut self,
        gradients: &Gradients<'g, G>,
        params: &'o mut [P],
        options: StepOptions<'_>,
    ) -> Result<SubGroups<'o, 'g, G, P>> {
        let (outcome, gradients) = self.begin_pass(gradients, params, options)?;
        Ok(SubGroups::new(self, PassGradients::Borrowed(gradients), params, outcome))
    }

    /// Collective: as [`Self::begin_update`], with the gradients that were handed over before. They
    /// come with the chunks as they were summed: `A` is f32 or bf16, as `gradients.accumulate_in`
    /// says. They are gone when the update has ended, in whatever way.
    ///
    /// # Errors
    /// As [`Self::step_gradients`]; usage, naming the setting, if `A` is another format.
    pub fn begin_update_gradients<'o, A: GradElem, P: ParamElem>(
        &'o mut self,
        params: &'o mut [P],
        options: StepOptions<'_>,
    ) -> Result<SubGroups<'o, 'o, A, P>> {
        let is_kept = self.gradients.check_format::<A>();
        let outcome = self.begin_stored_pass(is_kept, params, options)?;
        Ok(SubGroups::new(self, PassGradients::Stored, params, outcome))
    }
}

/// An update under way: the sub-groups of this rank's shard, in order, each once. While one is in,
/// the next ones are read and the ones before are written (`swap.pipeline_read`, `pipeline_write`).
///
/// Dropped before [`Self::finish`], as by an early return, it ends the update with an error on all
/// ranks. A step that is skipped has no sub-groups.
#[must_use = "an update that is not finished is an error on all ranks"]
pub struct SubGroups<'o, 'g, G: GradElem, P: ParamElem> {
    optimizer: &'o mut SwappedOptimizer,
    gradients: PassGradients<'g, G>,
    params: &'o mut [P],
    outcome: StepOutcome,
    left: Range<u32>,
    end: End,
}

/// How an update ends.
enum End {
    /// Not yet.
    Open,
    /// With this, if it is dropped now.
    Failed(ErrorKind, String),
    /// It has.
    Over,
}

impl<'o, 'g, G: GradElem, P: ParamElem> SubGroups<'o, 'g, G, P> {
    fn new(
        optimizer: &'o mut SwappedOptimizer,
        gradients: PassGradients<'g, G>,
        params: &'o mut [P],
        outcome: StepOutcome,
    ) -> Self {
        let left = match outcome.skipped || !outcome.is_taken {
            true => 0..0,
            false => 0..optimizer.sub_groups(),
        };
        Self { optimizer, gradients, params, outcome, left, end: End::Open }
    }

    /// What is decided so far: whether the step is taken or skipped, the norm, and what gradients
    /// are multiplied by.
    pub fn outcome(&self) -> &StepOutcome {
        &self.outcome
    }

    /// The next sub-group; `None` after the last one. Its data is waited for chunk by chunk.
    ///
    /// # Errors
    /// Usage if the one before was not swapped out, but dropped.
    pub fn swap_in(&mut self) -> Result<Option<SubGroup<'_, 'g, G, P>>> {
        let Some(index) = self.left.next() else { return Ok(None) };
        let swapped_in = self.optimizer.swap_in_optimizer_state(index);
        self.end.note(swapped_in)?;
        Ok(Some(SubGroup {
            optimizer: self.optimizer,
            gradients: &self.gradients,
            params: self.params,
            grad_scale: self.outcome.grad_scale,
            end: &mut self.end,
            index,
            chunk: None,
        }))
    }

    /// Collective: ends the update, as [`SwappedOptimizer::step`] ends: what must be on the drives
    /// is there, updates are counted, a step to commit is committed, and all ranks agree.
    ///
    /// # Errors
    /// Agreed: errors of the drives; usage if a sub-group with gradients was left out. If any rank
    /// has changed anything, the optimizer is then unusable, as after a step that failed.
    pub fn finish(self) -> Result<StepOutcome> {
        self.finish_with(Ok(()))
    }

    /// Collective: as [`Self::finish`], with what the update came to on this rank: an error is one
    /// on all ranks.
    ///
    /// # Errors
    /// As [`Self::finish`].
    pub fn finish_with(mut self, result: Result<()>) -> Result<StepOutcome> {
        self.end = End::Over;
        self.optimizer.finish_update(result)
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

fn in_chunk(chunk: &Chunk, in_shard: Range<usize>) -> Range<usize> {
    let start = chunk.shard_offset as usize;
    in_shard.start - start..in_shard.end - start
}

impl<G: GradElem, P: ParamElem> Drop for SubGroups<'_, '_, G, P> {
    fn drop(&mut self) {
        let error = match std::mem::replace(&mut self.end, End::Over) {
            End::Over => return,
            End::Open => Error::usage("an update was left before its end")
                .hint("end it with SubGroups::finish on every rank"),
            End::Failed(kind, text) => Error::new(kind, "an update failed").because(text),
        };
        // Who drops it has an error already, or is not interested; the other ranks get this one.
        let _ = self.optimizer.finish_update(Err(error));
    }
}

/// A sub-group that is swapped in. Its chunks come one after the other; where a sub-group is not
/// larger than `swap.chunk_elements`, the one chunk is the whole.
///
/// ```compile_fail
/// use optswap::{error::Result, step::SubGroup};
///
/// fn keep(mut sub_group: SubGroup<'_, '_, f32, ()>) -> Result<()> {
///     let mut chunk = sub_group.next_chunk()?.unwrap();
///     let master = chunk.master_mut();
///     sub_group.swap_out()?;
///     master[0] = 1.0; // does not compile: the slice went with the sub-group
///     Ok(())
/// }
/// ```
///
/// What was not swapped in cannot be swapped out, and nothing is swapped out twice:
///
/// ```compile_fail
/// use optswap::{error::Result, step::SubGroup};
///
/// fn twice(sub_group: SubGroup<'_, '_, f32, ()>) -> Result<()> {
///     sub_group.swap_out()?;
///     sub_group.swap_out() // does not compile: it is gone
/// }
/// ```
///
/// ```compile_fail
/// use optswap::{error::Result, step::SubGroups};
///
/// fn two(mut groups: SubGroups<'_, '_, f32, ()>) -> Result<()> {
///     let first = groups.swap_in()?.unwrap();
///     let second = groups.swap_in()?.unwrap(); // does not compile: the first is still in
///     first.swap_out()?;
///     second.swap_out()
/// }
/// ```
#[must_use = "a sub-group that is not swapped out ends the update with an error"]
pub struct SubGroup<'s, 'g, G: GradElem, P: ParamElem> {
    optimizer: &'s mut SwappedOptimizer,
    gradients: &'s PassGradients<'g, G>,
    params: &'s mut [P],
    grad_scale: f32,
    end: &'s mut End,
    index: u32,
    /// The chunk that the caller has.
    chunk: Option<ChunkHandle>,
}

impl<G: GradElem, P: ParamElem> SubGroup<'_, '_, G, P> {
    /// Its number within the shard.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The number of its chunks.
    pub fn chunks(&self) -> usize {
        self.optimizer.plan.chunks_of(self.index).len()
    }

    /// Gives the chunk before back, and waits for the next one; `None` after the last.
    ///
    /// # Errors
    /// Errors of the drives: a read that failed, bytes that are not those that were written.
    pub fn next_chunk(&mut self) -> Result<Option<UpdateChunk<'_, G>>> {
        self.give_back()?;
        let next = self.optimizer.next_chunk_handle(self.params);
        self.chunk = self.end.note(next)?;
        self.chunk.map(|handle| self.open(handle)).transpose()
    }

    /// Swaps the sub-group out: what was changed is written, at once or behind what follows
    /// (`swap.pipeline_write`). Chunks without a gradient that were not looked at stay as they are.
    ///
    /// # Errors
    /// Usage if a chunk with a gradient was not looked at; errors of the drives.
    pub fn swap_out(mut self) -> Result<()> {
        self.give_back()?;
        let swapped_out = self.optimizer.swap_out_optimizer_state(self.index);
        self.end.note(swapped_out)
    }

    fn give_back(&mut self) -> Result<()> {
        let Some(handle) = self.chunk.take() else { return Ok(()) };
        // Whether it has changed is noted with it.
        let given_back = self.optimizer.swap_out_chunk(handle, self.params, false);
        self.end.note(given_back)
    }

    fn open(&mut self, handle: ChunkHandle) -> Result<UpdateChunk<'_, G>> {
        let SwappedOptimizer { plan, lent, groups, update_counts, gradients: store, .. } =
            &mut *self.optimizer;
        let OpenChunk { arrays, spilled, has_changed } = lent.get_mut(handle)?.open(plan);
        let gradients = self.gradients.of_chunk(store, plan, handle.chunk(), spilled)?;
        let chunk = plan.partition().chunk(handle.chunk());
        let mut runs = Vec::new();
        for run in plan.partition().runs_of(handle.chunk()) {
            let parameter = plan.inventory().parameter(run.param);
            let update = |at: Range<usize>, gradient| UpdateRun {
                param: run.param,
                parameter,
                param_offset: run.param_offset + (at.start as u64 - run.shard_offset),
                at: in_chunk(chunk, at),
                hyper: groups[parameter.group],
                number: update_counts[run.param.index()] + 1,
                gradient,
            };
            let before = runs.len();
            let within = gradients.within(run.in_shard());
            runs.extend(within.map(|(at, fragment)| update(at, Some(fragment.grad))));
            if runs.len() == before {
                runs.push(update(run.in_shard(), None));
            }
        }
        let (index, tensors) = (handle.chunk(), plan.tensors());
        let grad_scale = self.grad_scale;
        Ok(UpdateChunk { index, runs, arrays, tensors, has_changed, grad_scale })
    }
}

/// A chunk in memory: elements of one or more parameters, end to end.
pub struct UpdateChunk<'c, G> {
    index: ChunkIndex,
    runs: Vec<UpdateRun<'c, G>>,
    arrays: Vec<&'c mut [f32]>,
    tensors: &'c [StateTensor],
    has_changed: &'c mut bool,
    grad_scale: f32,
}

/// Elements of one parameter within a chunk, cut also where pieces of its gradient meet.
#[derive(Clone, Debug)]
pub struct UpdateRun<'c, G> {
    /// The parameter.
    pub param: ParamIndex,
    /// What it is, and so its group.
    pub parameter: &'c Parameter,
    /// Its first element here, within the parameter.
    pub param_offset: u64,
    /// Where its elements are in the chunk's arrays.
    pub at: Range<usize>,
    /// The hyper-parameters of its group, as they are at this step.
    pub hyper: Hyperparameters,
    /// The number of this update of the parameter, from 1.
    pub number: u64,
    /// A gradient for each element, as it was handed over: to be multiplied by the chunk's
    /// `grad_scale`. `None` if the parameter has none: then it is to be left alone.
    pub gradient: Option<&'c [G]>,
}

impl<'c, G: GradElem> UpdateChunk<'c, G> {
    /// Which chunk of the shard it is.
    pub fn index(&self) -> ChunkIndex {
        self.index
    }

    /// The number of its elements, and the length of each of its arrays.
    pub fn elems(&self) -> usize {
        self.arrays.first().map_or(0, |array| array.len())
    }

    /// What every gradient is multiplied by: loss scale and clipping together.
    pub fn grad_scale(&self) -> f32 {
        self.grad_scale
    }

    /// What lies where in the arrays, in order, without a gap.
    pub fn runs(&self) -> &[UpdateRun<'c, G>] {
        &self.runs
    }

    /// The values of a state tensor by name, `master` for the masters.
    pub fn state(&self, name: &str) -> Option<&[f32]> {
        self.number_of(name).map(|number| &*self.arrays[number])
    }

    /// The same, to be changed.
    pub fn state_mut(&mut self, name: &str) -> Option<&mut [f32]> {
        let number = self.number_of(name)?;
        Some(&mut *self.arrays_mut()[number])
    }

    /// The masters, to be changed.
    pub fn master_mut(&mut self) -> &mut [f32] {
        match self.arrays_mut() {
            [master, ..] => master,
            [] => &mut [],
        }
    }

    /// All arrays at once, to be changed: the masters, then state tensors as they are declared.
    pub fn arrays_mut(&mut self) -> &mut [&'c mut [f32]] {
        self.runs_and_arrays().1
    }

    /// What lies where, and all arrays at once, to be changed.
    pub fn runs_and_arrays(&mut self) -> (&[UpdateRun<'c, G>], &mut [&'c mut [f32]]) {
        *self.has_changed = true;
        (&self.runs, &mut self.arrays)
    }

    /// Shows every run with a gradient, with its gradient and its own part of all arrays.
    pub fn for_each_gradient(
        &mut self,
        mut update: impl FnMut(&UpdateRun<'c, G>, &[G], &mut [&mut [f32]]),
    ) {
        for run in &self.runs {
            let Some(gradient) = run.gradient else { continue };
            *self.has_changed = true;
            let arrays = self.arrays.iter_mut().map(|array| &mut array[run.at.clone()]);
            update(run, gradient, &mut arrays.collect::<Vec<_>>());
        }
    }

    /// The gradients of the whole chunk as one array: multiplied by `grad_scale`, 0 where there is
    /// none.
    ///
    /// # Errors
    /// Usage if `out` has not the chunk's length.
    pub fn copy_gradient(&self, out: &mut [f32]) -> Result<()> {
        if out.len() != self.elems() {
            return Err(Error::usage("an array for gradients has another length than the chunk")
                .with("array", out.len())
                .with("chunk", self.elems()));
        }
        for run in &self.runs {
            let out = &mut out[run.at.clone()];
            match run.gradient {
                None => out.fill(0.0),
                Some(gradient) => {
                    let pairs = out.iter_mut().zip(gradient);
                    pairs.for_each(|(out, grad)| *out = grad.load() * self.grad_scale);
                }
            }
        }
        Ok(())
    }

    fn number_of(&self, name: &str) -> Option<usize> {
        self.tensors.iter().position(|tensor| tensor.name == name)
    }
}
