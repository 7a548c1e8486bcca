//! A chunk of the caller's own update: what lies where in it, and slices to read and to change.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::optim::GradElem;
use crate::state::{Hyperparameters, Parameter, StateTensor};
use crate::units::{ChunkIndex, ParamIndex};

/// A chunk in memory: elements of one or more parameters, end to end.
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

impl<'c, G> UpdateRun<'c, G> {
    /// The same elements, for gradients of another format, which are not here.
    fn without_gradient<T>(&self) -> UpdateRun<'c, T> {
        let Self { param, parameter, param_offset, hyper, number, .. } = *self;
        let at = self.at.clone();
        UpdateRun { param, parameter, param_offset, at, hyper, number, gradient: None }
    }
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

    /// Shows every run with a gradient, with its gradient as f32, multiplied by `grad_scale`, and
    /// its own part of all arrays. `scaled` is memory for gradients.
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
