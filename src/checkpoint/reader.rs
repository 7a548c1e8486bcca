//! Reading a checkpoint by ranges of the flat space, with one chunk in memory at a time.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::manifest::{ChunkEntry, Manifest, ShardIndex};
use crate::error::{Error, ErrorKind, Result};
use crate::optim::Section;
use crate::state::{Codec, Inventory, StateTensor};
use crate::storage::ExtentLayout;
use crate::wire::crc32c;

/// A checkpoint, open for reading.
pub struct CheckpointReader {
    directory: PathBuf,
    manifest: Manifest,
    tensors: Vec<StateTensor>,
    /// The shard that was read last, and its number; one at a time, as there may be thousands.
    open: Option<(usize, OpenShard)>,
    /// The chunk that was read last: neighbours often need it again.
    resident: Option<Resident>,
    read_bytes: u64,
}

struct OpenShard {
    file: File,
    index: ShardIndex,
}

struct Resident {
    shard: usize,
    chunk: usize,
    flat: Range<u64>,
    /// Every state tensor, decoded.
    values: Vec<Vec<f32>>,
    bytes: u64,
}

impl CheckpointReader {
    /// Opens a checkpoint's directory.
    ///
    /// # Errors
    /// As [`Manifest::read`]; usage if it has state tensors that no optimizer has.
    pub fn open(directory: &Path) -> Result<Self> {
        let manifest = Manifest::read(directory)?;
        let tensor = |(name, codec): &(String, Codec)| {
            StateTensor::named(name, *codec).ok_or_else(|| {
                Error::usage("the checkpoint has a state tensor that no optimizer can have")
                    .with("checkpoint", directory.display())
                    .with("state tensor", name)
            })
        };
        let tensors = manifest.tensors.iter().map(tensor).collect::<Result<_>>()?;
        let directory = directory.to_owned();
        Ok(Self { directory, manifest, tensors, open: None, resident: None, read_bytes: 0 })
    }

    /// Its state tensors.
    pub fn tensors(&self) -> &[StateTensor] {
        &self.tensors
    }

    /// Checks that it is of an optimizer with these state tensors; their codecs may differ.
    ///
    /// # Errors
    /// Usage, with both.
    pub fn check_tensors(&self, tensors: &[StateTensor]) -> Result<()> {
        fn names(tensors: &[StateTensor]) -> Vec<&str> {
            tensors.iter().map(|tensor| &*tensor.name).collect()
        }
        let (saved, expected) = (names(&self.tensors), names(tensors));
        if saved == expected {
            return Ok(());
        }
        Err(Error::usage("the checkpoint is of another optimizer")
            .with("checkpoint", self.directory.display())
            .with("state tensors", saved.join(", "))
            .with("expected", expected.join(", "))
            .hint("set optimizer.kind, or optimizer.own, to the one that was used"))
    }

