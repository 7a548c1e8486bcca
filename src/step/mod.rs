//! The composition root and the public API of training: resolve a [`Plan`], create a
//! [`SwappedOptimizer`], initialise it, step.

mod accumulate;
mod backward;
mod checksums;
mod coverage;
mod digest;
mod durable;
mod gradient_plan;
mod gradient_store;
mod gradients;
mod initialize;
mod locate;
mod loss;
mod norm;
mod optimizer;
mod plan;
mod preflight;
mod process_io;
mod records;
mod resume;
mod reweigh;
mod run;
mod seats;
mod snapshot;
mod source;
mod stored;
mod synthetic;
mod telling;
mod update;
mod verify;
mod view;
mod weights;

pub use crate::telemetry::{DriveRecord, RankRecord, TimerRecord};
pub use durable::Resumed;
pub use gradient_plan::GradientPlan;
pub use gradients::Gradients;
pub use norm::Stop;
pub use optimizer::SwappedOptimizer;
pub use plan::Plan;
pub use process_io::{ProcessIo, ProcessIoBytes};
pub use run::{StepOptions, StepOutcome};
pub use snapshot::ChunkSink;
pub use stored::StoredShard;
pub use synthetic::{fill_synthetic_gradients, fill_synthetic_masters};
pub use verify::Verifier;
pub use view::StateView;
