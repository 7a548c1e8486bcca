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

/// The rooms as they are, for the program, tests and benchmarks of this workspace. No promise is
/// made about what is here.
#[doc(hidden)]
pub mod internals {
    pub mod units {
        pub use crate::units::*;
    }
    pub mod error {
        pub use crate::error::*;
    }
    pub mod timers {
        pub use crate::timers::*;
    }
    pub mod wire {
        pub use crate::wire::*;
    }
    pub mod state {
        pub use crate::state::*;
    }
    pub mod config {
        pub use crate::config::*;
    }
    pub mod partition {
        pub use crate::partition::*;
    }
    pub mod storage {
        pub use crate::storage::*;
    }
    pub mod io {
        pub use crate::io::*;
    }
    pub mod optim {
        pub use crate::optim::*;
    }
    pub mod swap {
        pub use crate::swap::*;
    }
    pub mod coord {
        pub use crate::coord::*;
    }
    pub mod telemetry {
        pub use crate::telemetry::*;
    }
    pub mod step {
        pub use crate::step::*;
    }
    pub mod checkpoint {
        pub use crate::checkpoint::*;
    }
    pub mod job {
        pub use crate::job::*;
    }
}

/// Programs in the documentation must compile.
#[cfg(doctest)]
mod pages {
    #[doc = include_str!("../README.md")]
    struct Readme;
    #[doc = include_str!("../docs/durability.md")]
    struct Durability;
    #[doc = include_str!("../docs/gradients.md")]
    struct Gradients;
    #[doc = include_str!("../docs/own-optimizer.md")]
    struct OwnOptimizer;
    #[doc = include_str!("../docs/shards.md")]
    struct Shards;
    #[doc = include_str!("../docs/training-loop.md")]
    struct TrainingLoop;
}
