//! Where in a shard a piece of gradient belongs.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::partition::Partition;
use crate::state::Inventory;
use crate::units::ParamIndex;

/// The pieces of a shard, to be found by parameter.
#[derive(Clone, Debug, Default)]
pub(super) struct PieceIndex {
    /// Numbers of pieces, by parameter and offset.
    order: Vec<usize>,
}

/// Where a piece of gradient belongs.
#[derive(Clone, Debug)]
pub(super) struct Located {
    /// Which of the shard's pieces.
    pub piece: usize,
    /// Its elements within that piece.
    pub in_piece: Range<u64>,
    /// Its elements within the shard.
    pub in_shard: Range<usize>,
}

impl PieceIndex {
    pub fn new(partition: &Partition) -> Self {
        let pieces = partition.pieces();
        let mut order: Vec<usize> = (0..pieces.len()).collect();
        order.sort_by_key(|piece| (pieces[*piece].param, pieces[*piece].param_offset));
        Self { order }
    }

    /// The piece that has an element of a parameter.
    pub fn find(&self, partition: &Partition, param: ParamIndex, offset: u64) -> Option<usize> {
        let pieces = partition.pieces();
        let key = |piece: &usize| (pieces[*piece].param, pieces[*piece].param_offset);
        let after = self.order.partition_point(|piece| key(piece) <= (param, offset));
        let piece = self.order[..after].last().copied()?;
        let run = &pieces[piece];
        (run.param == param && offset < run.param_offset + run.elems).then_some(piece)
    }

    /// Where elements `offset..offset + len` of a parameter lie.
    ///
    /// # Errors
    /// Usage, naming the parameter: unknown, beyond its end, or outside of this rank's share.
    pub fn locate(
        &self,
        inventory: &Inventory,
        partition: &Partition,
        param: ParamIndex,
        offset: u64,
        len: u64,
    ) -> Result<Located> {
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
        if len == 0 {
            return Ok(Located { piece: 0, in_piece: 0..0, in_shard: 0..0 });
        }
        let outside = || wrong("a gradient outside of this rank's shard");
        let piece = self.find(partition, param, offset).ok_or_else(outside)?;
        let run = &partition.pieces()[piece];
        if end > run.param_offset + run.elems {
            return Err(outside());
        }
        let start = offset - run.param_offset;
        let in_shard = (run.shard_offset + start) as usize;
        Ok(Located {
            piece,
            in_piece: start..start + len,
            in_shard: in_shard..in_shard + len as usize,
        })
    }
}
