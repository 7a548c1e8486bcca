//! Before a run: what a model on a site will need and how long a step will take, from what drives
//! can do. Pure functions: nothing here measures or waits, and the same question has the same
//! answer.

mod bytes;
mod limit;
mod model;
mod node;
mod predict;
mod presets;
mod random;
mod simulate;

pub use bytes::StateBytes;
pub use limit::{Bandwidth, Binding};
pub use model::{Model, read_model};
pub use predict::{BoundBy, DriveForecast, Forecast, predict};
pub use presets::{PRESETS, preset};
pub use simulate::{Percentiles, Simulation, simulate};

/// One drive of a node.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct SiteDrive {
    /// What it can do.
    pub bandwidth: Bandwidth,
    /// Space for state; `None` if it is not known.
    pub free_bytes: Option<u64>,
    /// How its bandwidth varies from one fifth of a second to the next: standard deviation / mean.
    pub spread: f64,
}

/// Where a job is to run: nodes that are all alike.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Site {
    /// Nodes.
    pub nodes: u64,
    /// Ranks on each.
    pub ranks_per_node: u64,
    /// The drives of a node.
    pub drives: Vec<SiteDrive>,
    /// Memory of a node; `None` if it is not known.
    pub memory_bytes: Option<u64>,
    /// Bytes per second that a node's memory moves; `None` if it is not known.
    pub memory_bytes_per_s: Option<f64>,
    /// Nanoseconds that a node's processors together need for one parameter: checksums and update.
    pub update_ns_per_param: f64,
    /// The same for the gradient's norm, which comes before any update.
    pub norm_ns_per_param: f64,
    /// How drives of one model differ from each other: standard deviation / mean.
    pub drive_to_drive: f64,
    /// Seconds from one rank to the next in a collective.
    pub hop_seconds: f64,
    /// The mean of what delays a rank by chance on its way into a collective, in seconds.
    pub noise_seconds: f64,
    /// Bytes that may be written to a drive in its life; `None` if it is not known.
    pub endurance_bytes: Option<f64>,
    /// Seconds between two optimizer steps: forward and backward passes.
    pub compute_seconds: f64,
}

/// How a job swaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Swapping {
    /// Elements of a chunk.
    pub chunk_elems: u64,
    /// Bytes of I/O buffers of a rank.
    pub budget_bytes: u64,
    /// Every step is a commit: two slots.
    pub is_durable: bool,
}
