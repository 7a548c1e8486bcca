//! The bytes of one chunk: its state tensors, adjacent, in declared order.

use std::ops::Range;

use crate::state::{Codec, StateTensor};

/// Where each state tensor of a chunk lies within the chunk's extent.
///
/// ```text
/// | master: padded_elems x 4 | exp_avg: padded_elems x 4 | exp_avg_sq: padded_elems x 4 |
/// ```
///
/// With other codecs, sections are shorter; each is a multiple of 4 KiB. With `remainder16` the
/// master's section holds lower halves. Where the upper halves must survive the process, they lie
/// last, so that a step, which has them already, reads only what comes before:
///
/// ```text
/// | lower halves: padded_elems x 2 | exp_avg | exp_avg_sq | upper halves: padded_elems x 2 |
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtentLayout {
    sections: Vec<Range<usize>>,
    upper_halves: Option<Range<usize>>,
}

impl ExtentLayout {
    /// The layout of a chunk of `padded_elems` elements. With `keeps_all`, and a master of which
    /// the other sections have only lower halves, the upper halves are part of it.
    pub fn new(padded_elems: u64, tensors: &[StateTensor], keeps_all: bool) -> Self {
        let mut end = 0;
        let mut section = |bytes: u64| {
            let start = end;
            end += bytes as usize;
            start..end
        };
        let sections =
            tensors.iter().map(|tensor| section(tensor.codec.section_bytes(padded_elems)));
        let sections = sections.collect();
        let is_halved = tensors.iter().any(|tensor| tensor.codec == Codec::Remainder16);
        let upper_halves = (is_halved && keeps_all)
            .then(|| section(Codec::Remainder16.section_bytes(padded_elems)));
        Self { sections, upper_halves }
    }

    /// Byte range of each state tensor.
    pub fn sections(&self) -> &[Range<usize>] {
        &self.sections
    }

    /// Byte range of the master's upper halves, if they are part of the extent.
    pub fn upper_halves(&self) -> Option<Range<usize>> {
        self.upper_halves.clone()
    }

    /// Bytes that a step reads: all but the upper halves.
    pub fn swap_in_bytes(&self) -> u64 {
        self.sections.last().map_or(0, |section| section.end as u64)
    }

    /// Bytes of the whole extent.
    pub fn bytes(&self) -> u64 {
        self.upper_halves.as_ref().map_or(self.swap_in_bytes(), |section| section.end as u64)
    }
}
