//! The manifest, which describes a checkpoint in JSON with a checksum, and is replaced atomically.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::places::{Places, ShardEntry};
use super::private::open_private;
use crate::error::{Error, ErrorKind, Result};
use crate::state::{Codec, Hyperparameters, Inventory, LossScalerState, Parameter};
use crate::wire::crc32c;

const FORMAT: &str = "optswap checkpoint";
/// The version that is written. Older ones are read: 1 had one inventory with the default cut, 2
/// several or shards in pieces; both had one user blob, that of rank 0, in the manifest.
const VERSION: u32 = 3;
pub(super) const MANIFEST: &str = "manifest.json";

/// The description of a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The job that saved it.
    pub job: String,
    /// Identifies the save among those under the same name; the names of data files have it in
    /// them.
    pub generation: String,
    /// Number of steps attempted before it was saved.
    pub attempts: u64,
    /// The model's parameters, in inventory order.
    pub parameters: Vec<Parameter>,
    /// Updates that each parameter took, in inventory order.
    pub update_counts: Vec<u64>,
    /// State tensors in the order in which they lie in an extent.
    pub tensors: Vec<(String, Codec)>,
    /// Hyper-parameters of every group, as they were.
    pub groups: Vec<Hyperparameters>,
    /// The last loss scale.
    pub loss_scale: f32,
    /// What the loss scaler remembered; `None` in checkpoints of other programs and of older
    /// versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scaler: Option<LossScalerState>,
    /// Who saved it; `None` in checkpoints that were imported, and in those of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saved_by: Option<Run>,
    /// Whether the bytes that the caller handed over differ between ranks. They are in the indexes
    /// of the shards.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub user_blobs_differ: bool,
    /// In checkpoints that were imported, and in those of older versions: what all ranks get, in
    /// hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_blob: Option<String>,
    /// One entry per shard, in the order of the flat space, or of ranks if they are in pieces.
    pub shards: Vec<ShardEntry>,
    /// The job's other inventories, from number 1 on. The fields above describe number 0.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<OtherInventory>,
}

/// The process that saved a checkpoint, for messages, and to notice another living job.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// Drawn when its job was created on the drives.
    pub id: String,
    /// The host of rank 0.
    pub host: String,
    /// Rank 0's process.
    pub process: u32,
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "run {}, process {} on {}", self.id, self.process, self.host)
    }
}

/// One more inventory in a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OtherInventory {
    /// Its parameters, in its order.
    pub parameters: Vec<Parameter>,
    /// Updates that each of them took.
    pub update_counts: Vec<u64>,
    /// Its shards.
    pub shards: Vec<ShardEntry>,
}

/// The file with format, version and checksum.
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
    /// Unavailable if there is none, or its format or version is not known; I/O if it is damaged.
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
    ///
    /// # Errors
    /// Unavailable if its format or version is not known, I/O if it is damaged; the text says why.
    pub fn parse(text: &[u8]) -> Result<Self, (ErrorKind, String)> {
        let damaged = |why: String| (ErrorKind::Io, why);
        let signed: Signed<Box<RawValue>> =
            serde_json::from_slice(text).map_err(|error| damaged(error.to_string()))?;
        if signed.format != FORMAT {
            return Err((ErrorKind::Unavailable, format!("its format is `{}`", signed.format)));
        }
        if !(1..=VERSION).contains(&signed.version) {
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

    /// Whether neighbouring elements may lie far from each other.
    pub(super) fn has_pieces(&self) -> bool {
        !self.others.is_empty() || self.shards.iter().any(|shard| !shard.pieces.is_empty())
    }

    /// Number of inventories.
    pub fn inventories(&self) -> u32 {
        1 + self.others.len() as u32
    }

    /// The manifest of one of the inventories, as if there were no other; `None` if there are not
    /// so many.
    pub fn of_inventory(mut self, number: u32) -> Option<Self> {
        let others = std::mem::take(&mut self.others);
        if number > 0 {
            let other = others.into_iter().nth(number as usize - 1)?;
            self.parameters = other.parameters;
            self.update_counts = other.update_counts;
            self.shards = other.shards;
        }
        Some(self)
    }

    /// Checks what the rest of the code relies on.
    fn check(&self) -> Result<(), String> {
        let first = (&self.parameters, &self.update_counts, &self.shards);
        let others = self.others.iter().map(|it| (&it.parameters, &it.update_counts, &it.shards));
        for (parameters, update_counts, shards) in std::iter::once(first).chain(others) {
            let inventory =
                Inventory::new(parameters.clone()).map_err(|error| error.to_string())?;
            if update_counts.len() != parameters.len() {
                return Err("it has not one update count for each parameter".to_owned());
            }
            Places::of(&inventory, shards)?;
        }
        Ok(())
    }

    /// Replaces the manifest, which makes this the checkpoint of the directory.
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
    /// Usage if the parameters are no inventory. A manifest that was read has been checked for
    /// that.
    pub fn inventory(&self) -> Result<Inventory> {
        Inventory::new(self.parameters.clone())
    }

    /// What all ranks get back, in a checkpoint of an older version; `None` if each shard has its
    /// own.
    pub(super) fn blob_of_all(&self) -> Option<Vec<u8>> {
        let digits = self.user_blob.as_ref()?.as_bytes().chunks(2);
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        Some(digits.filter_map(byte).collect())
    }

    /// Number of shards of all inventories together.
    pub(super) fn shards_of_all(&self) -> usize {
        let others = self.others.iter().map(|other| other.shards.len());
        self.shards.len() + others.sum::<usize>()
    }
}

/// The path with this text at its end.
pub(super) fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut longer = path.as_os_str().to_owned();
    longer.push(ending);
    PathBuf::from(longer)
}

