//! The bytes of the caller's own in a checkpoint: each shard's index has those of its rank, so that
//! whoever goes on with the shard gets them, from a checkpoint as from the drives.

use std::path::Path;

use xxhash_rust::xxh3::xxh3_128;

use super::index::ShardIndex;
use super::manifest::Manifest;
use crate::coord::Communicator;
use crate::error::{Error, ErrorKind, Result};

/// Collective: whether ranks give different bytes.
pub(super) fn differ(comm: &dyn Communicator, mine: &[u8]) -> Result<bool> {
    let hash = xxh3_128(mine);
    let mine = [mine.len() as u64, hash as u64, (hash >> 64) as u64];
    let mut first = if comm.rank().0 == 0 { mine } else { [0; 3] };
    comm.all_reduce_sum(&mut first)?;
    let mut others = [u64::from(first != mine)];
    comm.all_reduce_sum(&mut others)?;
    Ok(others[0] > 0)
}

/// The name of a shard's data file in a save.
pub(super) fn file_of_shard(shard: u32, generation: &str) -> String {
    format!("shard-{shard:05}.{generation}")
}

/// The bytes of all ranks that saved a checkpoint, in the order of their shards, which is that of
/// ranks unless a rank had another's shard.
pub(super) fn read_all(directory: &Path) -> Result<Vec<Vec<u8>>> {
    let manifest = Manifest::read(directory)?;
    if let Some(blob) = manifest.blob_of_all() {
        return Ok(vec![blob]);
    }
    let shards = 0..manifest.shards_of_all() as u32;
    shards.map(|shard| read(directory, &manifest, shard)).collect()
}

/// The bytes for whoever goes on with shard number `shard` of `shards`: its own if there were as
/// many when the checkpoint was saved, else those of shard 0.
pub(super) fn read_for(directory: &Path, shard: u32, shards: u32) -> Result<Vec<u8>> {
    let manifest = Manifest::read(directory)?;
    if let Some(blob) = manifest.blob_of_all() {
        return Ok(blob);
    }
    let saved = manifest.shards_of_all();
    if saved == shards as usize {
        return read(directory, &manifest, shard);
    }
    if manifest.user_blobs_differ {
        tracing::warn!(
            "the user state in the checkpoint differs between the {saved} ranks that saved it, and \
             now there are {shards}: all of them get that of rank 0"
        );
    }
    read(directory, &manifest, 0)
}

fn read(directory: &Path, manifest: &Manifest, shard: u32) -> Result<Vec<u8>> {
    let data = directory.join(file_of_shard(shard, &manifest.generation));
    let index = ShardIndex::read(&data)?;
    if index.generation == manifest.generation {
        return Ok(index.user_blob);
    }
    Err(Error::new(ErrorKind::Io, "the index of a checkpoint's shard is of another save")
        .with("path", ShardIndex::path(&data).display()))
}
