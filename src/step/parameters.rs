//! Where updated parameters go.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::optim::ParamElem;

/// No parameters, for calls that read them only where they hold the upper halves of masters.
pub const NO_PARAMETERS: &[()] = &[];

/// Takes the parameters of this rank's shard as they are updated, chunk by chunk. A slice or `Vec`
/// of f32, bf16 or f16 in shard order is a sink; [`NoParameters`] is one for a caller who wants
/// none. A program whose parameters lie elsewhere implements this trait: it gives slices to write
/// into, and learns when each is written.
///
/// Ranges are of elements, counted within the shard. A section never reaches beyond one chunk.
pub trait ParameterSink {
    /// The number format.
    type Elem: ParamElem;

    /// Checks that this sink can take the parameters of a shard of `elems` elements.
    ///
    /// # Errors
    /// Usage if it cannot. Nothing has been changed then.
    fn check(&self, elems: u64) -> Result<()>;

    /// The slice for these elements, with one value for each. With the codec remainder16 it must
    /// hold what was emitted last, which is the upper half of the masters; with other codecs it may
    /// hold anything.
    fn section(&mut self, elems: Range<usize>) -> &mut [Self::Elem];

    /// Called when the section that was asked for last has its new values. Elements that the update
    /// left alone keep what the section held.
    ///
    /// # Errors
    /// An error makes the step fail, as an error of a drive does.
    fn emitted(&mut self, elems: Range<usize>) -> Result<()> {
        let _ = elems;
        Ok(())
    }

    /// All parameters of the shard at once, if they lie together in shard order; otherwise `None`.
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
