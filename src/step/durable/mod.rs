//! What makes steps survive: commits and going back to one; snapshots for checkpoints.

mod commit;
mod recover;
mod saving;
mod snapshot;

pub use commit::Resumed;
pub(crate) use commit::place_as_recorded;
pub(super) use commit::{Durable, choose_record};
pub use snapshot::ChunkSink;
pub(super) use snapshot::Snapshot;
