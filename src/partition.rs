//! From the inventory to chunks, in integers only: who owns which part of the flat space (shards),
//! what is swapped at once (sub-groups), and what one I/O moves (chunks) with the runs of
//! parameters inside it. Pure functions of the inventory, the rank and the sizes.

use std::ops::Range;

use crate::state::Inventory;
use crate::units::{BLOCK_ELEMS, ChunkIndex, ParamIndex, round_up};

/// A run of one parameter's elements that lies in one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The parameter it belongs to.
    pub param: ParamIndex,
    /// Its first element within the parameter.
    pub param_offset: u64,
    /// Its first element within the shard.
    pub shard_offset: u64,
    /// Number of elements.
    pub elems: u64,
}

impl Run {
    /// The run's elements within the shard.
    pub fn in_shard(&self) -> Range<usize> {
        self.shard_offset as usize..(self.shard_offset + self.elems) as usize
    }

    /// The run's elements within a chunk that begins at `chunk.shard_offset`.
    pub fn in_chunk(&self, chunk: &Chunk) -> Range<usize> {
        let start = (self.shard_offset - chunk.shard_offset) as usize;
        start..start + self.elems as usize
    }
}

/// The unit of I/O and pipeline: consecutive elements of the shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Its first element within the shard.
    pub shard_offset: u64,
    /// Number of live elements.
    pub elems: u64,
    /// Elements that its state tensors take: `elems` rounded up to whole blocks, the rest zero.
    pub padded_elems: u64,
    /// Where its runs are in the partition's list.
    runs: Range<usize>,
}

/// What one rank owns and how it is cut.
#[derive(Clone, Debug)]
pub struct Partition {
    flat: Range<u64>,
    chunks: Vec<Chunk>,
    runs: Vec<Run>,
    pieces: Vec<Run>,
}

/// The default cut: one contiguous range of the flat space per rank, at multiples of
/// [`BLOCK_ELEMS`], as even as that allows. With fewer blocks than ranks, some ranges are empty.
///
/// Twelve blocks over five ranks: 2, 2, 3, 2, 3.
pub fn contiguous_ranges(total_elems: u64, ranks: usize) -> Vec<Range<u64>> {
    let blocks = total_elems.div_ceil(BLOCK_ELEMS);
    let ranks = ranks as u64;
    // Quotient and remainder apart, so that blocks * ranks cannot overflow.
    let cut = |rank: u64| {
        let block = blocks / ranks * rank + blocks % ranks * rank / ranks;
        (block * BLOCK_ELEMS).min(total_elems)
    };
    (0..ranks).map(|rank| cut(rank)..cut(rank + 1)).collect()
}

impl Partition {
    /// Cuts one rank's range of the flat space into sub-groups of at most `sub_group_elems` and
    /// those into chunks of `chunk_elems`. Both sizes and the start of the range are multiples of
    /// [`BLOCK_ELEMS`]; the configuration and [`contiguous_ranges`] see to it.
    pub fn new(
        inventory: &Inventory,
        flat: Range<u64>,
        sub_group_elems: u64,
        chunk_elems: u64,
    ) -> Self {
        let mut partition =
            Self { flat: flat.clone(), chunks: Vec::new(), runs: Vec::new(), pieces: Vec::new() };
        let mut sub_group = flat.start;
        while sub_group < flat.end {
            let sub_group_end = flat.end.min(sub_group + sub_group_elems);
            let mut chunk = sub_group;
            while chunk < sub_group_end {
                let chunk_end = sub_group_end.min(chunk + chunk_elems);
                partition.push_chunk(inventory, chunk..chunk_end);
                chunk = chunk_end;
            }
            sub_group = sub_group_end;
        }
        partition.pieces = join_runs(&partition.runs);
        partition
    }

    fn push_chunk(&mut self, inventory: &Inventory, flat: Range<u64>) {
        let first_run = self.runs.len();
        let mut at = flat.start;
        while at < flat.end {
            let param = inventory.param_at(at);
            let param_start = inventory.flat_start(param);
            let end = flat.end.min(param_start + inventory.elems(param));
            self.runs.push(Run {
                param,
                param_offset: at - param_start,
                shard_offset: at - self.flat.start,
                elems: end - at,
            });
            at = end;
        }
        let elems = flat.end - flat.start;
        self.chunks.push(Chunk {
            shard_offset: flat.start - self.flat.start,
            elems,
            padded_elems: round_up(elems, BLOCK_ELEMS),
            runs: first_run..self.runs.len(),
        });
    }

