//! The files that describe a durable shard: its layout, written once on every drive, and a record
//! of each commit, in two places that take turns.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::commit::{Held, Stamp};
use super::placement::MovedUnits;
use crate::error::{Error, ErrorKind, Result};
use crate::partition::{Allotment, Cut};
use crate::state::{Codec, LossScalerState, Parameter};
use crate::wire::{Frame, Unsealed};

const LAYOUT: Frame = Frame { magic: *b"OPTSWLAY", version: 3 };
const RECORD: Frame = Frame { magic: *b"OPTSWREC", version: 3 };

/// How a durable shard lies on its drives. A later start goes by this, not by its configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShardLayout {
    /// Drawn when the job was created; the same in all its shards and on all their drives.
    pub job_id: String,
    /// The job's name.
    pub job: String,
    /// The number of this shard.
    pub shard: u32,
    /// The number of shards, which is that of ranks.
    pub shards: u32,
    /// The number of this drive in the shard's order.
    pub drive: u32,
    /// The path of every drive when the job was created.
    pub drives: Vec<PathBuf>,
    /// Relative speeds of the drives at the start.
    pub weights: Vec<f64>,
    /// Free units in the files, as a fraction of those that were dealt.
    pub stripe_headroom: f64,
    /// Bytes that lie together on one drive.
    pub stripe_unit_bytes: u64,
    /// Elements of a chunk.
    pub chunk_elems: u64,
    /// Elements of a sub-group.
    pub sub_group_elems: u64,
    /// State tensors in the order in which they lie in an extent.
    pub tensors: Vec<(String, Codec)>,
    /// The model's parameters, in inventory order.
    pub parameters: Vec<Parameter>,
    /// The number of this inventory among those of the job.
    pub group: u32,
    /// How many inventories the job has.
    pub groups: u32,
    /// Which elements of the parameters the shard has.
    pub cut: Cut,
}

impl ShardLayout {
    /// The shard among those of its job, for tools that read it. Which elements count in the norm
    /// is not known, and so left empty.
    pub fn allotment(&self) -> Allotment {
        let parts = match &self.cut {
            Cut::Contiguous { parts, .. } => (0..*parts).collect(),
            Cut::Own(_) => Vec::new(),
        };
        Allotment {
            shard: self.shard,
            shards: self.shards,
            group: self.group,
            groups: self.groups,
            cut: self.cut.clone(),
            parts,
            uncounted: Vec::new(),
        }
    }

    /// Writes the layout, once.
    ///
    /// # Errors
    /// Cannot-create errors with the path.
    pub fn write(&self, path: &Path) -> Result<()> {
        let sealed = LAYOUT.seal(self)?;
        // Flushed always, whatever the configuration says of commits: it is written only once.
        let write = || {
            let mut file = File::create(path)?;
            file.write_all(&sealed)?;
            file.sync_all()
        };
        write().map_err(|error| {
            Error::new(ErrorKind::CannotCreate, "the layout file cannot be written")
                .with("path", path.display())
                .because(error)
        })
    }

    /// Reads a layout; `None` if there is none that was written to its end.
    ///
    /// # Errors
    /// I/O if the file cannot be read; unavailable if another version of optswap wrote it.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unreadable(path).because(error)),
        };
        match LAYOUT.unseal(&bytes) {
            Unsealed::Value(layout) => Ok(Some(layout)),
            Unsealed::Damaged(why) => {
                tracing::warn!("{}: no layout, as {why}", path.display());
                Ok(None)
            }
            Unsealed::OtherVersion(version) => Err(other_version(path, version, LAYOUT)),
        }
    }
}

