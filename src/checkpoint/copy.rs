//! Checkpoints within a file system that can share blocks (XFS, btrfs): they take almost no time,
//! and their blocks are only copied when later steps overwrite the originals.

use super::save::ShardWriter;
use crate::error::{Error, ErrorKind, Result};
use crate::step::SwappedOptimizer;
use crate::units::ChunkIndex;

/// Clones all chunks of this rank's shard into the writer's file.
///
/// # Errors
/// Unavailable if the state files do not lie in the checkpoint's file system, or it does not share
/// blocks. The writer is then as it was before.
pub(super) fn clone_shard(optimizer: &SwappedOptimizer, writer: &mut ShardWriter) -> Result<()> {
    optimizer.can_clone_to(writer.file())?;
    writer.mark_as_state_files().map_err(|error| {
        Error::new(ErrorKind::Unavailable, "a file could not be marked").because(error)
    })?;
    let chunks = optimizer.partition().chunks().len();
    let mut checksums = Vec::with_capacity(chunks);
    for chunk in (0..chunks).map(ChunkIndex::from_index) {
        let offset = writer.offset(chunk);
        checksums.push(optimizer.clone_chunk(chunk, writer.file(), offset).map_err(|error| {
            Error::new(ErrorKind::Unavailable, "a chunk could not be cloned").because(error)
        })?);
    }
    for (chunk, checksums) in checksums.iter().enumerate() {
        writer.set_checksums(ChunkIndex::from_index(chunk), checksums);
    }
    Ok(())
}
