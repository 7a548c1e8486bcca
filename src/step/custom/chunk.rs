//! A chunk of the caller's own update: what lies where in it, and slices to read and to change.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::optim::GradElem;
use crate::state::{Hyperparameters, Parameter, StateTensor};
use crate::units::{ChunkIndex, ParamIndex};

/// A chunk in memory: elements of one or more parameters, end to end. Its state is in arrays of f32
/// values, one array for each state tensor and one value for each element. Asking for an array to
/// change marks the chunk as changed, so that it is written.
pub struct UpdateChunk<'c, G> {
    pub(super) index: ChunkIndex,
    pub(super) runs: Vec<UpdateRun<'c, G>>,
    pub(super) arrays: Vec<&'c mut [f32]>,
    pub(super) tensors: &'c [StateTensor],
    pub(super) has_changed: &'c mut bool,
    pub(super) grad_scale: f32,
}

/// Elements of one parameter within a chunk, cut also where pieces of its gradient meet.
#[derive(Clone, Debug)]
pub struct UpdateRun<'c, G> {
    /// The parameter.
    pub param: ParamIndex,
    /// Its name, shape and group.
    pub parameter: &'c Parameter,
    /// The place of the first element of this run within the parameter, in elements.
    pub param_offset: u64,
    /// The range of its elements in the chunk's arrays.
    pub at: Range<usize>,
    /// The hyper-parameters of its group, as they are at this step.
    pub hyper: Hyperparameters,
    /// The number of this update of the parameter, from 1.
    pub number: u64,
    /// A gradient for each element, as it was handed over: to be multiplied by the chunk's
    /// `grad_scale`. `None` if the parameter has none: then it is to be left alone.
    pub gradient: Option<&'c [G]>,
}

impl<'c, G> UpdateRun<'c, G> {
    /// The same run without its gradient, as a type for gradients of another format.
    fn without_gradient<T>(&self) -> UpdateRun<'c, T> {
        let Self { param, parameter, param_offset, hyper, number, .. } = *self;
        let at = self.at.clone();
        UpdateRun { param, parameter, param_offset, at, hyper, number, gradient: None }
    }
}

impl<'c, G: GradElem> UpdateChunk<'c, G> {
    /// The number of this chunk within the shard.
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

    /// The runs of the chunk, in order and without a gap: which elements of which parameter each
    /// part of the arrays is of.
    pub fn runs(&self) -> &[UpdateRun<'c, G>] {
        &self.runs
    }

    /// The values of a state tensor by its name, `master` for the masters; `None` if there is no
    /// such tensor.
    pub fn state(&self, name: &str) -> Option<&[f32]> {
        self.number_of(name).map(|number| &*self.arrays[number])
    }

    /// The values of a state tensor by its name, to be changed; `None` if there is no such tensor.
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

    /// All arrays at once, to be changed: the masters, then the state tensors in the order in which
    /// they are declared.
    pub fn arrays_mut(&mut self) -> &mut [&'c mut [f32]] {
        self.runs_and_arrays().1
    }

    /// The runs, and all arrays at once, to be changed: the masters, then the state tensors.
    pub fn runs_and_arrays(&mut self) -> (&[UpdateRun<'c, G>], &mut [&'c mut [f32]]) {
        *self.has_changed = true;
        (&self.runs, &mut self.arrays)
    }

    /// Calls `update` for every run with a gradient: with the run, its gradient, and its part of
    /// every array, all of the length of the run. The gradient is as it was handed over: `update`
    /// multiplies it by [`Self::grad_scale`].
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

    /// Calls `update` for every run with a gradient: with the run, its gradient as f32 multiplied
    /// by `grad_scale`, and its part of every array. `scaled` is memory for gradients.
    pub(super) fn update_scaled(
        &mut self,
        scaled: &mut Vec<f32>,
        update: &mut impl FnMut(&UpdateRun<'_, f32>, &[f32], &mut [&mut [f32]]) -> Result<()>,
    ) -> Result<()> {
        for run in &self.runs {
            let Some(gradient) = run.gradient else { continue };
            *self.has_changed = true;
            scaled.clear();
            scaled.extend(gradient.iter().map(|grad| grad.load() * self.grad_scale));
            let arrays = self.arrays.iter_mut().map(|array| &mut array[run.at.clone()]);
            update(&run.without_gradient(), scaled, &mut arrays.collect::<Vec<_>>())?;
        }
        Ok(())
    }

    /// Writes the gradients of the whole chunk to `out`, which has [`Self::elems`] values:
    /// multiplied by [`Self::grad_scale`], and 0 where there is no gradient.
    ///
    /// # Errors
    /// Usage, on this rank alone, if `out` has another length than the chunk.
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