/// A commit of one shard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Which commit.
    pub stamp: Stamp,
    /// The job it belongs to, see [`ShardLayout::job_id`].
    pub job_id: String,
    /// Steps attempted so far.
    pub attempts: u64,
    /// Updates taken, for each of the shard's pieces.
    pub update_counts: Vec<u64>,
    /// The committed slot of every chunk.
    pub slots: Vec<u8>,
    /// The units of committed chunks that do not lie where the layout's weights put them.
    pub moved: MovedUnits,
    /// The drives' shares of what is written.
    pub shares: Vec<f64>,
    /// CRC32C of every chunk's state tensors in that slot, chunk by chunk.
    pub checksums: Vec<u32>,
    /// What the loss scaler remembers.
    pub loss_scaler: LossScalerState,
    /// The bytes that the caller handed to the step, to get them back on a resume.
    pub user_blob: Vec<u8>,
    /// The kernel's boot id. If the machine has been down since, state that was not flushed may be
    /// damaged, which its checksums show.
    pub boot_id: String,
    /// Whether state and record were flushed to the drives.
    pub is_synced: bool,
}

/// The two places of a shard's records, open for as long as the shard is.
#[derive(Debug)]
pub struct RecordFiles {
    files: [File; 2],
    paths: [PathBuf; 2],
}

impl RecordFiles {
    /// Opens both places; creates them, empty, if `is_new`.
    ///
    /// # Errors
    /// Cannot create, with the path, if a file cannot be opened.
    pub fn open(paths: [PathBuf; 2], is_new: bool) -> Result<Self> {
        let open = |path: &Path| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(is_new);
            options.open(path).map_err(|error| {
                Error::new(ErrorKind::CannotCreate, "a record file cannot be opened")
                    .with("path", path.display())
                    .because(error)
            })
        };
        Ok(Self { files: [open(&paths[0])?, open(&paths[1])?], paths })
    }

    /// Reads both places; `None` for one that holds no whole record, because a commit was cut off.
    ///
    /// # Errors
    /// I/O if a file cannot be read; unavailable if another version of optswap wrote one.
    pub fn read(&self) -> Result<[Option<Record>; 2]> {
        let [first, second] = &self.paths;
        Ok([read_record(first)?, read_record(second)?])
    }

    /// Writes a record into a place; with `sync`, to the drive.
    ///
    /// # Errors
    /// I/O errors with the path.
    pub fn write(&self, place: usize, record: &Record, sync: bool) -> Result<()> {
        let sealed = RECORD.seal(record)?;
        let file = &self.files[place];
        let written = file.write_all_at(&sealed, 0);
        let flushed = written.and_then(|()| if sync { file.sync_data() } else { Ok(()) });
        flushed.map_err(|error| {
            Error::new(ErrorKind::Io, "a record cannot be written")
                .with("path", self.paths[place].display())
                .with("length", sealed.len())
                .because(error)
        })
    }
}

/// The record in a file; `None` if there is no whole one.
///
/// # Errors
/// I/O if the file cannot be read; unavailable if another version of optswap wrote it.
pub fn read_record(path: &Path) -> Result<Option<Record>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(path).because(error)),
    };
    match RECORD.unseal(&bytes) {
        Unsealed::Value(record) => Ok(Some(record)),
        Unsealed::Damaged(why) => {
            if !bytes.is_empty() {
                tracing::warn!("{}: no record, as {why}", path.display());
            }
            Ok(None)
        }
        Unsealed::OtherVersion(version) => Err(other_version(path, version, RECORD)),
    }
}

/// What the protocol of commits looks at in two records.
pub fn held(records: &[Option<Record>; 2]) -> Held {
    [0, 1].map(|place| records[place].as_ref().map(|record| (record.stamp, record.attempts)))
}

fn unreadable(path: &Path) -> Error {
    Error::new(ErrorKind::Io, "a file of the job cannot be read").with("path", path.display())
}

fn other_version(path: &Path, found: u32, frame: Frame) -> Error {
    Error::new(ErrorKind::Unavailable, "a file was written by another version of optswap")
        .with("path", path.display())
        .with("format version", found)
        .with("known version", frame.version)
        .hint("use the optswap that wrote it, or another --job name")
}
