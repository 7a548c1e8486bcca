//! Where updated parameters go.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::optim::ParamElem;

/// No parameters, where a call reads them only to learn the upper halves of masters.
pub const NO_PARAMETERS: &[()] = &[];

/// Takes the parameters of this rank's shard as they are updated, chunk by chunk. A slice in shard
/// order is one, of f32, bf16 or f16, or of units for a caller who wants none. A program whose
/// parameters lie elsewhere brings its own: it gives a place to write into, and learns when all of
/// it is written.
///
/// Elements are counted within the shard. Sections do not reach beyond one chunk.
pub trait ParameterSink {
    /// The number format.
    type Elem: ParamElem;

    /// Whether this takes the parameters of a shard of so many elements.
    ///
    /// # Errors
    /// Usage if not; nothing has been done then.
    fn check(&self, elems: u64) -> Result<()>;

    /// A place for these elements, as long as the range. With the codec remainder16 it holds what
    /// was emitted last, which is half of the state; with others, anything.
    fn section(&mut self, elems: Range<usize>) -> &mut [Self::Elem];

    /// Everything in the section that was asked for last has its new values. What an update leaves
    /// alone keeps what the section held.
    ///
    /// # Errors
    /// The step fails with it, as with an error of a drive.
    fn emitted(&mut self, elems: Range<usize>) -> Result<()> {
        let _ = elems;
        Ok(())
    }

    /// All of them at once, where they lie together in shard order.
    fn whole(&self) -> Option<&[Self::Elem]> {
        None
    }
}

/// A sink for a caller who wants no parameters.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoParameters;

impl ParameterSink for NoParameters {
    type Elem = ();

    fn check(&self, _elems: u64) -> Result<()> {
        Ok(())
    }

    fn section(&mut self, elems: Range<usize>) -> &mut [()] {
        // Units take no memory, so nothing is leaked.
        vec![(); elems.len()].leak()
    }
}

impl<P: ParamElem> ParameterSink for [P] {
    type Elem = P;

    fn check(&self, elems: u64) -> Result<()> {
        if self.len() as u64 == elems {
            return Ok(());
        }
        Err(Error::usage("the slice for parameters has another length than the shard")
            .with("slice", self.len())
            .with("shard", elems))
    }

    fn section(&mut self, elems: Range<usize>) -> &mut [P] {
        &mut self[elems]
    }

    fn whole(&self) -> Option<&[P]> {
        Some(self)
    }
}

impl<P: ParamElem> ParameterSink for Vec<P> {
    type Elem = P;

    fn check(&self, elems: u64) -> Result<()> {
        self.as_slice().check(elems)
    }

    fn section(&mut self, elems: Range<usize>) -> &mut [P] {
        self.as_mut_slice().section(elems)
    }

    fn whole(&self) -> Option<&[P]> {
        Some(self)
    }
}
