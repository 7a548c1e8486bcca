//! The files that describe a durable shard: its layout, written once on every drive, and a record
//! of each commit, in two places that take turns.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::commit::{Held, Stamp};
use super::directory::ShardDirectory;
use super::placement::MovedUnits;
use super::private::{PrivateDirectory, is_not_ours};
use super::space::{check_file_size, explained, overwrite_in_place, set_aside_beyond_end};
use crate::error::{Error, ErrorKind, Result};
use crate::partition::{Allotment, Cut};
use crate::state::{Codec, LossScalerState, Parameter};
use crate::wire::{Frame, Unsealed};

const LAYOUT_FRAME: Frame = Frame { magic: *b"OPTSWLAY", version: 3 };
const RECORD_FRAME: Frame = Frame { magic: *b"OPTSWREC", version: 3 };

/// The names of the files in a shard's directory.
pub(super) const LAYOUT: &str = "layout";
pub(super) const RECORDS: [&str; 2] = ["record-0", "record-1"];

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
    /// Leaves out what is long: the parameters and the caller's pieces.
    pub fn shorten(&mut self) {
        (self.parameters, self.cut) = (Vec::new(), Cut::Own(Vec::new()));
    }

    /// The shard among those of its job, for tools that read it. Which elements count in the norm,
    /// and which part each rank has, is not known, and so left empty.
    pub fn allotment(&self) -> Allotment {
        Allotment {
            shard: self.shard,
            shards: self.shards,
            group: self.group,
            groups: self.groups,
            cut: self.cut.clone(),
            parts: Vec::new(),
            uncounted: Vec::new(),
        }
    }

    /// Writes the layout, once.
    pub(super) fn write(&self, directory: &PrivateDirectory) -> Result<()> {
        let sealed = LAYOUT_FRAME.seal(self)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
        // Flushed always, whatever the configuration says of commits: it is written only once.
        let write = || {
            let mut file = directory.open_file(LAYOUT, flags)?;
            file.write_all(&sealed)?;
            file.sync_all()
        };
        write().map_err(|error| {
            let path = directory.path().join(LAYOUT);
            let refused = Error::new(ErrorKind::CannotCreate, "the layout file cannot be written");
            explained(refused.with("path", path.display()), error, directory.path())
        })
    }

    /// Reads a layout; `None` if there is none that was written to its end.
    pub(super) fn read(directory: &PrivateDirectory) -> Result<Option<Self>> {
        let path = directory.path().join(LAYOUT);
        let bytes = match directory.read(LAYOUT) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unreadable(&path, error)),
        };
        Self::unsealed(&bytes, &path)
    }

    /// The layout in the bytes of a file, which messages name; `None` if they are no whole one.
    ///
    /// # Errors
    /// Unavailable if another version of optswap wrote them.
    pub fn unsealed(bytes: &[u8], path: &Path) -> Result<Option<Self>> {
        match LAYOUT_FRAME.unseal(bytes) {
            Unsealed::Value(layout) => Ok(Some(layout)),
            Unsealed::Damaged(why) => {
                tracing::warn!("{}: no layout, as {why}", path.display());
                Ok(None)
            }
            Unsealed::OtherVersion(version) => Err(other_version(path, version, LAYOUT_FRAME)),
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
    /// Opens both places; creates them, empty, if `is_new`. Space for records of so many bytes is
    /// set aside, so that a drive that others fill does not end commits.
    ///
    /// # Errors
    /// Cannot create, with the path, if a file cannot be opened, or a new one has no room.
    pub fn open(shard: &ShardDirectory, is_new: bool, bytes: u64) -> Result<Self> {
        let directory = shard.enter()?.ok_or_else(|| shard.missing())?;
        let flags =
            OFlags::RDWR | OFlags::CREATE | if is_new { OFlags::TRUNC } else { OFlags::empty() };
        let paths = shard.record_paths();
        let open = |place: usize| {
            let opened = directory.open_file(RECORDS[place], flags).and_then(|file| {
                if is_new {
                    overwrite_in_place(&file, directory.path());
                }
                match set_aside_beyond_end(&file, bytes) {
                    Err(error) if is_new => Err(error),
                    // An older job's records have been written to their length.
                    _ => Ok(file),
                }
            });
            opened.map_err(|error| {
                let refused = Error::new(ErrorKind::CannotCreate, "a record file cannot be opened");
                explained(refused.with("path", paths[place].display()), error, directory.path())
            })
        };
        Ok(Self { files: [open(0)?, open(1)?], paths })
    }

    /// Reads both places; `None` for one that holds no whole record, because a commit was cut off.
    ///
    /// # Errors
    /// I/O if a file cannot be read; unavailable if another version of optswap wrote one.
    pub fn read(&self) -> Result<[Option<Record>; 2]> {
        let read = |place: usize| {
            let (file, path) = (&self.files[place], &self.paths[place]);
            let length = file.metadata().map_err(|error| unreadable(path, error))?.len();
            let mut bytes = vec![0; length as usize];
            file.read_exact_at(&mut bytes, 0).map_err(|error| unreadable(path, error))?;
            Record::unsealed(&bytes, path)
        };
        Ok([read(0)?, read(1)?])
    }

    /// Writes a record into a place; with `sync`, to the drive.
    ///
    /// # Errors
    /// I/O errors with the path.
    pub fn write(&self, place: usize, record: &Record, sync: bool) -> Result<()> {
        let sealed = RECORD_FRAME.seal(record)?;
        let (file, path) = (&self.files[place], &self.paths[place]);
        check_file_size(path, sealed.len() as u64)?;
        let written = file.write_all_at(&sealed, 0);
        let flushed = written.and_then(|()| if sync { file.sync_data() } else { Ok(()) });
        flushed.map_err(|error| {
            let failed = Error::new(ErrorKind::Io, "a record cannot be written")
                .with("path", path.display())
                .with("length", sealed.len());
            explained(failed, error, path)
        })
    }
}

impl Record {
    /// The record in a place; `None` if there is no whole one.
    pub(super) fn read(directory: &PrivateDirectory, place: usize) -> Result<Option<Self>> {
        let path = directory.path().join(RECORDS[place]);
        match directory.read(RECORDS[place]) {
            Ok(bytes) => Self::unsealed(&bytes, &path),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unreadable(&path, error)),
        }
    }

    /// The record in the bytes of a file, which messages name; `None` if they are no whole one.
    ///
    /// # Errors
    /// Unavailable if another version of optswap wrote them.
    pub fn unsealed(bytes: &[u8], path: &Path) -> Result<Option<Self>> {
        match RECORD_FRAME.unseal(bytes) {
            Unsealed::Value(record) => Ok(Some(record)),
            Unsealed::Damaged(why) => {
                if !bytes.is_empty() {
                    tracing::warn!("{}: no record, as {why}", path.display());
                }
                Ok(None)
            }
            Unsealed::OtherVersion(version) => Err(other_version(path, version, RECORD_FRAME)),
        }
    }
}

/// What the protocol of commits looks at in two records.
pub fn held(records: &[Option<Record>; 2]) -> Held {
    [0, 1].map(|place| records[place].as_ref().map(|record| (record.stamp, record.attempts)))
}

fn unreadable(path: &Path, cause: io::Error) -> Error {
    let kind = if is_not_ours(&cause) { ErrorKind::Unavailable } else { ErrorKind::Io };
    Error::new(kind, "a file of the job cannot be read").with("path", path.display()).because(cause)
}

fn other_version(path: &Path, found: u32, frame: Frame) -> Error {
    Error::new(ErrorKind::Unavailable, "a file was written by another version of optswap")
        .with("path", path.display())
        .with("format version", found)
        .with("known version", frame.version)
        .hint("use the optswap that wrote it, or another --job name")
}
