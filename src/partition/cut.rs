//! Cuts: which elements of the parameters each shard has, and in which order.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::piece::Piece;
use crate::error::{Error, Result};
use crate::state::Inventory;
use crate::units::BLOCK_ELEMS;

/// Which elements a shard has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cut {
    /// One of so many contiguous ranges of the flat space, see [`contiguous_ranges`].
    Contiguous {
        /// Which, from 0.
        part: u32,
        /// Of how many.
        parts: u32,
    },
    /// The caller's own pieces, in the order of the shard.
    Own(Vec<Piece>),
}

impl Cut {
    /// Checks that this is a cut of the inventory.
    ///
    /// # Errors
    /// Usage if a piece does not lie within a parameter of the inventory or overlaps another one,
    /// or if `part` is not below `parts`.
    pub fn check(&self, inventory: &Inventory) -> Result<()> {
        match self {
            Self::Contiguous { part, parts } if part >= parts => {
                Err(Error::usage("there is no such part of the default cut")
                    .with("part", part)
                    .with("parts", parts))
            }
            Self::Contiguous { .. } => Ok(()),
            Self::Own(pieces) => super::check_pieces(inventory, pieces).map(drop),
        }
    }

    /// The first difference to another cut, as a text for each of the two. `None` if a rank with
    /// this cut may go on with the other's shard.
    pub fn difference(&self, other: &Self, inventory: &Inventory) -> Option<(String, String)> {
        let name = |piece: Option<&Piece>| match piece {
            Some(piece) => piece.describe(inventory),
            None => "no more".to_owned(),
        };
        let whole = |cut: &Self| match cut {
            Self::Contiguous { parts, .. } => format!("a contiguous part of {parts}"),
            Self::Own(pieces) => format!("{} pieces of the caller's own", pieces.len()),
        };
        match (self, other) {
            (Self::Own(ours), Self::Own(theirs)) => {
                let mut places = 0..ours.len().max(theirs.len());
                let first = places.find(|at| ours.get(*at) != theirs.get(*at))?;
                let describe =
                    |pieces: &[Piece]| format!("piece {first}: {}", name(pieces.get(first)));
                Some((describe(ours), describe(theirs)))
            }
            (Self::Contiguous { parts: ours, .. }, Self::Contiguous { parts: theirs, .. })
                if ours == theirs =>
            {
                None
            }
            _ => Some((whole(self), whole(other))),
        }
    }

    /// A number that is the same for all cuts that have no [`Self::difference`].
    pub fn fingerprint(&self) -> u64 {
        match self {
            Self::Contiguous { parts, .. } => u64::from(*parts),
            Self::Own(pieces) => {
                let numbers = pieces.iter().flat_map(|it| [it.param.0.into(), it.offset, it.elems]);
                xxh3_64(&numbers.flat_map(u64::to_le_bytes).collect::<Vec<u8>>()) | 1 << 63
            }
        }
    }

    /// The pieces, in the order of the shard.
    pub fn pieces(&self, inventory: &Inventory) -> Vec<Piece> {
        match self {
            Self::Own(pieces) => pieces.clone(),
            Self::Contiguous { part, parts } => {
                let range = contiguous_range(inventory.total_elems(), *part, *parts);
                pieces_of_range(inventory, range)
            }
        }
    }
}

/// One rank's shard among those of the job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allotment {
    /// The shard's number.
    pub shard: u32,
    /// How many there are, those of other inventories included.
    pub shards: u32,
    /// The number of its inventory.
    pub group: u32,
    /// How many inventories there are.
    pub groups: u32,
    /// Its elements.
    pub cut: Cut,
    /// Which part of the default cut each rank has, for the ranks that share the inventory in their
    /// order. Empty for pieces of the caller's own.
    pub parts: Vec<u32>,
    /// Elements that other ranks have too and that count in the norm there; some may not be in this
    /// shard.
    pub uncounted: Vec<Piece>,
}

impl Allotment {
    /// Rank `shard` of `shards` with the default cut of one inventory.
    pub fn contiguous(shard: u32, shards: u32) -> Self {
        Self {
            shard,
            shards,
            group: 0,
            groups: 1,
            cut: Cut::Contiguous { part: shard, parts: shards },
            parts: (0..shards).collect(),
            uncounted: Vec::new(),
        }
    }
}

/// A range of the flat space as pieces.
pub(super) fn pieces_of_range(inventory: &Inventory, flat: Range<u64>) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut at = flat.start;
    while at < flat.end {
        let param = inventory.param_at(at);
        let start = inventory.flat_start(param);
        let end = flat.end.min(start + inventory.elems(param));
        pieces.push(Piece::new(param, at - start, end - at));
        at = end;
    }
    pieces
}

/// The default cut: one contiguous range of the flat space per rank. The ranges begin at multiples
/// of [`BLOCK_ELEMS`] and are as even as that allows. With fewer blocks than ranks, some are empty.
///
/// Twelve blocks over five ranks: 2, 2, 3, 2, 3.
pub fn contiguous_ranges(total_elems: u64, ranks: usize) -> Vec<Range<u64>> {
    (0..ranks as u32).map(|rank| contiguous_range(total_elems, rank, ranks as u32)).collect()
}

/// One of the ranges of [`contiguous_ranges`].
pub fn contiguous_range(total_elems: u64, rank: u32, ranks: u32) -> Range<u64> {
    let blocks = total_elems.div_ceil(BLOCK_ELEMS);
    let ranks = u64::from(ranks);
    // Quotient and remainder apart, so that blocks * ranks cannot overflow.
    let cut = |rank: u64| {
        let block = blocks / ranks * rank + blocks % ranks * rank / ranks;
        (block * BLOCK_ELEMS).min(total_elems)
    };
    cut(u64::from(rank))..cut(u64::from(rank) + 1)
}

/// A rank's slice of a parameter where each of some ranks has one: its elements divided by the
/// number of ranks, rounded up; the last ranks may have fewer or none.
pub fn slice_of(elems: u64, rank: usize, ranks: usize) -> Range<u64> {
    let share = elems.div_ceil(ranks as u64);
    let cut = |rank: usize| elems.min(share * rank as u64);
    cut(rank)..cut(rank + 1)
}
