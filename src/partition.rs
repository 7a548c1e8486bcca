//! How the parameters of an inventory are cut: into shards, which ranks own, into sub-groups within
//! a shard, and into chunks within a sub-group, which I/O moves. All of it is pure arithmetic with
//! integers, from the inventory, the cut and the sizes.

mod blocks;
mod cover;
mod cut;
mod piece;

use std::ops::Range;

use crate::state::Inventory;
use crate::units::{BLOCK_ELEMS, ChunkIndex, ParamIndex, round_up};

pub use blocks::{BlockSpan, NormBlocks};
pub use cover::{check_cover, check_pieces};
pub use cut::{Allotment, Cut, contiguous_range, contiguous_ranges, slice_of};
pub use piece::Piece;

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

    /// The part of the run that is this range of the shard.
    fn part(&self, in_shard: Range<u64>) -> Self {
        Self {
            param: self.param,
            param_offset: self.param_offset + (in_shard.start - self.shard_offset),
            shard_offset: in_shard.start,
            elems: in_shard.end - in_shard.start,
        }
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
    /// The range of its runs in the partition's list.
    runs: Range<usize>,
}

impl Chunk {
    /// The chunk's live elements within the shard.
    pub fn in_shard(&self) -> Range<usize> {
        self.shard_offset as usize..(self.shard_offset + self.elems) as usize
    }
}

/// A rank's shard and how it is cut into chunks and runs.
#[derive(Clone, Debug)]
pub struct Partition {
    flat: Range<u64>,
    elems: u64,
    chunks: Vec<Chunk>,
    runs: Vec<Run>,
    pieces: Vec<Run>,
    /// Indices into `pieces`, sorted by parameter and by the offset within it.
    by_param: Vec<usize>,
}

impl Partition {
    /// Cuts one range of the flat space into sub-groups of at most `sub_group_elems` elements and
    /// those into chunks of at most `chunk_elems`. Both sizes and the start of the range must be
    /// multiples of [`BLOCK_ELEMS`], as the configuration and [`contiguous_ranges`] make them.
    pub fn new(
        inventory: &Inventory,
        flat: Range<u64>,
        sub_group_elems: u64,
        chunk_elems: u64,
    ) -> Self {
        let pieces = cut::pieces_of_range(inventory, flat);
        Self::of_pieces(inventory, &pieces, sub_group_elems, chunk_elems)
    }

    /// Cuts the shard that consists of these pieces, in this order, in the same way. The pieces
    /// must be such as [`check_pieces`] accepts. Where a piece ends has no influence on where
    /// chunks do.
    pub fn of_pieces(
        inventory: &Inventory,
        pieces: &[Piece],
        sub_group_elems: u64,
        chunk_elems: u64,
    ) -> Self {
        let pieces = join_pieces(pieces);
        let elems = pieces.last().map_or(0, |last| last.shard_offset + last.elems);
        let mut by_param: Vec<usize> = (0..pieces.len()).collect();
        by_param.sort_by_key(|at| (pieces[*at].param, pieces[*at].param_offset));
        let flat = flat_range(inventory, &pieces);
        // Each chunk begins a run, and each piece does.
        let count = chunk_count(elems, sub_group_elems, chunk_elems);
        let (chunks, runs) = (Vec::with_capacity(count), Vec::with_capacity(count + pieces.len()));
        let mut partition = Self { flat, elems, chunks, runs, pieces, by_param };
        let mut first_piece = 0;
        let mut sub_group = 0;
        while sub_group < elems {
            let sub_group_end = elems.min(sub_group + sub_group_elems);
            let mut chunk = sub_group;
            while chunk < sub_group_end {
                let chunk_end = sub_group_end.min(chunk + chunk_elems);
                first_piece = partition.push_chunk(chunk..chunk_end, first_piece);
                chunk = chunk_end;
            }
            sub_group = sub_group_end;
        }
        partition
    }

    /// Adds the chunk of this range of the shard, which begins in the piece `at`. Returns the piece
    /// in which the next chunk begins.
    fn push_chunk(&mut self, range: Range<u64>, mut at: usize) -> usize {
        let first_run = self.runs.len();
        let mut start = range.start;
        while start < range.end {
            let piece = self.pieces[at];
            let end = range.end.min(piece.shard_offset + piece.elems);
            self.runs.push(piece.part(start..end));
            start = end;
            at += usize::from(end == piece.shard_offset + piece.elems);
        }
        let elems = range.end - range.start;
        self.chunks.push(Chunk {
            shard_offset: range.start,
            elems,
            padded_elems: round_up(elems, BLOCK_ELEMS),
            runs: first_run..self.runs.len(),
        });
        at
    }

