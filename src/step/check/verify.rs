//! Verification: a second optimizer in memory, stepped beside the swapped one and compared bit by
//! bit.

use std::ops::Range;

use super::super::optimizer::SwappedOptimizer;
use super::super::outcome::StepOutcome;
use super::super::view::StateView;
use crate::error::{Error, Result};
use crate::optim::ParamElem;
use crate::optim::reference::Reference;
use crate::partition::{Partition, Run};
use crate::state::Hyperparameters;
use crate::units::ParamIndex;

/// A twin of a rank's shard in memory, to be stepped beside the optimizer and compared with it. It
/// computes the update by the scalar reference, one element after the other.
#[derive(Debug)]
pub struct Verifier {
    reference: Reference,
    update_counts: Vec<u64>,
}

/// One parameter's share of a shard, to be updated in the twin.
#[derive(Clone, Debug)]
pub struct ReferenceUpdate {
    /// The parameter.
    pub param: ParamIndex,
    /// Its elements within the shard, which are those of the twin's arrays.
    pub at: Range<usize>,
    /// The number of this update of the parameter, from 1.
    pub number: u64,
    /// The hyper-parameters of its group.
    pub hyper: Hyperparameters,
}

impl Verifier {
    /// Starts from initial masters, which `fill` writes as it does for
    /// [`SwappedOptimizer::initialize_parameters`].
    ///
    /// # Errors
    /// On this rank alone: the first error of `fill`.
    pub fn new(
        optimizer: &SwappedOptimizer,
        mut fill: impl FnMut(&Run, &mut [f32]) -> Result<()>,
    ) -> Result<Self> {
        let partition = optimizer.partition();
        let mut master = vec![0.0; partition.elems() as usize];
        for run in partition.runs() {
            fill(run, &mut master[run.in_shard()])?;
        }
        let params = optimizer.plan().inventory().parameters().len();
        Ok(Self { reference: reference_of(optimizer, master), update_counts: vec![0; params] })
    }

    /// Collective: starts from the state as it lies on the drives, for a job that goes on.
    ///
    /// `params` are the parameters of the shard, in shard order, as they were emitted last. Only a
    /// scratch job with the codec remainder16 needs them, since they hold the upper halves of its
    /// masters; [`NO_PARAMETERS`](crate::NO_PARAMETERS) does for all others.
    ///
    /// # Errors
    /// Agreed: errors of the drives; usage if `params` are needed and missing.
    pub fn of_state<P: ParamElem>(optimizer: &mut SwappedOptimizer, params: &[P]) -> Result<Self> {
        let elems = optimizer.partition().elems() as usize;
        let mut reference = reference_of(optimizer, vec![0.0; elems]);
        optimizer.inspect(params, |view| {
            let at = view.run.in_shard();
            let values = std::iter::once(&view.master).chain(view.moments);
            for (array, values) in reference.arrays_mut().iter_mut().zip(values) {
                array[at.clone()].copy_from_slice(values);
            }
            Ok(())
        })?;
        Ok(Self { reference, update_counts: optimizer.progress.update_counts.clone() })
    }

    /// Takes the step that the optimizer has just taken, with the gradients of the whole shard: one
    /// for each element, in shard order. For a program's own optimizer use [`Self::step_with`]:
    /// this method does not know the update.
    pub fn step(&mut self, optimizer: &SwappedOptimizer, outcome: &StepOutcome, shard: &[f32]) {
        self.step_with(optimizer, outcome, |reference, update| {
            let grads = &shard[update.at.clone()];
            reference.update(
                &update.hyper,
                update.number,
                outcome.grad_scale,
                update.at.clone(),
                grads,
            );
            true
        });
    }

