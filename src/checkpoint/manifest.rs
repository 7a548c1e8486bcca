//! The manifest: what a checkpoint is, in JSON with a checksum, replaced atomically.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::error::{Error, ErrorKind, Result};
use crate::state::{Codec, Hyperparameters, Inventory, LossScalerState, Parameter};
use crate::wire::{Frame, Unsealed, crc32c};

const FORMAT: &str = "optswap checkpoint";
const VERSION: u32 = 1;
const INDEX: Frame = Frame { magic: *b"OPTSWIDX", version: 1 };
pub(super) const MANIFEST: &str = "manifest.json";

/// What a checkpoint is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The job that saved it.
    pub job: String,
    /// Which save under this name: data files carry it in their names.
    pub generation: String,
    /// Steps attempted.
    pub attempts: u64,
    /// The model's parameters, in inventory order.
    pub parameters: Vec<Parameter>,
    /// Updates that each parameter took, in inventory order.
    pub update_counts: Vec<u64>,
    /// State tensors in the order in which they lie in an extent.
    pub tensors: Vec<(String, Codec)>,
    /// Hyper-parameters of every group, as they were.
    pub groups: Vec<Hyperparameters>,
    /// What the loss was last multiplied by.
    pub loss_scale: f32,
    /// What the loss scaler remembered; none in checkpoints of other programs and of older ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scaler: Option<LossScalerState>,
    /// What the caller handed over, in hexadecimal digits.
    pub user_blob: String,
    /// One entry per shard, in the order of the flat space.
    pub shards: Vec<ShardEntry>,
}

/// One shard's data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardEntry {
    /// The data file; its index has `.index` behind.
    pub file: String,
    /// First element of the flat space.
    pub flat_start: u64,
    /// Number of elements.
    pub elems: u64,
    /// Bytes of the data file.
    pub bytes: u64,
}

/// The index of a data file: where each chunk is and what it must be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ShardIndex {
    /// The generation that it belongs to.
    pub generation: String,
    pub chunks: Vec<ChunkEntry>,
}

/// One chunk in a data file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ChunkEntry {
    /// First element of the flat space.
    pub flat_start: u64,
    pub elems: u64,
    pub padded_elems: u64,
    /// Where its extent begins in the file.
    pub offset: u64,
    /// CRC32C of each state tensor.
    pub checksums: Vec<u32>,
}

/// The file as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signed<T> {
    format: String,
    version: u32,
    /// CRC32C of the text of `checkpoint`.
    crc32c: String,
    checkpoint: T,
}

impl Manifest {
    /// Reads the manifest of a checkpoint's directory.
    ///
    /// # Errors
    /// Unavailable if there is none or another version wrote it; I/O if it is damaged.
    pub fn read(directory: &Path) -> Result<Self> {
        let path = directory.join(MANIFEST);
        let named = |kind, message: &str| Error::new(kind, message).with("path", path.display());
        let text = std::fs::read(&path).map_err(|error| {
            named(ErrorKind::Unavailable, "there is no checkpoint here").because(error)
        })?;
        Self::parse(&text).map_err(|(kind, why)| {
            named(kind, "the manifest of a checkpoint cannot be read").because(why)
        })
    }

    /// Reads a manifest's text.
    fn parse(text: &[u8]) -> Result<Self, (ErrorKind, String)> {
        let damaged = |why: String| (ErrorKind::Io, why);
        let signed: Signed<Box<RawValue>> =
            serde_json::from_slice(text).map_err(|error| damaged(error.to_string()))?;
        if signed.format != FORMAT {
            return Err((ErrorKind::Unavailable, format!("its format is `{}`", signed.format)));
        }
        if signed.version != VERSION {
            let why = format!("its version is {}, known is {VERSION}", signed.version);
            return Err((ErrorKind::Unavailable, why));
        }
        if format!("{:08x}", crc32c(signed.checkpoint.get().as_bytes())) != signed.crc32c {
            return Err(damaged("its checksum differs".to_owned()));
        }
        let manifest: Self = serde_json::from_str(signed.checkpoint.get())
            .map_err(|error| damaged(error.to_string()))?;
        manifest.check().map_err(damaged)?;
        Ok(manifest)
    }

    fn text(&self) -> Result<String> {
        let failed = |error| Error::internal("a manifest is no JSON").because(error);
        let text = serde_json::to_string(self).map_err(failed)?;
        let signed = Signed {
            format: FORMAT.to_owned(),
            version: VERSION,
            crc32c: format!("{:08x}", crc32c(text.as_bytes())),
            checkpoint: RawValue::from_string(text).map_err(failed)?,
        };
        serde_json::to_string_pretty(&signed).map(|text| text + "\n").map_err(failed)
    }

    /// What must hold for the rest of the code to believe it.
    fn check(&self) -> Result<(), String> {
        let inventory =
            Inventory::new(self.parameters.clone()).map_err(|error| error.to_string())?;
        if self.update_counts.len() != self.parameters.len() {
            return Err("it has not one update count for each parameter".to_owned());
        }
        let mut flat = 0u64;
        for shard in &self.shards {
            let is_plain = !shard.file.contains('/') && !shard.file.is_empty();
            if shard.flat_start != flat || !is_plain {
                return Err(format!("its shard `{}` is out of place", shard.file));
            }
            flat = flat.checked_add(shard.elems).ok_or("its shards are too large")?;
        }
        match flat == inventory.total_elems() {
            true => Ok(()),
            false => Err("its shards do not cover its parameters".to_owned()),
        }
    }

