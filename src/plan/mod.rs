//! What follows from configuration, parameters and world before anything is created: chunks and
//! where they lie, buffers, and memory for gradients and tables. Pure functions.

mod gradients;
mod resolve;
mod size;
mod tables;

pub use gradients::{GradientPlan, GradientRoom};
pub use resolve::{Plan, cached_chunks};
pub use size::ShardSize;
pub use tables::Tables;
