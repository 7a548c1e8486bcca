//! What makes steps survive: commits and going back to one; snapshots for checkpoints.

mod commit;
mod recover;
mod saving;
mod snapshot;

pub(super) use commit::Durable;
pub use commit::{Chosen, Resumed, choose_record};
pub(crate) use commit::{check_steps, place_as_recorded};
pub use snapshot::ChunkSink;
pub(super) use snapshot::Snapshot;
