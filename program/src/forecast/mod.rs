//! Before a run: what a model on a site will need and how long a step will take, from what drives
//! can do. Pure functions: nothing here measures or waits, and the same question has the same
//! answer.

mod bytes;
mod checkpoints;
mod cluster;
mod limit;
mod model;
mod predict;
mod presets;
mod random;
mod rank;
mod response;
mod shape;
mod simulate;

pub use bytes::StateBytes;
pub use checkpoints::CheckpointForecast;
pub use cluster::{Cluster, DriveSpec, NodeKind, Swapping};
pub use limit::{Bandwidth, Binding};
pub use model::{Model, read_model};
pub use predict::{BoundBy, DriveForecast, Forecast, NodeForecast, predict};
pub use presets::{PRESETS, preset};
pub use simulate::{Percentiles, Simulation, simulate};
