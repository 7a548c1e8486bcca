//! Where the values of a chunk that is swapped in lie in memory, for callers in other languages.

use crate::units::ParamIndex;

/// Where a state tensor of a chunk that is swapped in lies in memory, as f32 values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateSection {
    /// The tensor's name.
    pub name: String,
    /// The address of its first value.
    pub address: usize,
    /// How many values.
    pub elems: usize,
}

/// Where gradients of a chunk that is swapped in lie in memory, in the format that
/// `gradients.accumulate_in` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GradientSection {
    /// The parameter.
    pub param: ParamIndex,
    /// The first element with such a gradient, counted within the arrays of the chunk's state.
    pub start: usize,
    /// The address of its first value. Nothing may be written there.
    pub address: usize,
    /// How many values.
    pub elems: usize,
}
