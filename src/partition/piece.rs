//! A part of one parameter: what shards are made of.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::state::Inventory;
use crate::units::ParamIndex;

/// A part of one parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Piece {
    /// The parameter.
    pub param: ParamIndex,
    /// Its first element within the parameter.
    pub offset: u64,
    /// Number of elements.
    pub elems: u64,
}

impl Piece {
    /// Elements `offset..offset + elems` of a parameter.
    pub fn new(param: ParamIndex, offset: u64, elems: u64) -> Self {
        Self { param, offset, elems }
    }

    /// The piece in words: the parameter's name and the range of elements.
    pub fn describe(&self, inventory: &Inventory) -> String {
        let name = inventory.parameters().get(self.param.index()).map_or("?", |it| &it.name);
        format!("{name}[{}..{}]", self.offset, self.offset.saturating_add(self.elems))
    }

    /// The range of its elements within the parameter.
    pub fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.elems
    }
}
