//! A look at state: slices of one run, borrowed from a resident chunk.

use crate::partition::Run;
use crate::state::Parameter;
use crate::storage::ExtentLayout;

/// The state of one run of a parameter, as it lies on the drives.
#[derive(Clone, Copy, Debug)]
pub struct StateView<'a> {
    /// Which elements.
    pub run: &'a Run,
    /// Of which parameter.
    pub parameter: &'a Parameter,
    /// fp32 master.
    pub master: &'a [f32],
    /// First moment.
    pub exp_avg: &'a [f32],
    /// Second moment.
    pub exp_avg_sq: &'a [f32],
}

/// The three fp32 arrays of a chunk, padding included.
pub(super) fn sections<'a>(layout: &ExtentLayout, bytes: &'a [u8]) -> [&'a [f32]; 3] {
    let mut sections = layout.sections().iter();
    // Buffers are page aligned and sections whole blocks, so the casts cannot fail.
    [(); 3].map(|()| {
        let section = sections.next().cloned().unwrap_or_default();
        bytemuck::cast_slice(&bytes[section])
    })
}

/// As [`sections`], to be changed.
pub(super) fn sections_mut<'a>(layout: &ExtentLayout, bytes: &'a mut [u8]) -> [&'a mut [f32]; 3] {
    let mut rest = bytes;
    let mut sections = layout.sections().iter();
    [(); 3].map(|()| {
        let len = sections.next().map_or(0, ExactSizeIterator::len);
        let (section, after) = std::mem::take(&mut rest).split_at_mut(len);
        rest = after;
        bytemuck::cast_slice_mut(section)
    })
}