    /// What it is.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Bytes read so far.
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes
    }

    /// Checks that it is of this model.
    ///
    /// # Errors
    /// Usage, naming the first parameter that differs.
    pub fn check_model(&self, inventory: &Inventory) -> Result<()> {
        let (theirs, ours) = (&self.manifest.parameters, inventory.parameters());
        let same = |index: usize| match (theirs.get(index), ours.get(index)) {
            (Some(a), Some(b)) => a.name == b.name && a.shape == b.shape,
            _ => false,
        };
        let Some(first) = (0..theirs.len().max(ours.len())).find(|index| !same(*index)) else {
            return Ok(());
        };
        let describe = |list: &[crate::state::Parameter]| match list.get(first) {
            Some(parameter) => format!("{} {:?}", parameter.name, parameter.shape),
            None => "no more".to_owned(),
        };
        Err(Error::usage("the checkpoint is of another model")
            .with("checkpoint", self.directory.display())
            .with("first difference", format!("parameter {first}"))
            .with("saved", describe(theirs))
            .with("expected", describe(ours)))
    }

    /// Copies the state of a range of the flat space into one slice per state tensor.
    ///
    /// # Errors
    /// I/O: a file cannot be read, or a chunk is not what was saved.
    pub fn read_flat(&mut self, flat_start: u64, out: &mut [&mut [f32]]) -> Result<()> {
        let end = flat_start + out.first().map_or(0, |out| out.len() as u64);
        let mut at = flat_start;
        while at < end {
            let resident = self.chunk_at(at)?;
            let until = end.min(resident.flat.end);
            let from = (at - resident.flat.start) as usize;
            let elems = (until - at) as usize;
            let to = (at - flat_start) as usize;
            for (out, values) in out.iter_mut().zip(&resident.values) {
                out[to..to + elems].copy_from_slice(&values[from..from + elems]);
            }
            at = until;
        }
        Ok(())
    }

    /// Number of chunks of each shard.
    ///
    /// # Errors
    /// I/O: an index cannot be read.
    pub(super) fn chunks_of(&mut self, shard: usize) -> Result<usize> {
        Ok(self.shard(shard)?.index.chunks.len())
    }

    /// Reads one chunk and compares it with its checksums.
    pub(super) fn check_chunk(&mut self, shard: usize, chunk: usize) -> Result<u64> {
        self.resident = None;
        let resident = self.read_chunk(shard, chunk)?;
        Ok(resident.bytes)
    }

    fn chunk_at(&mut self, flat: u64) -> Result<&Resident> {
        let is_there = self.resident.as_ref().is_some_and(|held| held.flat.contains(&flat));
        if !is_there {
            let shards = &self.manifest.shards;
            let shard = shards.partition_point(|shard| shard.flat_start + shard.elems <= flat);
            let chunks = &self.shard(shard)?.index.chunks;
            let chunk = chunks.partition_point(|chunk| chunk.flat_start + chunk.elems <= flat);
            self.resident = None;
            self.resident = Some(self.read_chunk(shard, chunk)?);
        }
        self.resident.as_ref().ok_or_else(|| Error::internal("no chunk is resident"))
    }

    fn shard(&mut self, shard: usize) -> Result<&OpenShard> {
        let entry = &self.manifest.shards[shard];
        if self.open.as_ref().is_none_or(|(number, _)| *number != shard) {
            let path = self.directory.join(&entry.file);
            let damaged =
                |message: &str| Error::new(ErrorKind::Io, message).with("path", path.display());
            let file = File::open(&path).map_err(|error| {
                damaged("a file of the checkpoint cannot be opened").because(error).hint(
                    "if the checkpoint has just been saved again under this name, open it again",
                )
            })?;
            let index = ShardIndex::read(&path)?;
            let is_halved = self.tensors.iter().any(|it| it.codec == Codec::Remainder16);
            let sums = self.tensors.len() + usize::from(is_halved);
            let mut flat = entry.flat_start;
            for chunk in &index.chunks {
                let fits = chunk.flat_start == flat
                    && chunk.elems <= chunk.padded_elems
                    && chunk.padded_elems <= 1 << 32
                    && chunk.checksums.len() == sums;
                if !fits {
                    return Err(damaged("the index of a checkpoint's shard is inconsistent"));
                }
                flat += chunk.elems;
            }
            if index.generation != self.manifest.generation
                || flat != entry.flat_start + entry.elems
            {
                return Err(damaged("the index of a checkpoint's shard is of another shard"));
            }
            self.open = Some((shard, OpenShard { file, index }));
        }
        let open = self.open.as_ref().map(|(_, open)| open);
        open.ok_or_else(|| Error::internal("a shard is not open"))
    }

    fn read_chunk(&mut self, shard: usize, chunk: usize) -> Result<Resident> {
        let path = self.directory.join(&self.manifest.shards[shard].file);
        let parameters = |entry: &ChunkEntry| {
            let end = entry.flat_start + entry.elems;
            format!("elements {}..{end} of the flat space", entry.flat_start)
        };
        let tensors = self.tensors.clone();
        let open = self.shard(shard)?;
        let entry = &open.index.chunks[chunk];
        let layout = ExtentLayout::new(entry.padded_elems, &tensors, true);
        // The type is for its alignment.
        let mut extent = vec![0.0f32; layout.bytes() as usize / 4];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut extent);
        let failed = |message: &str| {
            Error::new(ErrorKind::Io, message)
                .with("path", path.display())
                .with("offset", entry.offset)
                .with("length", layout.bytes())
                .with("holding", parameters(entry))
        };
        open.file
            .read_exact_at(bytes, entry.offset)
            .map_err(|error| failed("a chunk of the checkpoint cannot be read").because(error))?;
        let (elems, live) = (entry.padded_elems as usize, entry.elems as usize);
        let uppers = layout.upper_halves().map(|section| &bytes[section][..2 * live]);
        let parts = layout.sections().iter().map(|section| &bytes[section.clone()]).chain(uppers);
        let mut wrong = parts.zip(&entry.checksums).map(|(part, sum)| crc32c(part) != *sum);
        if let Some(number) = wrong.position(|is_wrong| is_wrong) {
            let name = tensors.get(number).map_or("upper halves of master", |tensor| &tensor.name);
            return Err(failed("a chunk of the checkpoint is corrupt")
                .with("state tensor", name)
                .hint("use an older checkpoint"));
        }
        let uppers = uppers.map_or(&[][..], |uppers| bytemuck::cast_slice(uppers));
        let values = tensors.iter().zip(layout.sections()).map(|(tensor, section)| {
            let mut values = vec![0.0; elems];
            Section::new(tensor, &bytes[section.clone()], elems).decode(uppers, &mut values);
            values
        });
        let values = values.collect();
        let flat = entry.flat_start..entry.flat_start + entry.elems;
        self.read_bytes += layout.bytes();
        Ok(Resident { shard, chunk, flat, values, bytes: layout.bytes() })
    }
}

impl std::fmt::Debug for Resident {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "chunk {} of shard {}", self.chunk, self.shard)
    }
}
