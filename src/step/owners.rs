//! Which rank owns which elements.

use std::ops::Range;

use crate::partition::Piece;
use crate::plan::Plan;

/// Ranges of each rank, by rank.
type RangesByRank = Vec<Vec<Range<usize>>>;

/// Which elements of the flat space each rank owns that shares this rank's inventory, by rank among
/// them, each rank's in the order of its shard.
#[derive(Clone, Debug)]
pub(super) struct Owners(RangesByRank);

impl Owners {
    /// The owners where ranks have brought pieces of their own; `pieces` are those of each rank.
    pub fn of_pieces(plan: &Plan, pieces: &[Vec<Piece>]) -> Self {
        let range = |piece: &Piece| {
            let start = plan.inventory().flat_of(piece.param, piece.offset) as usize;
            start..start + piece.elems as usize
        };
        Self(pieces.iter().map(|of_rank| of_rank.iter().map(range).collect()).collect())
    }

    /// The owners with the default cut.
    pub fn of_ranges(plan: &Plan) -> Self {
        let range = |range: &Range<u64>| range.start as usize..range.end as usize;
        Self(plan.ranges().iter().map(|of_rank| Vec::from([range(of_rank)])).collect())
    }

    /// The ranges of the flat space that each rank owns.
    pub fn ranges(&self) -> &[Vec<Range<usize>>] {
        &self.0
    }

    /// What each rank owns of the range `whole`: the ranges, counted from the beginning of `whole`,
    /// and where each lies in the rank's shard.
    pub fn within(&self, whole: &Range<usize>) -> (RangesByRank, RangesByRank) {
        let (mut owned, mut in_shards) = (Vec::new(), Vec::new());
        for ranges in &self.0 {
            let (mut of_rank, mut in_shard, mut before) = (Vec::new(), Vec::new(), 0);
            for range in ranges {
                let (start, end) = (range.start.max(whole.start), range.end.min(whole.end));
                if start < end {
                    of_rank.push(start - whole.start..end - whole.start);
                    in_shard.push(before + start - range.start..before + end - range.start);
                }
                before += range.len();
            }
            owned.push(of_rank);
            in_shards.push(in_shard);
        }
        (owned, in_shards)
    }
}
