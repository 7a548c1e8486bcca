//! The arithmetic: the AdamW update in one pass over memory, the gradient norm summed exactly, and
//! the scalar reference that both are held against.
//!
//! Work is split by length only, so that results do not depend on the number of threads.

mod adamw;
mod element;
mod exact_sum;
mod norm;
pub mod reference;

pub use adamw::{AdamW, SPLIT_ELEMS, UpdateTask, run_tasks};
pub use element::{GradElem, ParamElem};
pub use exact_sum::ExactSum;
pub use norm::{BlockNorm, sum_of_squares};
