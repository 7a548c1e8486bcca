//! An update that the caller makes, while it is under way.

use super::super::outcome::Begun;
use crate::gradients::GradientStore;
use crate::units::ParamIndex;

/// How far an update is.
pub(in crate::step) struct Pass {
    pub begun: Begun,
    /// The parameters that have a gradient, and whether each chunk has any of one.
    pub updated: Vec<ParamIndex>,
    pub has_gradient: Vec<bool>,
    /// Gradients that were handed over before, if the update uses those.
    pub stored: Option<GradientStore>,
    /// The sub-group that is in.
    pub open: Option<u32>,
    /// Sub-groups, and chunks, that have been in or are.
    pub sub_groups: u32,
    pub chunks: usize,
    /// State on the drives, or on its way there, may be of no step.
    pub has_changed: bool,
    /// Memory for decoded values.
    pub spare: Vec<Vec<Vec<f32>>>,
}

impl Pass {
    /// Before the first sub-group.
    pub fn new(begun: Begun, updated: Vec<ParamIndex>, has_gradient: Vec<bool>) -> Self {
        Self {
            updated: if begun.outcome.is_taken() { updated } else { Vec::new() },
            has_gradient,
            stored: None,
            begun,
            open: None,
            sub_groups: 0,
            chunks: 0,
            has_changed: false,
            spare: Vec::new(),
        }
    }

    /// The first chunk with a gradient among those that have not been in, up to chunk `end`.
    pub fn first_left(&self, end: usize) -> Option<usize> {
        (self.chunks..end).find(|chunk| self.has_gradient[*chunk])
    }
}
