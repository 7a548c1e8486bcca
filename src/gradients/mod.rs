//! Gradients on their way into a step: in the caller's memory, or handed over before and summed in
//! memory or on the drives; where in the shard they belong, which have come, and their norm.

mod accumulate;
mod coverage;
mod given;
mod locate;
mod norm;
mod sink;
mod source;
mod store;

pub use given::{Fragment, Gradients, ShardGradients};
pub(crate) use sink::HeldGradients;
pub use sink::{GradientSink, MicroBatch};
pub use source::StepGradients;
pub use store::GradientStore;
