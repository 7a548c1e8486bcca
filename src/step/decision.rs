//! The one all-reduce of a step, with squared norm, overflows and status of all ranks, and the
//! decision that follows from it.

use std::time::Duration;

use super::outcome::{Requests, StepOutcome, StepResult, Stop};
use crate::coord::{ALIKE_WORDS, Alike, Communicator};
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
    /// Whether all ranks are at the same step, with the same hyper-parameters and loss scale.
    pub is_alike: bool,
    /// Whether all owners of every parameter have a gradient of it, or none.
    pub is_paired: bool,
}

/// What a rank brings to the all-reduce.
pub(super) struct Brought {
    pub norm: BlockNorm,
    pub has_failed: bool,
    pub requests: Requests,
    pub is_unbalanced: bool,
    /// Of the step's number, the hyper-parameters and the loss scale.
    pub alike: Alike,
    /// Of the gradients of parameters that other ranks have parts of: 0 in sum.
    pub co_owned: u64,
}

/// Collective: adds up the norms, overflows and requests of all ranks, and compares what they must
/// have alike.
///
/// # Errors
/// Peer, not agreed, if another rank does not come in time.
pub(super) fn reduce(comm: &dyn Communicator, brought: Brought) -> Result<WorldNorm> {
    let Brought { norm, has_failed, requests, is_unbalanced, alike, co_owned } = brought;
    let mut values = norm.squares.limbs().to_vec();
    let limbs = values.len();
    values.extend(alike.words());
    values.push(co_owned);
    values.push(norm.overflows);
    values.push(u64::from(has_failed));
    values.push(u64::from(requests.stop != Stop::No));
    values.push(u64::from(requests.stop == Stop::Now));
    values.push(u64::from(is_unbalanced));
    values.push(u64::from(requests.wants_table));
    comm.all_reduce_sum(&mut values)?;
    let (limbs, rest) = values.split_at(limbs);
    let (alike_sums, counts) = rest.split_at(ALIKE_WORDS);
    let norm = ExactSum::from_limbs(limbs).value().sqrt();
    let &[co_owned, overflows, failed, stopping, out_of_time, unbalanced, asking] = counts else {
        return Err(Error::internal("the counts of the all-reduce have another number"));
    };
    let is_alike = alike.is_of_all(alike_sums, comm.size());
    let is_paired = co_owned == 0;
    Ok(WorldNorm {
        norm,
        overflows,
        failed,
        stopping,
        out_of_time,
        unbalanced,
        asking,
        is_alike,
        is_paired,
    })
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