    /// Replaces the manifest: from here on this is the checkpoint.
    pub(super) fn write(&self, directory: &Path) -> Result<()> {
        let next = directory.join(format!("manifest.{}", self.generation));
        write_durably(&next, self.text()?.as_bytes())?;
        std::fs::rename(&next, directory.join(MANIFEST)).map_err(|error| {
            Error::new(ErrorKind::CannotCreate, "the manifest cannot be put in place")
                .with("path", directory.join(MANIFEST).display())
                .because(error)
        })?;
        sync_directory(directory);
        directory.parent().into_iter().for_each(sync_directory);
        Ok(())
    }

    /// The parameters as an inventory.
    ///
    /// # Errors
    /// As [`Inventory::new`]; a manifest that was read has none.
    pub fn inventory(&self) -> Result<Inventory> {
        Inventory::new(self.parameters.clone())
    }

    /// What the caller had handed over.
    pub fn user_blob(&self) -> Vec<u8> {
        let digits = self.user_blob.as_bytes().chunks(2);
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        digits.filter_map(byte).collect()
    }
}

/// A path with something more at its end.
pub(super) fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut longer = path.as_os_str().to_owned();
    longer.push(ending);
    PathBuf::from(longer)
}

/// Bytes as hexadecimal digits.
pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl ShardIndex {
    pub fn path(data: &Path) -> PathBuf {
        with_ending(data, ".index")
    }

    pub fn write(&self, data: &Path) -> Result<()> {
        write_durably(&Self::path(data), &INDEX.seal(self)?)
    }

    pub fn read(data: &Path) -> Result<Self> {
        let path = Self::path(data);
        let damaged = || {
            Error::new(ErrorKind::Io, "the index of a checkpoint's shard cannot be read")
                .with("path", path.display())
        };
        let bytes = std::fs::read(&path).map_err(|error| damaged().because(error))?;
        match INDEX.unseal(&bytes) {
            Unsealed::Value(index) => Ok(index),
            Unsealed::Damaged(why) => Err(damaged().because(why)),
            Unsealed::OtherVersion(version) => {
                Err(damaged().because(format!("its version is {version}, which is not known")))
            }
        }
    }
}

fn write_durably(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|error: std::io::Error| {
        Error::new(ErrorKind::CannotCreate, "a file of a checkpoint cannot be written")
            .with("path", path.display())
            .because(error)
    })
}

/// Makes names durable. Some file systems refuse to flush a directory; their names are durable
/// anyway, or not at all.
fn sync_directory(path: &Path) {
    if let Ok(directory) = File::open(path) {
        let _ = directory.sync_all();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            job: "job".to_owned(),
            generation: "1".to_owned(),
            attempts: 7,
            parameters: vec![Parameter::new("w", [3, 5])],
            update_counts: vec![7],
            tensors: vec![("master".to_owned(), Codec::Fp32)],
            groups: vec![Hyperparameters::default()],
            loss_scale: 1.0,
            loss_scaler: None,
            user_blob: hexadecimal(b"\x00blob\xff"),
            shards: vec![ShardEntry { file: "a".into(), flat_start: 0, elems: 15, bytes: 60 }],
        }
    }

    #[test]
    fn a_manifest_comes_back_with_every_digit() {
        let mut written = manifest();
        written.groups[0].lr = 0.1 + 0.2;
        let read = Manifest::parse(written.text().unwrap().as_bytes()).unwrap();
        assert_eq!(read, written);
        assert_eq!(read.user_blob(), b"\x00blob\xff");
    }

    #[test]
    fn what_does_not_hold_together_is_refused() {
        let refuse = |change: fn(&mut Manifest), words: &str| {
            let mut changed = manifest();
            change(&mut changed);
            let (_, why) = Manifest::parse(changed.text().unwrap().as_bytes()).unwrap_err();
            assert!(why.contains(words), "{why}");
        };
        refuse(|m| m.shards[0].elems = 14, "do not cover");
        refuse(|m| m.shards[0].flat_start = 1, "out of place");
        refuse(|m| m.shards[0].file = "../a".into(), "out of place");
        refuse(|m| m.shards[0].elems = u64::MAX, "do not cover");
        refuse(|m| m.update_counts.clear(), "update count");
        refuse(|m| m.parameters.clear(), "zero parameters");
        let other = manifest().text().unwrap().replace("\"version\": 1", "\"version\": 2");
        let (kind, why) = Manifest::parse(other.as_bytes()).unwrap_err();
        assert_eq!((kind, why.contains("version is 2")), (ErrorKind::Unavailable, true));
    }

    proptest! {
        #[test]
        fn changed_text_is_an_error_or_the_same(at in any::<prop::sample::Index>(), byte: u8) {
            let mut text = manifest().text().unwrap().into_bytes();
            let at = at.index(text.len());
            text[at] = byte;
            if let Ok(read) = Manifest::parse(&text) {
                prop_assert_eq!(read, manifest());
            }
        }

        #[test]
        fn any_text_is_read_without_a_panic(text in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Manifest::parse(&text);
        }
    }
}
