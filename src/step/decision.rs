//! The one all-reduce of a step, with squared norm, overflows and status of all ranks, and the
//! decision that follows from it.

use std::time::Duration;

use super::outcome::{Requests, StepOutcome, StepResult, Stop};
use crate::coord::Communicator;
use crate::error::{Error, Result};
use crate::optim::{BlockNorm, ExactSum};

/// What every rank knows after the all-reduce.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct WorldNorm {
    /// Norm of the gradients of all ranks, as handed over (loss scale included).
    pub norm: f64,
    /// Blocks with an infinity or NaN.
    pub overflows: u64,
    /// Ranks that cannot take the step.
    pub failed: u64,
    /// Ranks that were asked to stop after this step.
    pub stopping: u64,
    /// Ranks that have no time left for this step.
    pub out_of_time: u64,
    /// Ranks whose drives do not do what their weights say.
    pub unbalanced: u64,
    /// Ranks that were asked for a table.
    pub asking: u64,
}

/// Collective: adds up the norms, overflows and requests of all ranks.
///
/// # Errors
/// Peer, not agreed, if another rank does not come in time.
pub(super) fn reduce(
    comm: &dyn Communicator,
    norm: BlockNorm,
    has_failed: bool,
    requests: Requests,
    is_unbalanced: bool,
) -> Result<WorldNorm> {
    let mut values = norm.squares.limbs().to_vec();
    values.push(norm.overflows);
    values.push(u64::from(has_failed));
    values.push(u64::from(requests.stop != Stop::No));
    values.push(u64::from(requests.stop == Stop::Now));
    values.push(u64::from(is_unbalanced));
    values.push(u64::from(requests.wants_table));
    comm.all_reduce_sum(&mut values)?;
    let (limbs, counts) = values.split_at(values.len() - 6);
    let norm = ExactSum::from_limbs(limbs).value().sqrt();
    let &[overflows, failed, stopping, out_of_time, unbalanced, asking] = counts else {
        return Err(Error::internal("the counts of the all-reduce have another number"));
    };
    Ok(WorldNorm { norm, overflows, failed, stopping, out_of_time, unbalanced, asking })
}

/// The outcome of the step. It is the same on every rank, because it follows from what was reduced.
pub(super) fn decide(
    world: WorldNorm,
    attempt: u64,
    clip_norm: f64,
    loss_scale: f32,
) -> StepOutcome {
    let mut outcome = StepOutcome {
        result: if world.overflows > 0 { StepResult::Skipped } else { StepResult::Taken },
        attempt,
        grad_norm: f64::INFINITY,
        grad_scale: 0.0,
        epoch: None,
        stop: world.stopping > 0,
        wants_table: world.asking > 0,
        duration: Duration::ZERO,
    };
    if outcome.is_taken() {
        let loss_scale = f64::from(loss_scale);
        outcome.grad_norm = world.norm / loss_scale;
        // As torch's clip_grad_norm_: the small constant keeps a norm of zero harmless.
        let clip =
            if clip_norm > 0.0 { (clip_norm / (outcome.grad_norm + 1e-6)).min(1.0) } else { 1.0 };
        outcome.grad_scale = (clip / loss_scale) as f32;
    }
    outcome
}
