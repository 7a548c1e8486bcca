//! The arithmetic: the update in one pass over memory, the codecs of state tensors, the gradient
//! norm summed exactly, and the scalar reference that all are held against.
//!
//! Work is split by length only, so that results do not depend on the number of threads.

mod codec;
mod element;
mod exact_sum;
mod norm;
pub mod reference;
mod rounding;
mod rule;
mod update;
mod width;

pub use codec::{Section, SectionMut, join_halves, split_halves};
pub use element::{GradElem, ParamElem};
pub use exact_sum::ExactSum;
pub use norm::{BlockNorm, sum_of_squares};
pub use rounding::Rounder;
pub use rule::{Adagrad, Adam, AdamW, Lion, Rule, Sgd};
pub use update::{SPLIT_ELEMS, Segment, UpdateTask, run_tasks};