    /// The shard's range of the flat space, in elements, if it is a single one, as with the default
    /// cut; else empty. Use [`Inventory::flat_of`] for the position of a run.
    pub fn flat(&self) -> Range<u64> {
        self.flat.clone()
    }

    /// Number of elements of the shard.
    pub fn elems(&self) -> u64 {
        self.elems
    }

    /// The chunks in shard order.
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// One chunk.
    pub fn chunk(&self, chunk: ChunkIndex) -> &Chunk {
        &self.chunks[chunk.index()]
    }

    /// The chunks in shard order, each with its number.
    pub fn indexed_chunks(&self) -> impl Iterator<Item = (ChunkIndex, &Chunk)> {
        self.chunks.iter().enumerate().map(|(at, chunk)| (ChunkIndex::from_index(at), chunk))
    }

    /// The runs of one chunk, in order; they cover its live elements without a gap.
    pub fn runs_of(&self, chunk: ChunkIndex) -> &[Run] {
        &self.runs[self.chunks[chunk.index()].runs.clone()]
    }

    /// All runs of the shard, in order.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The shard as pieces, not cut at chunks: neighbours of one parameter are one.
    pub fn pieces(&self) -> &[Run] {
        &self.pieces
    }

    /// The pieces sorted by parameter and by their offset within it. A shard in pieces of the
    /// caller's own may have several pieces of one parameter, anywhere.
    pub fn pieces_by_param(&self) -> impl Iterator<Item = &Run> {
        self.by_param.iter().map(|at| &self.pieces[*at])
    }

    /// The same pieces, as indices into [`Self::pieces`].
    pub fn places_by_param(&self) -> impl Iterator<Item = usize> {
        self.by_param.iter().copied()
    }

    /// Finds these elements of a parameter in the shard and calls `found` for each piece that has
    /// some of them, in order: with the piece's index in [`Self::pieces`] and the part of it.
    /// Returns whether all of them are in the shard.
    pub fn locate(
        &self,
        param: ParamIndex,
        range: Range<u64>,
        mut found: impl FnMut(usize, Run),
    ) -> bool {
        let ends_before = |at: &usize| {
            let piece = &self.pieces[*at];
            (piece.param, piece.param_offset + piece.elems) <= (param, range.start)
        };
        let first = self.by_param.partition_point(ends_before);
        let mut start = range.start;
        for at in &self.by_param[first..] {
            let piece = &self.pieces[*at];
            if start >= range.end || piece.param != param || piece.param_offset > start {
                break;
            }
            let end = range.end.min(piece.param_offset + piece.elems);
            let shift = |offset: u64| piece.shard_offset + (offset - piece.param_offset);
            found(*at, piece.part(shift(start)..shift(end)));
            start = end;
        }
        start >= range.end
    }
}

/// How many chunks a shard has.
fn chunk_count(elems: u64, sub_group_elems: u64, chunk_elems: u64) -> usize {
    let whole = elems / sub_group_elems * sub_group_elems.div_ceil(chunk_elems);
    (whole + (elems % sub_group_elems).div_ceil(chunk_elems)) as usize
}

/// Pieces end to end, neighbours of one parameter as one, empty ones left out.
fn join_pieces(pieces: &[Piece]) -> Vec<Run> {
    let mut joined: Vec<Run> = Vec::with_capacity(pieces.len());
    let mut shard_offset = 0;
    for piece in pieces.iter().filter(|piece| piece.elems > 0) {
        match joined.last_mut() {
            Some(last)
                if last.param == piece.param && last.param_offset + last.elems == piece.offset =>
            {
                last.elems += piece.elems;
            }
            _ => joined.push(Run {
                param: piece.param,
                param_offset: piece.offset,
                shard_offset,
                elems: piece.elems,
            }),
        }
        shard_offset += piece.elems;
    }
    joined
}

/// The range of the flat space that these pieces are, if they are one.
fn flat_range(inventory: &Inventory, pieces: &[Run]) -> Range<u64> {
    let flat = |piece: &Run| inventory.flat_of(piece.param, piece.param_offset);
    let start = pieces.first().map_or(0, flat);
    let is_one = pieces.iter().all(|piece| flat(piece) == start + piece.shard_offset);
    let elems = pieces.iter().map(|piece| piece.elems).sum::<u64>();
    if is_one { start..start + elems } else { 0..0 }
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
                prop_assert_eq!(
                    chunk_count(partition.elems(), sub_group_elems, chunk_elems),
                    partition.chunks().len()
                );
                let pieces: u64 = partition.pieces().iter().map(|piece| piece.elems).sum();
                prop_assert_eq!(pieces, partition.elems());
            }
            prop_assert_eq!(next, inventory.total_elems());
        }
    }
}
