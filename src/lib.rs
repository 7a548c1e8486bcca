//! Optimizer state on NVMe drives, for training under MPI.
//!
//! In every step each MPI rank reads its own part of the optimizer state from the drives of its
//! node into memory, updates it and writes it back, chunk by chunk in a pipeline. All ranks
//! together are one job: they take the same decisions and fail together.
//!
//! A training program describes its parameters, and a [`Training`] does the rest: it goes on from
//! the drives or from a checkpoint, takes steps and commits them, saves checkpoints, and stops when
//! a signal asks it to.
//!
//! ```
//! use std::{process::ExitCode, sync::Arc};
//!
//! use optswap::{Communicator, Config, Launch, Parameter, Result, Training, run_main};
//!
//! fn main() -> ExitCode {
//!     run_main(&Launch::default(), train) // starts MPI, logs, heeds signals, gives the exit code
//! }
//!
//! fn train(comm: Arc<dyn Communicator>) -> Result<()> {
//!     # let drive = std::env::current_dir().unwrap().join("target/doc-drive");
//!     # std::fs::create_dir_all(&drive).unwrap();
//!     let mut config = Config::default();
//!     config.drives.paths = vec!["/nvme0/me".into(), "/nvme1/me".into()];
//!     # config.drives.paths = vec![drive];
//!     config.optimizer.clip_norm = 1.0;
//!     let mut job = Training::builder(&config, comm)
//!         .parameters([Parameter::new("w.weight", [512, 32]), Parameter::new("w.bias", [512])])
//!         .start::<f32>(|_run, masters| {
//!             masters.fill(0.02); // parameter run.param from element run.param_offset on
//!             Ok(())
//!         })?;
//!     let mut params = vec![0.0; job.total_elems()]; // of the whole model, on every rank
//!     let mut gradients = vec![0.0; job.total_elems()];
//!     job.gather_parameters(&mut params)?;
//!     while let Some(step) = job.next_step(3) {
//!         job.set_lr_factor((step as f64 / 100.0).min(1.0))?;
//!         gradients.fill(0.1); // the backward pass, at `params`
//!         job.reduce_gradients(&gradients)?;
//!         job.step()?; // commits, checkpoints, stops on SIGTERM
//!         job.gather_parameters(&mut params)?;
//!     }
//!     job.finish() // the files on the drives go
//! }
//! ```
//!
//! A program with a loop of its own uses the optimizer beneath, [`SwappedOptimizer`], which all
//! ranks create and step together. It takes gradients in slices, or through a [`GradientSink`] from
//! any thread while backward goes on, and gives updated parameters to a [`ParameterSink`]. A
//! program with an update of its own gets chunks of state through [`SubGroups`], or by handle
//! through [`UpdateHandles`].
//!
//! Errors that all ranks get are agreed ([`Error::is_agreed`]). Where a method says "not agreed" or
//! "on this rank alone", the others do not know of the error: unless it is handed to [`agree`], the
//! program must end.
//!
//! `docs/` has pages on the training loop, gradients, shards, own optimizers, durability,
//! configuration and launching.

mod checkpoint;
pub mod config;
mod coord;
mod error;
mod gradients;
mod io;
mod job;
mod optim;
mod partition;
mod plan;
mod state;
mod step;
mod storage;
mod swap;
mod telemetry;
mod timers;
mod units;
mod wire;

pub use checkpoint::{Checkpoints, ModelFiles, Progress, Saved};
pub use config::Config;
pub use coord::{
    Communicator, Group, Solo, ThreadCommunicator, agree, gather_all, mean_over_ranks,
};
pub use error::{Error, ErrorKind, Result};
pub use gradients::{GradientSink, Gradients, MicroBatch};
pub use job::{Launch, LogRanks, Origin, Training, TrainingBuilder, run_main};
pub use optim::{GradElem, ParamElem};
pub use partition::{Partition, Piece, Run};
pub use plan::Plan;
pub use state::{
    Codec, Hyperparameters, Inventory, LossScaler, OptimizerKind, OptimizerSpec, Parameter,
    StateTensorSpec,
};
pub use step::{
    Change, CreateOptions, Existing, GradientSection, MemoryRegion, NO_PARAMETERS, NoParameters,
    ParameterSink, Resumed, Sharding, Shards, StateSection, StateView, StepOptions, StepOutcome,
    StepResult, Stop, SubGroup, SubGroups, SwappedOptimizer, UpdateChunk, UpdateHandles, UpdateRun,
    Verifier,
};
pub use swap::ChunkHandle;
pub use telemetry::{RankRecord, RunResult, bytes_per_param, rank_table, world_report};
pub use units::{Bytes, ChunkIndex, Elems, ParamIndex, Rank};

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
    pub mod plan {
        pub use crate::plan::*;
    }
    pub mod swap {
        pub use crate::swap::*;
    }
    pub mod coord {
        pub use crate::coord::*;
    }
    pub mod gradients {
        pub use crate::gradients::*;
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
