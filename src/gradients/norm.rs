//! The norm of a shard's gradients, block by block.

use std::ops::Range;

use rayon::prelude::*;

use super::given::ShardGradients;
use crate::optim::{BlockNorm, GradElem};
use crate::partition::{BlockSpan, NormBlocks};
use crate::units::BLOCK_ELEMS;

const BLOCK: usize = BLOCK_ELEMS as usize;

/// This rank's part: the blocks of its shard.
pub(super) fn shard_norm<G: GradElem>(
    pool: &rayon::ThreadPool,
    gradients: &ShardGradients<'_, G>,
    blocks: &NormBlocks,
) -> BlockNorm {
    norm_of_spans(pool, blocks, &blocks.spans(), |range, out| {
        let mut is_covered = false;
        for (at, part) in gradients.within(range.clone()) {
            is_covered = true;
            let values = &mut out[at.start - range.start..at.end - range.start];
            values.iter_mut().zip(part.grad).for_each(|(value, grad)| *value = grad.load());
        }
        is_covered
    })
}

/// The norm of the blocks of these spans, in parallel; the sum is exact, so the order is free.
/// `load` is given a range of the shard and as many zeros, replaces the zeros by gradients, and
/// returns whether there are any.
pub(super) fn norm_of_spans(
    pool: &rayon::ThreadPool,
    blocks: &NormBlocks,
    spans: &[BlockSpan],
    load: impl Fn(&Range<usize>, &mut [f32]) -> bool + Sync,
) -> BlockNorm {
    let parts = spans.par_iter().flat_map(|span| {
        (0..span.part_count()).into_par_iter().map(move |number| span.part(number))
    });
    let norms = parts.map(|part| norm_of_blocks(blocks, &part, &load));
    pool.install(|| norms.reduce(BlockNorm::default, merged))
}

/// The norm of the blocks of both.
fn merged(mut one: BlockNorm, other: BlockNorm) -> BlockNorm {
    one.merge(other);
    one
}

/// The norm of the blocks of one span.
fn norm_of_blocks(
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
