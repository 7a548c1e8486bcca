//! Which rank owns which elements.

use std::ops::Range;

use crate::coord::{Communicator, OwnedRanges, gather_all};
use crate::error::Result;
use crate::partition::{Cut, Piece, slice_of};
use crate::plan::Plan;
use crate::state::Inventory;
use crate::units::ParamIndex;

/// Which elements of the flat space each rank owns that shares this rank's inventory, by rank among
/// them, each rank's in the order of its shard.
#[derive(Clone, Debug)]
pub(super) enum Owners {
    /// A slice of every parameter for each rank. They follow from the inventory, so nothing is kept
    /// of them.
    Slices {
        /// Of so many ranks.
        ranks: usize,
    },
    /// Any ranges: those of each rank, and where those of one parameter are found.
    Ranges {
        /// By rank.
        of_rank: Vec<Vec<Range<usize>>>,
        /// Rank and place of every range that is not empty, by where it begins.
        ascending: Vec<(u32, u32)>,
    },
}

impl Owners {
    /// Collective where ranks have brought pieces of their own: they exchange these, unless all
    /// have slices.
    ///
    /// # Errors
    /// Peer, not agreed, if another rank does not come in time.
    pub fn discover(plan: &Plan, comm: &dyn Communicator) -> Result<Self> {
        let Cut::Own(pieces) = &plan.allotment().cut else {
            let only = |range: Range<u64>| vec![range.start as usize..range.end as usize; 1];
            return Ok(Self::of_ranges(plan.ranges().into_iter().map(only).collect()));
        };
        let (inventory, ranks) = (plan.inventory(), comm.size());
        let flat = |piece: &Piece| flat_range(inventory, piece.param, piece.range());
        let sliced = slices(inventory, comm.rank().index(), ranks);
        let mut are_slices = [u64::from(pieces.iter().map(flat).eq(sliced))];
        comm.all_reduce_sum(&mut are_slices)?;
        if are_slices[0] == ranks as u64 {
            return Ok(Self::Slices { ranks });
        }
        let all: Vec<Vec<Piece>> = gather_all(comm, pieces)?;
        let of_rank = all.iter().map(|pieces| pieces.iter().map(flat).collect());
        Ok(Self::of_ranges(of_rank.collect()))
    }

    fn of_ranges(of_rank: Vec<Vec<Range<usize>>>) -> Self {
        let places = of_rank.iter().enumerate().flat_map(|(rank, ranges)| {
            let full = ranges.iter().enumerate().filter(|(_, range)| !range.is_empty());
            full.map(move |(place, _)| (rank as u32, place as u32))
        });
        let mut ascending: Vec<(u32, u32)> = places.collect();
        ascending.sort_by_key(|(rank, place)| of_rank[*rank as usize][*place as usize].start);
        Self::Ranges { of_rank, ascending }
    }

    /// The ranges of the flat space that each rank owns.
    pub fn ranges<'a>(&'a self, inventory: &'a Inventory) -> Vec<OwnedRanges<'a>> {
        match self {
            Self::Slices { ranks } => {
                let of = |rank| -> OwnedRanges<'a> { Box::new(slices(inventory, rank, *ranks)) };
                (0..*ranks).map(of).collect()
            }
            Self::Ranges { of_rank, .. } => of_rank.iter().map(|ranges| each_of(ranges)).collect(),
        }
    }

    /// What each rank owns of a parameter, counted from the parameter's beginning.
    pub fn of_param(&self, inventory: &Inventory, param: ParamIndex) -> Vec<Vec<Range<usize>>> {
        let elems = inventory.elems(param);
        let (of_rank, ascending) = match self {
            Self::Slices { ranks } => {
                let owned = |rank| {
                    let slice = slice_of(elems, rank, *ranks);
                    vec![slice.start as usize..slice.end as usize; 1]
                };
                return (0..*ranks).map(owned).collect();
            }
            Self::Ranges { of_rank, ascending } => (of_rank, ascending),
        };
        let whole = flat_range(inventory, param, 0..elems);
        let range = |(rank, place): &(u32, u32)| &of_rank[*rank as usize][*place as usize];
        // Ranges overlap within a parameter at most, where ranks have copies of it.
        let first = ascending.partition_point(|at| range(at).end <= whole.start);
        let here = ascending[first..].iter().take_while(|at| range(at).start < whole.end);
        let mut here: Vec<(u32, u32)> = here.copied().collect();
        here.sort_unstable();
        let mut owned = vec![Vec::new(); of_rank.len()];
        for at in here {
            let (start, end) = (range(&at).start.max(whole.start), range(&at).end.min(whole.end));
            owned[at.0 as usize].push(start - whole.start..end - whole.start);
        }
        owned
    }
}

/// One rank's ranges, to be walked through.
pub(super) fn each_of(ranges: &[Range<usize>]) -> OwnedRanges<'_> {
    Box::new(ranges.iter().cloned())
}

/// A rank's slice of every parameter of which it has one.
fn slices(
    inventory: &Inventory,
    rank: usize,
    ranks: usize,
) -> impl Iterator<Item = Range<usize>> + '_ {
    let params = (0..inventory.parameters().len()).map(ParamIndex::from_index);
    let slice =
        move |param| flat_range(inventory, param, slice_of(inventory.elems(param), rank, ranks));
    params.map(slice).filter(|slice| !slice.is_empty())
}

fn flat_range(inventory: &Inventory, param: ParamIndex, range: Range<u64>) -> Range<usize> {
    let start = inventory.flat_start(param);
    (start + range.start) as usize..(start + range.end) as usize
}
