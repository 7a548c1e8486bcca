//! Where in a shard a piece of gradient belongs.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::partition::{Partition, Run};
use crate::state::Inventory;
use crate::units::ParamIndex;

/// Calls `visit` with each place in the shard where elements `offset..offset + len` of a parameter
/// lie: the number of the shard's piece, and the run within the piece. With the default cut there
/// is one such place; among a caller's own pieces there may be several.
///
/// # Errors
/// Usage, naming the parameter: unknown, beyond its end, or outside of this rank's share.
pub(super) fn locate(
    inventory: &Inventory,
    partition: &Partition,
    (param, offset, len): (ParamIndex, u64, u64),
    visit: impl FnMut(usize, Run),
) -> Result<()> {
    if param.index() >= inventory.parameters().len() {
        return Err(Error::usage("a gradient for an unknown parameter").with("index", param));
    }
    let wrong = |message: &str| {
        Error::usage(message)
            .with("parameter", &inventory.parameter(param).name)
            .with("offset", offset)
            .with("length", len)
    };
    let end = offset.checked_add(len).filter(|end| *end <= inventory.elems(param));
    let end = end.ok_or_else(|| {
        wrong("a gradient beyond its parameter's end")
            .with("elements of the parameter", inventory.elems(param))
    })?;
    if !partition.locate(param, offset..end, visit) {
        return Err(wrong("a gradient outside of this rank's shard"));
    }
    Ok(())
}

/// What a shard has of each parameter: its share of it, in one piece or in several.
#[derive(Clone, Debug, Default)]
pub(super) struct Shares {
    /// The parameter of each share, ascending.
    params: Vec<ParamIndex>,
    elems: Vec<u64>,
    /// Where each piece of the shard begins in its share.
    starts: Vec<u64>,
}

/// Some elements of a share that lie together in the shard.
#[derive(Clone, Debug)]
pub(super) struct Located {
    /// Which share.
    pub share: usize,
    /// Its elements, counted over its pieces in the order of the parameter.
    pub in_share: Range<u64>,
    /// The same within the shard.
    pub in_shard: Range<usize>,
}

impl Shares {
    pub fn new(partition: &Partition) -> Self {
        let mut shares = Self { starts: vec![0; partition.pieces().len()], ..Self::default() };
        for at in partition.places_by_param() {
            let piece = &partition.pieces()[at];
            if shares.params.last() != Some(&piece.param) {
                shares.params.push(piece.param);
                shares.elems.push(0);
            }
            let elems = shares.elems.last_mut();
            elems.into_iter().for_each(|elems| {
                shares.starts[at] = *elems;
                *elems += piece.elems;
            });
        }
        shares
    }

    /// The parameter of each share.
    pub fn params(&self) -> &[ParamIndex] {
        &self.params
    }

    /// Elements of a share.
    pub fn elems(&self, share: usize) -> u64 {
        self.elems[share]
    }

    /// The share of a parameter.
    pub fn of_param(&self, param: ParamIndex) -> Option<usize> {
        self.params.binary_search(&param).ok()
    }

    /// Where elements of a parameter, given as parameter, offset and length, lie in the share and
    /// in the shard.
    ///
    /// # Errors
    /// Usage, naming the parameter: unknown, beyond its end, or outside of this rank's share.
    pub fn locate(
        &self,
        inventory: &Inventory,
        partition: &Partition,
        given: (ParamIndex, u64, u64),
    ) -> Result<Vec<Located>> {
        let mut located = Vec::with_capacity(1);
        locate(inventory, partition, given, |piece, run| {
            let share = self.of_param(run.param).unwrap_or_default();
            let skipped = run.param_offset - partition.pieces()[piece].param_offset;
            let start = self.starts[piece] + skipped;
            let in_share = start..start + run.elems;
            located.push(Located { share, in_share, in_shard: run.in_shard() });
        })?;
        Ok(located)
    }
}
