//! Blocks of the norm: which elements are summed together in a fixed order.
//!
//! A block of the default cut is 4,096 elements of the flat space. A block of a caller's own pieces
//! is 4,096 elements of a parameter, counted from the parameter's start; a piece that has only a
//! part of a block adds that part.

use std::ops::Range;
use std::sync::Arc;

use super::Partition;
use super::piece::Piece;
use crate::units::{BLOCK_ELEMS, ParamIndex};

const BLOCK: usize = BLOCK_ELEMS as usize;
/// Elements of a part of a span: 64 blocks.
const PART: usize = 64 * BLOCK;

/// Neighbouring blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockSpan {
    /// Elements of the shard.
    pub in_shard: Range<usize>,
    /// How many elements of the first block come before this range and are not in the span.
    pub lead: usize,
}

/// The blocks of a shard. None of them is kept: they follow from where its pieces begin.
#[derive(Clone, Debug)]
pub struct NormBlocks {
    partition: Arc<Partition>,
    /// Blocks are those of the flat space, not of parameters.
    are_flat: bool,
    uncounted: Vec<Range<usize>>,
}

impl BlockSpan {
    /// The blocks of the span: the range of the shard that each has, and how many elements of the
    /// block come before that range.
    pub fn blocks(&self) -> impl Iterator<Item = (Range<usize>, usize)> {
        self.cut_every(BLOCK).map(|part| (part.in_shard, part.lead))
    }

    /// The span in parts of 64 blocks, each the work of one thread: how many there are.
    pub fn part_count(&self) -> usize {
        if self.in_shard.is_empty() { 0 } else { (self.lead + self.in_shard.len()).div_ceil(PART) }
    }

    /// One of these parts.
    pub fn part(&self, number: usize) -> Self {
        self.cut(PART, number)
    }

    fn cut_every(&self, elems: usize) -> impl Iterator<Item = Self> {
        let count = (self.lead + self.in_shard.len()).div_ceil(elems);
        (0..count).map(move |number| self.cut(elems, number))
    }

    /// The part with this number, where the span is cut at so many elements, counted from the
    /// beginning of its first block.
    fn cut(&self, elems: usize, number: usize) -> Self {
        let Range { start, end } = self.in_shard;
        let edge = |number: usize| start + (number * elems).saturating_sub(self.lead);
        Self {
            in_shard: edge(number)..end.min(edge(number + 1)),
            lead: if number == 0 { self.lead } else { 0 },
        }
    }
}

impl NormBlocks {
    /// Blocks of the flat space, for a shard that is one range of it and begins where a block does.
    pub fn of_flat_space(partition: &Arc<Partition>, uncounted: &[Piece]) -> Self {
        Self::new(partition, true, uncounted)
    }

    /// Blocks of parameters, for a shard in pieces.
    pub fn of_parameters(partition: &Arc<Partition>, uncounted: &[Piece]) -> Self {
        Self::new(partition, false, uncounted)
    }

    fn new(partition: &Arc<Partition>, are_flat: bool, uncounted: &[Piece]) -> Self {
        let uncounted = parts_of(partition, uncounted);
        Self { partition: Arc::clone(partition), are_flat, uncounted }
    }

    /// The blocks of the whole shard.
    pub fn spans(&self) -> Vec<BlockSpan> {
        self.spans_within(0..self.partition.elems() as usize)
    }

    /// The blocks within a range of the shard, such as a chunk: a span for each piece, in shard
    /// order. A block that the range cuts is summed in two parts, which are added exactly, but in
    /// another order than a whole one.
    pub fn spans_within(&self, range: Range<usize>) -> Vec<BlockSpan> {
        if self.are_flat {
            let lead = range.start % BLOCK;
            return Vec::from([BlockSpan { in_shard: range, lead }]);
        }
        let pieces = self.partition.pieces();
        let first = pieces.partition_point(|piece| piece.in_shard().end <= range.start);
        let overlapping = pieces[first..].iter().map(|piece| (piece, piece.in_shard()));
        let overlapping = overlapping.take_while(|(_, at)| at.start < range.end);
        let spans = overlapping.map(|(piece, at)| {
            let start = at.start.max(range.start);
            let in_param = piece.param_offset + (start - at.start) as u64;
            let lead = (in_param % BLOCK_ELEMS) as usize;
            BlockSpan { in_shard: start..at.end.min(range.end), lead }
        });
        spans.collect()
    }

