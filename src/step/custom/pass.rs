//! An update that the caller makes, while it is under way.

use super::super::outcome::Begun;
use super::super::progress::BeforeStep;
use crate::gradients::GradientStore;
use crate::units::ParamIndex;

/// An update by the caller that is under way.
pub(in crate::step) struct Pass {
    pub begun: Begun,
    pub before: BeforeStep,
    /// The parameters that have a gradient, and whether each chunk has any of one.
    pub updated: Vec<ParamIndex>,
    pub has_gradient: Vec<bool>,
    /// Gradients that were handed over before, if the update uses those.
    pub stored: Option<GradientStore>,
    /// The sub-group that is swapped in.
    pub open: Option<u32>,
    /// The number of sub-groups that have been swapped in so far.
    pub sub_groups: u32,
    /// The number of chunks that have been swapped in so far.
    pub chunks: usize,
    /// Something may have changed on the drives, or on its way there.
    pub has_changed: bool,
    /// Memory for decoded values.
    pub spare: Vec<Vec<Vec<f32>>>,
}

impl Pass {
    /// An update before its first sub-group.
    pub fn new(before: BeforeStep, mut begun: Begun, has_gradient: Vec<bool>) -> Self {
        Self {
            updated: std::mem::take(&mut begun.updated),
            has_gradient,
            stored: None,
            before,
            begun,
            open: None,
            sub_groups: 0,
            chunks: 0,
            has_changed: false,
            spare: Vec::new(),
        }
    }

    /// The first chunk before chunk `end` that has a gradient and has not been swapped in.
    pub fn first_left(&self, end: usize) -> Option<usize> {
        (self.chunks..end).find(|chunk| self.has_gradient[*chunk])
    }
}
