//! Reading a checkpoint by ranges of the flat space, with one chunk in memory at a time.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::manifest::{ChunkEntry, Manifest, ShardIndex};
use crate::error::{Error, ErrorKind, Result};
use crate::state::{ADAMW_STATE, Inventory};
use crate::storage::ExtentLayout;
use crate::wire::crc32c;

/// A checkpoint, open for reading.
pub struct CheckpointReader {
    directory: PathBuf,
    manifest: Manifest,
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
    /// The extent; f32 for alignment.
    values: Vec<f32>,
    layout: ExtentLayout,
}

impl CheckpointReader {
    /// Opens a checkpoint's directory.
    ///
    /// # Errors
    /// As [`Manifest::read`]; usage if it has other state tensors than this optimizer.
    pub fn open(directory: &Path) -> Result<Self> {
        let manifest = Manifest::read(directory)?;
        let tensors = manifest.tensors.iter().map(|(name, codec)| (name.as_str(), *codec));
        if !tensors.eq(ADAMW_STATE.map(|tensor| (tensor.name, tensor.codec))) {
            return Err(Error::usage("the checkpoint has other state tensors than AdamW")
                .with("checkpoint", directory.display()));
        }
        let directory = directory.to_owned();
        Ok(Self { directory, manifest, open: None, resident: None, read_bytes: 0 })
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
    pub fn read_flat(&mut self, flat_start: u64, mut out: [&mut [f32]; 3]) -> Result<()> {
        let end = flat_start + out[0].len() as u64;
        let mut at = flat_start;
        while at < end {
            let resident = self.chunk_at(at)?;
            let until = end.min(resident.flat.end);
            let from = (at - resident.flat.start) as usize;
            let elems = (until - at) as usize;
            let to = (at - flat_start) as usize;
            for (out, section) in out.iter_mut().zip(resident.layout.sections()) {
                let section = &resident.values[section.start / 4..section.end / 4];
                out[to..to + elems].copy_from_slice(&section[from..from + elems]);
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
        Ok(4 * resident.values.len() as u64)
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
            let mut flat = entry.flat_start;
            for chunk in &index.chunks {
                let fits = chunk.flat_start == flat
                    && chunk.elems <= chunk.padded_elems
                    && chunk.padded_elems <= 1 << 32
                    && chunk.checksums.len() == ADAMW_STATE.len();
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
        let open = self.shard(shard)?;
        let entry = &open.index.chunks[chunk];
        let layout = ExtentLayout::new(entry.padded_elems, &ADAMW_STATE);
        let mut values = vec![0.0f32; layout.bytes() as usize / 4];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut values);
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
        for (tensor, section) in layout.sections().iter().enumerate() {
            if crc32c(&bytes[section.clone()]) != entry.checksums[tensor] {
                return Err(failed("a chunk of the checkpoint is corrupt")
                    .with("state tensor", ADAMW_STATE[tensor].name)
                    .hint("use an older checkpoint"));
            }
        }
        let flat = entry.flat_start..entry.flat_start + entry.elems;
        self.read_bytes += layout.bytes();
        Ok(Resident { shard, chunk, flat, values, layout })
    }
}

impl std::fmt::Debug for Resident {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "chunk {} of shard {}", self.chunk, self.shard)
    }
}
