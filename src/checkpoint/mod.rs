//! Checkpoints: copies of the whole state in a directory that all ranks see, which any number of
//! ranks and drives can start from.
//!
//! ```text
//! DIR/JOB/step-00000040/manifest.json            what it is; a checkpoint exists when this does
//!                       shard-00000.GENERATION   chunks of rank 0's shard, end to end
//!                       shard-00000.GENERATION.index   where they begin, and their checksums
//! ```
//!
//! A save writes data under a new generation first and renames the manifest last, so that a reader
//! sees the old checkpoint or the new one, never half of one, also when saving under a name again.

mod catalog;
mod contents;
mod copy;
mod directories;
mod manifest;
mod places;
mod reader;
mod safetensors;
mod save;
mod scrub;
mod shares;
mod stored_shard;

pub use catalog::{Checkpoints, Saved};
pub use contents::{JobContents, ParameterContents, TensorSummary, contents_of};
pub use manifest::{Manifest, OtherInventory};
pub use places::ShardEntry;
pub use reader::CheckpointReader;
pub use safetensors::{ExportSummary, ModelFiles, export_safetensors, import_safetensors};
pub use scrub::{Finding, ScrubReport, VerifyReport, scrub, verify_checkpoint, verify_drives};
pub use stored_shard::StoredShard;

/// A function to be called while a checkpoint is saved or loaded: with the bytes of this rank that
/// have moved so far, and those that will have moved at the end.
pub type Progress = std::sync::Arc<dyn Fn(u64, u64) + Send + Sync>;
