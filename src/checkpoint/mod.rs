//! Checkpoints: copies of the whole state in a directory that all ranks see, which any number of
//! ranks and drives can start from.
//!
//! ```text
//! DIR/JOB/owner                                  locked by the living job of this name
//!         step-00000040/manifest.json            what it is; a checkpoint exists when this does
//!                       shard-00000.GENERATION   chunks of shard 0, end to end
//!                       shard-00000.GENERATION.index   where they begin, their checksums, and the
//!                                                      bytes of the caller's own
//! ```
//!
//! A save writes data under a new generation first and renames the manifest last, so that a reader
//! sees the old checkpoint or the new one, never half of one, also when saving under a name again.

mod blobs;
mod catalog;
mod claim;
mod contents;
mod copy;
mod directories;
mod index;
mod manifest;
mod places;
mod private;
mod reader;
mod safetensors;
mod save;
mod scrub;
mod shares;
mod stored_shard;
mod whole;

pub use catalog::{Checkpoints, Saved};
pub use contents::{JobContents, ParameterContents, TensorSummary, contents_of};
pub use index::{ChunkEntry, ShardIndex};
pub use manifest::{Manifest, OtherInventory, Run};
pub use places::ShardEntry;
pub use reader::CheckpointReader;
pub use safetensors::{
    ExportSummary, ModelFiles, ModelSize, export_safetensors, import_safetensors, model_size,
};
pub use scrub::{Finding, ScrubReport, VerifyReport, scrub, verify_checkpoint, verify_drives};
pub use shares::{complete_manifest, join_update_counts};
pub use stored_shard::StoredShard;

/// A function to be called while a checkpoint is saved or loaded: with the bytes of this rank that
/// have moved so far, and those that will have moved at the end.
pub type Progress = std::sync::Arc<dyn Fn(u64, u64) + Send + Sync>;
