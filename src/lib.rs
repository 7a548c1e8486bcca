//! Optimizer state on NVMe drives, for training under MPI.
//!
//! Every MPI rank swaps its own partition of the optimizer state through memory once per step, in a
//! pipeline over all drives of its node; a coordination layer makes the ranks one job.
//!
//! Values flow one way through the rooms below; each may use those above it, never those below
//! (`docs/ARCHITECTURE.md` draws the house, `tests/tidy.rs` holds it true).

pub mod units;

pub mod error;
pub mod timers;
pub mod wire;

pub mod state;

pub mod config;

pub mod partition;

pub mod storage;

pub mod io;

pub mod optim;

pub mod swap;

pub mod coord;

pub mod telemetry;

pub mod step;

pub mod checkpoint;

pub mod job;

pub mod measure;

pub mod forecast;

pub mod report;

pub mod cli;

/// Programs in the documentation must compile.
#[cfg(doctest)]
mod pages {
    #[doc = include_str!("../docs/shards.md")]
    struct Shards;
    #[doc = include_str!("../docs/own-optimizer.md")]
    struct OwnOptimizer;
}