/// Bytes as hexadecimal digits.
pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn write_durably(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        let mut file = open_private(path, |it| it.write(true).create(true).truncate(true))?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|error: std::io::Error| {
        Error::new(ErrorKind::CannotCreate, "a file of a checkpoint cannot be written")
            .with("path", path.display())
            .because(error)
    })
}

/// Flushes a directory, so that the names in it are durable. Some file systems refuse that; how
/// durable names are is then up to them.
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
            saved_by: Some(Run { id: "run".to_owned(), host: "node".to_owned(), process: 7 }),
            user_blobs_differ: true,
            user_blob: None,
            shards: vec![shard()],
            others: Vec::new(),
        }
    }

    fn shard() -> ShardEntry {
        ShardEntry { file: "a".into(), flat_start: 0, elems: 15, bytes: 60, pieces: Vec::new() }
    }

    fn other() -> OtherInventory {
        let parameters = vec![Parameter::new("v", [15])];
        OtherInventory { parameters, update_counts: vec![3], shards: vec![shard()] }
    }

    #[test]
    fn a_manifest_of_several_inventories_comes_back() {
        let mut written = manifest();
        written.others.push(other());
        written.shards[0].pieces = vec![[5, 10], [0, 5]];
        let text = written.text().unwrap();
        let read = Manifest::parse(text.as_bytes()).unwrap();
        assert_eq!(read, written);
        let second = read.clone().of_inventory(1).unwrap();
        assert_eq!((second.parameters[0].name.as_str(), second.update_counts[0]), ("v", 3));
        assert_eq!(read.of_inventory(2), None);
    }

    #[test]
    fn a_manifest_comes_back_with_every_digit() {
        let mut written = manifest();
        written.groups[0].lr = 0.1 + 0.2;
        let read = Manifest::parse(written.text().unwrap().as_bytes()).unwrap();
        assert_eq!(read, written);
        assert_eq!(read.blob_of_all(), None);
    }

    #[test]
    fn what_older_versions_wrote_is_read() {
        let mut old = manifest();
        (old.saved_by, old.user_blobs_differ) = (None, false);
        old.user_blob = Some(hexadecimal(b"\x00blob\xff"));
        for version in 1..=2 {
            let text =
                old.text().unwrap().replace("\"version\": 3", &format!("\"version\": {version}"));
            let read = Manifest::parse(text.as_bytes()).unwrap();
            assert_eq!(read, old);
            assert_eq!(read.blob_of_all().unwrap(), b"\x00blob\xff");
        }
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
        refuse(|m| m.shards[0].pieces = vec![[0, 14]], "do not add up");
        refuse(
            |m| m.others.push(OtherInventory { update_counts: vec![], ..other() }),
            "one update",
        );
        refuse(|m| m.update_counts.clear(), "update count");
        refuse(|m| m.parameters.clear(), "zero parameters");
        let other = manifest().text().unwrap().replace("\"version\": 3", "\"version\": 4");
        let (kind, why) = Manifest::parse(other.as_bytes()).unwrap_err();
        assert_eq!((kind, why.contains("version is 4")), (ErrorKind::Unavailable, true));
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
