//! The index of a shard's data file: where each chunk is and what it must be.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::manifest::{with_ending, write_durably};
use crate::error::{Error, ErrorKind, Result};
use crate::wire::{Frame, Unsealed};

const INDEX: Frame = Frame { magic: *b"OPTSWIDX", version: 2 };
/// That of manifests before version 3.
const INDEX_WITHOUT_BLOB: Frame = Frame { magic: *b"OPTSWIDX", version: 1 };

/// The index of a data file: where each chunk is and what it must be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardIndex {
    /// The generation that it belongs to.
    pub generation: String,
    /// Its chunks, end to end.
    pub chunks: Vec<ChunkEntry>,
    /// The bytes that the shard's rank handed over.
    pub user_blob: Vec<u8>,
}

/// An index as it was before it had the user's bytes.
#[derive(Serialize, Deserialize)]
struct IndexWithoutBlob {
    generation: String,
    chunks: Vec<ChunkEntry>,
}

/// One chunk in a data file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkEntry {
    /// First element of the flat space; of the shard, if that is in pieces.
    pub flat_start: u64,
    /// Number of live elements.
    pub elems: u64,
    /// Elements that each state tensor takes.
    pub padded_elems: u64,
    /// Where its extent begins in the file.
    pub offset: u64,
    /// CRC32C of each state tensor.
    pub checksums: Vec<u32>,
}

impl ShardIndex {
    pub(super) fn path(data: &Path) -> PathBuf {
        with_ending(data, ".index")
    }

    pub(super) fn write(&self, data: &Path) -> Result<()> {
        write_durably(&Self::path(data), &INDEX.seal(self)?)
    }

    fn of_older_version(bytes: &[u8]) -> Option<Self> {
        match INDEX_WITHOUT_BLOB.unseal(bytes) {
            Unsealed::Value(IndexWithoutBlob { generation, chunks }) => {
                Some(Self { generation, chunks, user_blob: Vec::new() })
            }
            _ => None,
        }
    }

    pub(super) fn read(data: &Path) -> Result<Self> {
        let path = Self::path(data);
        let damaged = |why: String| {
            Error::new(ErrorKind::Io, "the index of a checkpoint's shard cannot be read")
                .with("path", path.display())
                .because(why)
        };
        let bytes = std::fs::read(&path).map_err(|error| damaged(error.to_string()))?;
        Self::unsealed(&bytes).map_err(damaged)
    }

    /// The index in the bytes of a file.
    ///
    /// # Errors
    /// Says why they are none.
    pub fn unsealed(bytes: &[u8]) -> Result<Self, String> {
        match INDEX.unseal(bytes) {
            Unsealed::Value(index) => Ok(index),
            Unsealed::Damaged(why) => Err(why.to_owned()),
            Unsealed::OtherVersion(version) => Self::of_older_version(bytes)
                .ok_or_else(|| format!("its version is {version}, which is not known")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_older_versions_wrote_is_read() {
        let index = IndexWithoutBlob { generation: "1".to_owned(), chunks: Vec::new() };
        let sealed = INDEX_WITHOUT_BLOB.seal(&index).unwrap();
        assert_eq!(ShardIndex::unsealed(&sealed).unwrap().generation, "1");
        let of_later = Frame { version: 9, ..INDEX }.seal(&index).unwrap();
        assert!(ShardIndex::unsealed(&of_later).unwrap_err().contains("version is 9"));
    }
}
