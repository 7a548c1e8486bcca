//! Sums of gradients in the format in which they are kept.

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::norm::norm_of_spans;
use crate::config::AccumulateIn;
use crate::optim::{BlockNorm, GradElem, ParamElem, SPLIT_ELEMS};
use crate::partition::NormBlocks;
use crate::wire::{crc32c, crc32c_joined};

const PIECE_BYTES: usize = 4 * SPLIT_ELEMS;

/// Stores a piece of gradient, or adds it to what is there, from element `start` on. Each element
/// is one sum, so work may be split anywhere.
pub(super) fn accumulate<G: GradElem>(
    pool: &rayon::ThreadPool,
    format: AccumulateIn,
    sums: &mut [u8],
    start: usize,
    piece: &[G],
    is_first: bool,
) {
    match format {
        AccumulateIn::F32 => add::<f32, G>(pool, sums, start, piece, is_first),
        AccumulateIn::Bf16 => add::<bf16, G>(pool, sums, start, piece, is_first),
    }
}

fn add<A: GradElem + ParamElem, G: GradElem>(
    pool: &rayon::ThreadPool,
    sums: &mut [u8],
    start: usize,
    piece: &[G],
    is_first: bool,
) {
    let sums: &mut [A] = bytemuck::cast_slice_mut(sums);
    let sums = &mut sums[start..start + piece.len()];
    if piece.len() <= SPLIT_ELEMS {
        return add_serially(sums, piece, is_first);
    }
    let parts = sums.par_chunks_mut(SPLIT_ELEMS).zip(piece.par_chunks(SPLIT_ELEMS));
    pool.install(|| parts.for_each(|(sums, piece)| add_serially(sums, piece, is_first)));
}

fn add_serially<A: GradElem + ParamElem, G: GradElem>(sums: &mut [A], piece: &[G], is_first: bool) {
    let pairs = sums.iter_mut().zip(piece);
    if is_first {
        pairs.for_each(|(sum, grad)| *sum = A::emit(grad.load()));
    } else {
        pairs.for_each(|(sum, grad)| *sum = A::emit(sum.load() + grad.load()));
    }
}

/// Norm and overflows of the gradients of a range of the shard, such as a chunk, block by block.
pub(super) fn norm_of(
    pool: &rayon::ThreadPool,
    format: AccumulateIn,
    sums: &[u8],
    blocks: &NormBlocks,
    range: Range<usize>,
) -> BlockNorm {
    match format {
        AccumulateIn::F32 => norm::<f32>(pool, bytemuck::cast_slice(sums), blocks, range),
        AccumulateIn::Bf16 => norm::<bf16>(pool, bytemuck::cast_slice(sums), blocks, range),
    }
}

fn norm<A: GradElem>(
    pool: &rayon::ThreadPool,
    sums: &[A],
    blocks: &NormBlocks,
    range: Range<usize>,
) -> BlockNorm {
    let start = range.start;
    norm_of_spans(pool, blocks, &blocks.spans_within(range), |at, out| {
        let sums = &sums[at.start - start..at.end - start];
        out.iter_mut().zip(sums).for_each(|(value, sum)| *value = sum.load());
        true
    })
}

/// The CRC32C of bytes, in parallel.
pub(super) fn checksum_of(pool: &rayon::ThreadPool, bytes: &[u8]) -> u32 {
    let sum_of = |piece: &[u8]| (crc32c(piece), piece.len() as u64);
    let sums: Vec<(u32, u64)> =
        pool.install(|| bytes.par_chunks(PIECE_BYTES).map(sum_of).collect());
    let join = |(first, _), (second, len)| (crc32c_joined(first, second, len), 0);
    sums.into_iter().reduce(join).map_or(0, |(sum, _)| sum)
}
