//! The arithmetic: the update in one pass over memory, the codecs of state tensors, the exact sum
//! of the gradient norm, and the scalar reference that tests compare all of them with.
//!
//! Work is split by length only, so that results do not depend on the number of threads.

mod apply;
mod codec;
mod element;
mod exact_sum;
mod norm;
pub mod reference;
mod rounding;
mod rule;
mod section;
mod update;
mod width;

pub use codec::{join_halves, split_halves};
pub use element::{GradElem, GradSlice, ParamElem, ParamSliceMut};
pub use exact_sum::ExactSum;
pub use norm::{BlockNorm, PackedNorm, sum_of_squares};
pub use rounding::Rounder;
pub use rule::UpdateRule;
pub use section::{Section, SectionMut};
pub use update::{SPLIT_ELEMS, Segment, UpdateTask, run_tasks};