    /// Takes the step that the optimizer has just taken, with the program's own code: `update`
    /// changes the elements of one parameter, and returns whether the parameter had a gradient.
    pub fn step_with(
        &mut self,
        optimizer: &SwappedOptimizer,
        outcome: &StepOutcome,
        mut update: impl FnMut(&mut Reference, &ReferenceUpdate) -> bool,
    ) {
        if !outcome.is_taken() {
            return;
        }
        let mut counted = None;
        for piece in optimizer.partition().pieces_by_param() {
            let count = &mut self.update_counts[piece.param.index()];
            let group = optimizer.plan().inventory().parameter(piece.param).group;
            // A parameter in several pieces takes one update.
            let is_first = counted != Some(piece.param);
            let (hyper, at) = (optimizer.param_groups()[group], piece.in_shard());
            let number = *count + u64::from(is_first);
            let its = ReferenceUpdate { param: piece.param, at, number, hyper };
            if update(&mut self.reference, &its) && is_first {
                *count += 1;
                counted = Some(piece.param);
            }
        }
        let plan = optimizer.plan();
        let rounder = plan.rounder(outcome.attempt);
        self.reference.round(plan.tensors(), rounder, plan.rounding_offset(0));
    }

    /// Collective: compares masters, moments and update counts with what lies on the drives, bit by
    /// bit.
    ///
    /// `params` are the parameters of the shard, in shard order, as they were emitted last. Only a
    /// scratch job with the codec remainder16 needs them, since they hold the upper halves of its
    /// masters; [`NO_PARAMETERS`](crate::NO_PARAMETERS) does for all others.
    ///
    /// # Errors
    /// Agreed. Internal (exit code 70): the first difference found, with parameter, element and
    /// both values. Errors of the drives; usage if `params` are needed and missing.
    pub fn check<P: ParamElem>(
        &self,
        optimizer: &mut SwappedOptimizer,
        params: &[P],
    ) -> Result<()> {
        let counts = self.compare_counts(optimizer, optimizer.partition());
        let tensors = optimizer.plan().tensors().to_vec();
        let mut counts = Some(counts);
        optimizer.inspect(params, |view| {
            // The counts are compared within, so that their result is agreed with the rest.
            counts.take().unwrap_or(Ok(()))?;
            let at = view.run.in_shard();
            let values = std::iter::once(&view.master).chain(view.moments);
            let twins = self.reference.arrays().iter().zip(&tensors);
            let mut pairs = values.zip(twins);
            pairs.try_for_each(|(values, (twin, tensor))| {
                compare(&view, &tensor.name, values, &twin[at.clone()])
            })
        })
    }

    fn compare_counts(&self, optimizer: &SwappedOptimizer, partition: &Partition) -> Result<()> {
        let differs = |param: &ParamIndex| {
            optimizer.update_count(*param) != self.update_counts[param.index()]
        };
        let mut params = partition.pieces().iter().map(|piece| piece.param);
        match params.find(differs) {
            None => Ok(()),
            Some(param) => Err(Error::internal("step count differs from the reference")
                .with("parameter", &optimizer.plan().inventory().parameter(param).name)
                .with("optimizer", optimizer.update_count(param))
                .with("reference", self.update_counts[param.index()])),
        }
    }
}

fn reference_of(optimizer: &SwappedOptimizer, master: Vec<f32>) -> Reference {
    let plan = optimizer.plan();
    match plan.config().optimizer.own {
        Some(_) => Reference::declared(plan.tensors(), master),
        None => Reference::new(plan.config().optimizer.kind, master),
    }
}

fn compare(view: &StateView<'_>, name: &str, swapped: &[f32], reference: &[f32]) -> Result<()> {
    let differ = |(a, b): (&f32, &f32)| a.to_bits() != b.to_bits();
    let Some(at) = swapped.iter().zip(reference).position(differ) else { return Ok(()) };
    let value = |value: f32| format!("{value:e} (0x{:08x})", value.to_bits());
    Err(Error::internal(format!("{name} on the drives differs from the reference"))
        .with("parameter", &view.parameter.name)
        .with("element", view.run.param_offset + at as u64)
        .with("on the drives", value(swapped[at]))
        .with("reference", value(reference[at])))
}