    /// The shard's range of the flat space, in elements.
    pub fn flat(&self) -> Range<u64> {
        self.flat.clone()
    }

    /// Elements of the shard.
    pub fn elems(&self) -> u64 {
        self.flat.end - self.flat.start
    }

    /// The chunks in shard order.
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// One chunk.
    pub fn chunk(&self, chunk: ChunkIndex) -> &Chunk {
        &self.chunks[chunk.index()]
    }

    /// The runs of one chunk, in order; they cover its live elements without a gap.
    pub fn runs_of(&self, chunk: ChunkIndex) -> &[Run] {
        &self.runs[self.chunks[chunk.index()].runs.clone()]
    }

    /// All runs of the shard, in order.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The shard as pieces: each parameter's part of it, not cut at chunks.
    pub fn pieces(&self) -> &[Run] {
        &self.pieces
    }
}

/// Neighbouring runs of one parameter as one.
fn join_runs(runs: &[Run]) -> Vec<Run> {
    let mut pieces: Vec<Run> = Vec::new();
    for run in runs {
        match pieces.last_mut() {
            Some(piece) if piece.param == run.param => piece.elems += run.elems,
            _ => pieces.push(*run),
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::state::Parameter;

    #[test]
    fn ranges_are_even_and_may_be_empty() {
        let blocks = |total, ranks| -> Vec<u64> {
            let ranges = contiguous_ranges(total, ranks);
            ranges.iter().map(|range| (range.end - range.start).div_ceil(BLOCK_ELEMS)).collect()
        };
        assert_eq!(blocks(12 * BLOCK_ELEMS, 5), [2, 2, 3, 2, 3]);
        assert_eq!(blocks(1, 3), [0, 0, 1]);
        assert_eq!(blocks(BLOCK_ELEMS + 1, 1), [2]);
    }

    proptest! {
        #[test]
        fn every_element_has_one_owner_one_chunk_and_one_run(
            sizes in prop::collection::vec(1usize..20_000, 1..12),
            ranks in 1usize..9,
            chunk_blocks in 1u64..5,
            sub_group_blocks in 1u64..9,
        ) {
            let parameters = sizes.iter().enumerate();
            let parameters = parameters.map(|(i, n)| Parameter::new(format!("p{i}"), [*n]));
            let inventory = Inventory::new(parameters.collect()).unwrap();
            let chunk_elems = chunk_blocks * BLOCK_ELEMS;
            let mut next = 0;
            for range in contiguous_ranges(inventory.total_elems(), ranks) {
                let sub_group_elems = sub_group_blocks * BLOCK_ELEMS;
                let partition =
                    Partition::new(&inventory, range.clone(), sub_group_elems, chunk_elems);
                prop_assert_eq!(range.start, next);
                for index in 0..partition.chunks().len() {
                    let chunk = &partition.chunks()[index];
                    let start = range.start + chunk.shard_offset;
                    prop_assert_eq!(start, next);
                    prop_assert_eq!(start % BLOCK_ELEMS, 0);
                    prop_assert!(chunk.elems > 0 && chunk.elems <= chunk_elems);
                    let chunk_end = next + chunk.elems;
                    for run in partition.runs_of(ChunkIndex::from_index(index)) {
                        prop_assert_eq!(
                            inventory.flat_start(run.param) + run.param_offset, next);
                        prop_assert!(run.param_offset + run.elems <= inventory.elems(run.param));
                        prop_assert_eq!(run.in_chunk(chunk).start as u64, next - start);
                        next += run.elems;
                    }
                    prop_assert_eq!(next, chunk_end);
                }
                prop_assert_eq!(next, range.end);
                let pieces: u64 = partition.pieces().iter().map(|piece| piece.elems).sum();
                prop_assert_eq!(pieces, partition.elems());
            }
            prop_assert_eq!(next, inventory.total_elems());
        }
    }
}
