//! The one all-reduce of a step: squared norm, overflow and status together.

use std::ops::Range;

use rayon::prelude::*;

use super::gradients::ShardGradients;
use crate::coord::Communicator;
use crate::error::{Error, Result};
use crate::optim::{BlockNorm, ExactSum, GradElem};
use crate::partition::{BlockSpan, NormBlocks};
use crate::units::BLOCK_ELEMS;

/// Whether a rank has been asked to stop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// It has not.
    #[default]
    No,
    /// It has, and there is time for one more step.
    AfterThisStep,
    /// It has, and a step would take too long: what counts is the last commit.
    Now,
}

const BLOCK: usize = BLOCK_ELEMS as usize;

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

/// This rank's part: the blocks of its shard, in parallel; the sum is exact, so the order is free.
pub(super) fn shard_norm<G: GradElem>(
    pool: &rayon::ThreadPool,
    gradients: &ShardGradients<'_, G>,
    blocks: &NormBlocks,
) -> BlockNorm {
    let norm_of_span = |span: &BlockSpan| {
        norm_of_blocks(blocks, span, |range, out| {
            let mut is_covered = false;
            for (at, part) in gradients.within(range.clone()) {
                is_covered = true;
                let values = &mut out[at.start - range.start..at.end - range.start];
                values.iter_mut().zip(part.grad).for_each(|(value, grad)| *value = grad.load());
            }
            is_covered
        })
    };
    let merge = |mut sum: BlockNorm, other| {
        sum.merge(other);
        sum
    };
    let spans = blocks.spans().par_iter();
    pool.install(|| spans.map(norm_of_span).reduce(BlockNorm::default, merge))
}

/// The norm of some blocks of the shard. `load` puts gradients where there is a zero for each, and
/// tells whether there are any.
pub(super) fn norm_of_blocks(
    blocks: &NormBlocks,
    span: &BlockSpan,
    load: impl Fn(&Range<usize>, &mut [f32]) -> bool,
) -> BlockNorm {
    let mut norm = BlockNorm::default();
    let mut block = [0.0f32; BLOCK];
    for (range, lead) in span.blocks() {
        block.fill(0.0);
        let values = &mut block[lead..lead + range.len()];
        let is_covered = load(&range, values);
        // A copy that counts elsewhere may overflow like any other, and adds nothing if it has not.
        for gap in blocks.uncounted_within(range.clone()) {
            let copies = &mut values[gap.start - range.start..gap.end - range.start];
            copies.iter_mut().filter(|value| value.is_finite()).for_each(|value| *value = 0.0);
        }
        if is_covered {
            norm.add_block(&block);
        }
    }
    norm
}

/// Collective: adds up what the ranks found.
///
/// # Errors
/// As every collective.
pub(super) fn reduce(
    comm: &dyn Communicator,
    norm: BlockNorm,
    has_failed: bool,
    stop: Stop,
    [is_unbalanced, wants_table]: [bool; 2],
) -> Result<WorldNorm> {
    let mut values = norm.squares.limbs().to_vec();
    values.push(norm.overflows);
    values.push(u64::from(has_failed));
    values.push(u64::from(stop != Stop::No));
    values.push(u64::from(stop == Stop::Now));
    values.push(u64::from(is_unbalanced));
    values.push(u64::from(wants_table));
    comm.all_reduce_sum(&mut values)?;
    let (limbs, counts) = values.split_at(values.len() - 6);
    let norm = ExactSum::from_limbs(limbs).value().sqrt();
    let &[overflows, failed, stopping, out_of_time, unbalanced, asking] = counts else {
        return Err(Error::internal("the counts of the all-reduce have another number"));
    };
    Ok(WorldNorm { norm, overflows, failed, stopping, out_of_time, unbalanced, asking })
}
