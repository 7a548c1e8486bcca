//! Sums of gradients in the format in which they are kept.

use half::bf16;
use rayon::prelude::*;

use crate::config::AccumulateIn;
use crate::optim::{BlockNorm, GradElem, ParamElem, SPLIT_ELEMS};
use crate::units::BLOCK_ELEMS;
use crate::wire::{crc32c, crc32c_joined};

/// Blocks of one task: 256 Ki elements.
const TASK_ELEMS: usize = 64 * BLOCK_ELEMS as usize;
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
    let add = |(sums, piece): (&mut [A], &[G])| match is_first {
        true => sums.iter_mut().zip(piece).for_each(|(sum, grad)| *sum = A::emit(grad.load())),
        false => sums
            .iter_mut()
            .zip(piece)
            .for_each(|(sum, grad)| *sum = A::emit(sum.load() + grad.load())),
    };
    if piece.len() <= SPLIT_ELEMS {
        return add((sums, piece));
    }
    let parts = sums.par_chunks_mut(SPLIT_ELEMS).zip(piece.par_chunks(SPLIT_ELEMS));
    pool.install(|| parts.for_each(add));
}

/// Norm and overflows of the gradients of a chunk, block by block as [`super::norm`] has them.
pub(super) fn norm_of(
    pool: &rayon::ThreadPool,
    format: AccumulateIn,
    sums: &[u8],
    elems: usize,
) -> BlockNorm {
    match format {
        AccumulateIn::F32 => norm::<f32>(pool, sums, elems),
        AccumulateIn::Bf16 => norm::<bf16>(pool, sums, elems),
    }
}

fn norm<A: GradElem>(pool: &rayon::ThreadPool, sums: &[u8], elems: usize) -> BlockNorm {
    let sums: &[A] = bytemuck::cast_slice(sums);
    let of_task = |task: &[A]| {
        let mut norm = BlockNorm::default();
        let mut block = [0.0f32; BLOCK_ELEMS as usize];
        for values in task.chunks(block.len()) {
            let block = &mut block[..values.len()];
            block.iter_mut().zip(values).for_each(|(value, sum)| *value = sum.load());
            norm.add_block(block);
        }
        norm
    };
    let merge = |mut sum: BlockNorm, other| {
        sum.merge(other);
        sum
    };
    let tasks = sums[..elems].par_chunks(TASK_ELEMS);
    pool.install(|| tasks.map(of_task).reduce(BlockNorm::default, merge))
}

/// The CRC32C of bytes, in parallel.
pub(super) fn checksum_of(pool: &rayon::ThreadPool, bytes: &[u8]) -> u32 {
    let sum_of = |piece: &[u8]| (crc32c(piece), piece.len() as u64);
    let sums: Vec<(u32, u64)> =
        pool.install(|| bytes.par_chunks(PIECE_BYTES).map(sum_of).collect());
    let join = |(first, _), (second, len)| (crc32c_joined(first, second, len), 0);
    sums.into_iter().reduce(join).map_or(0, |(sum, _)| sum)
}
