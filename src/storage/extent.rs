//! The bytes of one chunk: its state tensors, adjacent, in declared order.

use std::ops::Range;

use crate::state::StateTensor;

/// Where each state tensor of a chunk lies within the chunk's extent.
///
/// ```text
/// | master: padded_elems x 4 | exp_avg: padded_elems x 4 | exp_avg_sq: padded_elems x 4 |
/// ```
///
/// Sections are whole blocks of 4,096 elements, so each begins at a multiple of 4 KiB for any codec
/// of at least one byte per element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtentLayout {
    sections: Vec<Range<usize>>,
}

impl ExtentLayout {
    /// The layout of a chunk of `padded_elems` elements.
    pub fn new(padded_elems: u64, tensors: &[StateTensor]) -> Self {
        let mut end = 0;
        let sections = tensors.iter().map(|tensor| {
            let start = end;
            end += (padded_elems * tensor.codec.elem_bytes()) as usize;
            start..end
        });
        Self { sections: sections.collect() }
    }

    /// Byte range of each state tensor.
    pub fn sections(&self) -> &[Range<usize>] {
        &self.sections
    }

    /// Bytes of the whole extent.
    pub fn bytes(&self) -> u64 {
        self.sections.last().map_or(0, |section| section.end as u64)
    }
}
