//! Verification: a second AdamW in memory, stepped beside the swapped one and compared bit for bit.

use super::optimizer::SwappedOptimizer;
use super::run::StepOutcome;
use super::view::StateView;
use crate::error::{Error, Result};
use crate::optim::reference::ReferenceAdamW;
use crate::partition::{Partition, Run};
use crate::units::ParamIndex;

/// The in-memory twin of a rank's shard: the scalar reference, one element after the other.
#[derive(Debug)]
pub struct Verifier {
    reference: ReferenceAdamW,
    update_counts: Vec<u64>,
}

impl Verifier {
    /// Starts from the same initial masters as [`SwappedOptimizer::initialize_parameters`].
    ///
    /// # Errors
    /// Errors of `fill`.
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
        Ok(Self { reference: ReferenceAdamW::new(master), update_counts: vec![0; params] })
    }

    /// Collective: starts from the state as it lies on the drives, for a job that goes on.
    ///
    /// # Errors
    /// Agreed errors of the drives.
    pub fn of_state(optimizer: &mut SwappedOptimizer) -> Result<Self> {
        let elems = optimizer.partition().elems() as usize;
        let mut reference = ReferenceAdamW::new(vec![0.0; elems]);
        optimizer.inspect(|view| {
            let at = view.run.in_shard();
            reference.master[at.clone()].copy_from_slice(view.master);
            reference.exp_avg[at.clone()].copy_from_slice(view.exp_avg);
            reference.exp_avg_sq[at].copy_from_slice(view.exp_avg_sq);
            Ok(())
        })?;
        Ok(Self { reference, update_counts: optimizer.update_counts.clone() })
    }

    /// Takes the step that the optimizer has just taken, with the gradients of the whole shard.
    pub fn step(&mut self, optimizer: &SwappedOptimizer, outcome: &StepOutcome, shard: &[f32]) {
        if outcome.skipped {
            return;
        }
        for piece in optimizer.partition().pieces() {
            let count = &mut self.update_counts[piece.param.index()];
            *count += 1;
            let group = optimizer.plan().inventory().parameter(piece.param).group;
            let hyper = &optimizer.groups()[group];
            let at = piece.in_shard();
            self.reference.update(hyper, *count, outcome.grad_scale, at.clone(), &shard[at]);
        }
    }

    /// Collective: compares master, moments and step counts with what lies on the drives.
    ///
    /// # Errors
    /// Internal (exit code 70), agreed: the first difference found, with parameter, element and
    /// both values.
    pub fn check(&self, optimizer: &mut SwappedOptimizer) -> Result<()> {
        let counts = self.compare_counts(optimizer, optimizer.partition());
        let mut counts = Some(counts);
        optimizer.inspect(|view| {
            // The counts are compared within, so that their result is agreed with the rest.
            counts.take().unwrap_or(Ok(()))?;
            let at = view.run.in_shard();
            let twin = &self.reference;
            compare(&view, "master", view.master, &twin.master[at.clone()])?;
            compare(&view, "exp_avg", view.exp_avg, &twin.exp_avg[at.clone()])?;
            compare(&view, "exp_avg_sq", view.exp_avg_sq, &twin.exp_avg_sq[at])
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