    /// The elements within a range of the shard that do not count because a copy on another rank
    /// does.
    pub fn uncounted_within(&self, range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let first = self.uncounted.partition_point(|gap| gap.end <= range.start);
        let overlapping = self.uncounted[first..].iter().take_while(move |it| it.start < range.end);
        overlapping.map(move |gap| gap.start.max(range.start)..gap.end.min(range.end))
    }
}

/// The ranges of the shard that these parts of parameters have, in shard order.
fn parts_of(partition: &Partition, uncounted: &[Piece]) -> Vec<Range<usize>> {
    let mut by_param: std::collections::HashMap<ParamIndex, Vec<Range<u64>>> = Default::default();
    for piece in uncounted {
        by_param.entry(piece.param).or_default().push(piece.range());
    }
    let mut parts = Vec::new();
    for piece in partition.pieces() {
        for gap in by_param.get(&piece.param).into_iter().flatten() {
            let from = gap.start.max(piece.param_offset);
            let to = gap.end.min(piece.param_offset + piece.elems);
            if from < to {
                let shift =
                    |offset: u64| (piece.shard_offset + (offset - piece.param_offset)) as usize;
                parts.push(shift(from)..shift(to));
            }
        }
    }
    parts.sort_unstable_by_key(|part| part.start);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Inventory, Parameter};

    #[test]
    fn blocks_of_a_piece_begin_where_those_of_its_parameter_do() {
        let inventory = Inventory::new(vec![Parameter::new("w", [20_000])]).unwrap();
        let piece = |offset, elems| Piece::new(ParamIndex(0), offset, elems);
        let pieces = [piece(15_000, 10), piece(4000, 5000)];
        let partition = Arc::new(Partition::of_pieces(&inventory, &pieces, 4096, 4096));
        let blocks = NormBlocks::of_parameters(&partition, &[piece(4090, 1)]);
        let of = |spans: Vec<BlockSpan>| -> Vec<_> {
            spans.iter().flat_map(|span| span.blocks().collect::<Vec<_>>()).collect()
        };
        let seen = of(blocks.spans());
        let expected =
            [(0..10, 15_000 - 3 * 4096), (10..106, 4000), (106..4202, 0), (4202..5010, 0)];
        assert_eq!(seen, expected);
        let uncounted: Vec<_> = blocks.uncounted_within(0..5010).flatten().collect();
        assert_eq!(uncounted, [100]);
        assert_eq!(blocks.uncounted_within(0..100).count(), 0);
        let cut = of(blocks.spans_within(5..4300));
        assert_eq!(
            cut,
            [(5..10, 15_005 - 3 * 4096), (10..106, 4000), (106..4202, 0), (4202..4300, 0)]
        );
    }

    #[test]
    fn spans_are_cut_at_blocks() {
        let span = BlockSpan { in_shard: 7..7 + 100 * BLOCK, lead: 90 };
        let parts: Vec<_> = (0..span.part_count()).map(|number| span.part(number)).collect();
        assert_eq!(parts.len(), 2);
        let of_parts: Vec<_> = parts.iter().flat_map(BlockSpan::blocks).collect();
        assert_eq!(of_parts, span.blocks().collect::<Vec<_>>());
        let ends: Vec<_> = of_parts.iter().map(|(range, lead)| range.len() + lead).collect();
        assert_eq!((ends.len(), ends[..100].iter().all(|end| *end == BLOCK)), (101, true));
        assert_eq!(BlockSpan { in_shard: 9..9, lead: 3 }.part_count(), 0);
    }
}
