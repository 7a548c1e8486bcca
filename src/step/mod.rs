//! The optimizer, in which all rooms before this one come together: a [`SwappedOptimizer`] is
//! created, initialised, and stepped.
//!
//! [`optimizer`] lists its parts: the shard on the drives ([`shard`]), how far training is
//! ([`progress`]), what is recorded ([`watch`]). [`step`](self::step) is one step in time order,
//! and [`chunk_io`] what happens to a chunk in it. [`start`] creates an optimizer, [`durable`]
//! commits and goes back to commits, [`custom`] is for updates of the caller's own, and [`check`]
//! holds the state against what it should be.

mod balance;
mod between;
mod check;
mod checksums;
mod chunk_io;
mod co_owned;
mod custom;
mod decision;
mod drives;
mod durable;
mod exchange;
mod initialize;
mod inspect;
mod optimizer;
mod outcome;
mod owners;
mod parameters;
mod progress;
mod records;
mod reporting;
mod shard;
mod start;
#[allow(clippy::module_inception, reason = "the room is named for its main function")]
mod step;
mod update;
mod view;
mod watch;

pub use check::{ReferenceUpdate, Verifier, fill_synthetic_gradients, fill_synthetic_masters};
pub(crate) use checksums::corrupt;
pub use custom::{
    Change, GradientSection, StateSection, SubGroup, SubGroups, UpdateChunk, UpdateHandles,
    UpdateRun,
};
pub use drives::MemoryRegion;
pub use durable::{Chosen, Resumed, choose_record};
pub(crate) use durable::{ChunkSink, check_steps, place_as_recorded};
pub(crate) use initialize::encode_chunk;
pub use optimizer::SwappedOptimizer;
pub(crate) use outcome::check_user_blob;
pub use outcome::{StepOptions, StepOutcome, StepResult, Stop};
pub use parameters::{NO_PARAMETERS, NoParameters, ParameterSink};
pub use start::{
    Choice, CreateOptions, Dealt, Existing, Expected, Prepared, Sharding, Shards, Sight, choose,
    prepare,
};
pub(crate) use start::{agree_on_config, as_it_lies};
pub use view::StateView;
pub(crate) use view::{Decoder, upper_halves};
