//! What follows from configuration, parameters and world before anything is created: chunks and
//! where they lie, buffers, and memory for gradients. Pure functions.

mod gradients;
mod resolve;

pub use gradients::{GradientPlan, GradientRoom};
pub use resolve::{Plan, cached_chunks};
