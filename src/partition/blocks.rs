//! Blocks of the norm: which elements are summed together in a fixed order.
//!
//! A block of the default cut is 4,096 elements of the flat space. A block of a caller's own pieces
//! is 4,096 elements of a parameter, counted from the parameter's start; a piece that has only a
//! part of a block adds that part.

use std::ops::Range;

use super::piece::Piece;
use super::{Partition, Run};
use crate::units::{BLOCK_ELEMS, ParamIndex};

const BLOCK: usize = BLOCK_ELEMS as usize;
/// Blocks of one span, which has 256 Ki elements.
const BLOCKS_PER_SPAN: usize = 64;

/// Neighbouring blocks, the work of one thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockSpan {
    /// Elements of the shard.
    pub in_shard: Range<usize>,
    /// How many elements of the first block come before this range and are not in the span.
    pub lead: usize,
}

/// The blocks of a shard.
#[derive(Clone, Debug, Default)]
pub struct NormBlocks {
    spans: Vec<BlockSpan>,
    uncounted: Vec<Range<usize>>,
}

impl BlockSpan {
    /// The blocks of the span: the range of the shard that each has, and how many elements of the
    /// block come before that range.
    pub fn blocks(&self) -> impl Iterator<Item = (Range<usize>, usize)> {
        let (Range { start, end }, lead) = (self.in_shard.clone(), self.lead);
        let origin = start as isize - lead as isize;
        let blocks = (0..).map(move |number| origin + (number * BLOCK) as isize);
        blocks.take_while(move |at| *at < end as isize).map(move |at| {
            let first = start.max(at.max(0) as usize);
            (first..end.min((at + BLOCK as isize) as usize), (first as isize - at) as usize)
        })
    }
}

impl NormBlocks {
    /// Blocks of the flat space, for a shard that is one range of it and begins where a block does.
    pub fn of_flat_space(partition: &Partition, uncounted: &[Piece]) -> Self {
        let whole = BlockSpan { in_shard: 0..partition.elems() as usize, lead: 0 };
        Self { spans: split(whole), uncounted: parts_of(partition, uncounted) }
    }

    /// Blocks of parameters, for a shard in pieces.
    pub fn of_parameters(partition: &Partition, uncounted: &[Piece]) -> Self {
        let span = |piece: &Run| BlockSpan {
            in_shard: piece.in_shard(),
            lead: (piece.param_offset % BLOCK_ELEMS) as usize,
        };
        let spans = partition.pieces().iter().map(span).flat_map(split).collect();
        Self { spans, uncounted: parts_of(partition, uncounted) }
    }

    /// All spans, in shard order; each can be summed by itself.
    pub fn spans(&self) -> &[BlockSpan] {
        &self.spans
    }

    /// The spans of the blocks within a range of the shard, such as a chunk. A block that the range
    /// cuts is summed in two parts, which are added exactly, but in another order than a whole one.
    pub fn spans_within(&self, range: Range<usize>) -> impl Iterator<Item = BlockSpan> {
        let first = self.spans.partition_point(|span| span.in_shard.end <= range.start);
        let overlapping = self.spans[first..].iter();
        let overlapping = overlapping.take_while(move |it| it.in_shard.start < range.end);
        overlapping.map(move |span| {
            let start = span.in_shard.start.max(range.start);
            let lead = (span.lead + (start - span.in_shard.start)) % BLOCK;
            BlockSpan { in_shard: start..span.in_shard.end.min(range.end), lead }
        })
    }

    /// The elements within a range of the shard that do not count because a copy on another rank
    /// does.
    pub fn uncounted_within(&self, range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let first = self.uncounted.partition_point(|gap| gap.end <= range.start);
        let overlapping = self.uncounted[first..].iter().take_while(move |it| it.start < range.end);
        overlapping.map(move |gap| gap.start.max(range.start)..gap.end.min(range.end))
    }
}

fn split(span: BlockSpan) -> Vec<BlockSpan> {
    let blocks: Vec<_> = span.blocks().collect();
    let spans = blocks.chunks(BLOCKS_PER_SPAN).map(|blocks| {
        let (first, lead) = &blocks[0];
        let end = blocks[blocks.len() - 1].0.end;
        BlockSpan { in_shard: first.start..end, lead: *lead }
    });
    spans.collect()
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
        let partition = Partition::of_pieces(&inventory, &pieces, 4096, 4096);
        let blocks = NormBlocks::of_parameters(&partition, &[piece(4090, 1)]);
        let seen: Vec<_> = blocks.spans().iter().flat_map(BlockSpan::blocks).collect();
        let expected =
            [(0..10, 15_000 - 3 * 4096), (10..106, 4000), (106..4202, 0), (4202..5010, 0)];
        assert_eq!(seen, expected);
        let uncounted: Vec<_> = blocks.uncounted_within(0..5010).flatten().collect();
        assert_eq!(uncounted, [100]);
        assert_eq!(blocks.uncounted_within(0..100).count(), 0);
        let cut: Vec<_> = blocks
            .spans_within(5..4300)
            .flat_map(|span| span.blocks().collect::<Vec<_>>())
            .collect();
        assert_eq!(
            cut,
            [(5..10, 15_005 - 3 * 4096), (10..106, 4000), (106..4202, 0), (4202..4300, 0)]
        );
    }

    #[test]
    fn spans_are_cut_at_blocks() {
        let span = BlockSpan { in_shard: 7..7 + 100 * BLOCK, lead: 90 };
        let spans = split(span.clone());
        let of_parts: Vec<_> = spans.iter().flat_map(BlockSpan::blocks).collect();
        assert_eq!(of_parts, span.blocks().collect::<Vec<_>>());
        assert_eq!(spans.len(), 2);
    }
}
