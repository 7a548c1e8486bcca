//! The question that a forecast answers: where a job is to run, and how it swaps.

use std::path::PathBuf;

use serde::Serialize;

use super::Bandwidth;
use optswap::internals::config::{CacheSize, Config, GradientPlace};
use optswap::internals::storage::normalized;

/// One drive of a node.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DriveSpec {
    /// A directory on it, if that is known.
    pub path: Option<PathBuf>,
    /// What it can do.
    pub bandwidth: Bandwidth,
    /// Its part of a node's state, relative to the node's other drives.
    pub weight: f64,
    /// Space for state; `None` if it is not known.
    pub free_bytes: Option<u64>,
    /// How its bandwidth varies from one fifth of a second to the next: standard deviation / mean.
    pub spread: f64,
    /// Bytes that may be written to it in its life; `None` if that is not known.
    pub endurance_bytes: Option<f64>,
}

/// Nodes that are alike.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NodeKind {
    /// What they are called, for people.
    pub name: String,
    /// How many of them the job has.
    pub nodes: u64,
    /// The drives of each.
    pub drives: Vec<DriveSpec>,
    /// Memory of each; `None` if it is not known.
    pub memory_bytes: Option<u64>,
}

impl NodeKind {
    /// Each drive's part of a node's state.
    pub(super) fn shares(&self) -> Vec<f64> {
        let weights: Vec<f64> = self.drives.iter().map(|drive| drive.weight).collect();
        normalized(&weights)
    }
}

/// Where a job is to run. Every node has as many ranks, and every rank as many parameters.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cluster {
    /// Its nodes.
    pub kinds: Vec<NodeKind>,
    /// Ranks on each node.
    pub ranks_per_node: u64,
    /// Bytes per second that a node's memory moves; `None` if it is not known.
    pub memory_bytes_per_s: Option<f64>,
    /// Nanoseconds that a node's processors together need for one parameter: checksums and update.
    pub update_ns_per_param: f64,
    /// The same for the gradient's norm, which comes before any update.
    pub norm_ns_per_param: f64,
    /// Nanoseconds that they need for one byte that goes to a drive or comes from one, in which
    /// they update nothing.
    pub io_ns_per_byte: f64,
    /// How drives of one model differ from each other: standard deviation / mean.
    pub drive_to_drive: f64,
    /// Seconds from one rank to the next in a collective.
    pub hop_seconds: f64,
    /// The mean of what delays a rank by chance on its way into a collective, in seconds.
    pub noise_seconds: f64,
    /// Seconds between two optimizer steps: forward and backward passes.
    pub compute_seconds: f64,
}

impl Cluster {
    /// Nodes of all kinds.
    pub fn nodes(&self) -> u64 {
        self.kinds.iter().map(|kind| kind.nodes).sum()
    }

    /// Ranks of the job.
    pub fn ranks(&self) -> u64 {
        self.nodes() * self.ranks_per_node
    }
}

/// How a job swaps, as its configuration says.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Swapping {
    /// Elements of a chunk.
    pub chunk_elems: u64,
    /// Bytes of I/O buffers of a rank.
    pub budget_bytes: u64,
    /// How much of them keeps chunks between steps.
    pub cache: CacheSize,
    /// The last writes of a step go on behind it.
    pub write_behind: bool,
    /// The first chunks of the next step are read ahead.
    pub prefetch: bool,
    /// Every so many steps is a commit, and state has two slots; `None` in a scratch job.
    pub commit_every: Option<u64>,
    /// Bytes that lie together on one drive.
    pub stripe_unit_bytes: u64,
    /// Room in the files for shares that change later, as a part of the state.
    pub stripe_headroom: f64,
    /// Where gradients lie between backward and step.
    pub gradients: GradientPlace,
    /// Bytes of one element of these gradients.
    pub gradient_bytes: u64,
}

impl Swapping {
    /// The settings of a configuration.
    pub fn of(config: &Config) -> Self {
        Self {
            chunk_elems: config.swap.chunk_elements.0,
            budget_bytes: config.swap.memory_budget.0,
            cache: config.swap.cache,
            write_behind: config.swap.write_behind,
            prefetch: config.swap.prefetch,
            commit_every: config.is_durable().then_some(config.durability.commit_every),
            stripe_unit_bytes: config.drives.stripe_unit.0,
            stripe_headroom: config.drives.stripe_headroom,
            gradients: config.gradients.place,
            gradient_bytes: config.gradients.accumulate_in.elem_bytes(),
        }
    }

    /// Slots of a chunk.
    pub fn slots(&self) -> u64 {
        if self.commit_every.is_some() { 2 } else { 1 }
    }
}
