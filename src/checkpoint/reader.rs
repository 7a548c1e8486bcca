//! Reading ranges of the flat space from a checkpoint, with one chunk in memory at a time, or with
//! more if shards are in pieces, since neighbouring elements are then far from each other.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::index::{ChunkEntry, ShardIndex};
use super::manifest::Manifest;
use super::places::Places;
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
    places: Places,
    /// The shards that were read last, with their numbers, the newest at the end. Only a few are
    /// kept open, since there may be thousands.
    open: Vec<(usize, OpenShard)>,
    /// The chunks that were read last, the newest at the end: the next range often needs them
    /// again.
    resident: Vec<Resident>,
    read_bytes: u64,
}

/// How much is kept of a checkpoint whose shards are in pieces.
const OPEN_SHARDS_MAX: usize = 64;
const RESIDENT_BYTES_MAX: u64 = 256 << 20;

struct OpenShard {
    file: File,
    index: ShardIndex,
}

struct Resident {
    shard: usize,
    chunk: usize,
    /// Its elements, as the shard's index counts.
    positions: Range<u64>,
    /// Every state tensor, decoded.
    values: Vec<Vec<f32>>,
    bytes: u64,
}

impl CheckpointReader {
    /// Opens inventory number 0 of a checkpoint's directory, which is the only one of most jobs.
    ///
    /// # Errors
    /// Unavailable if there is no checkpoint, or its version is not known; I/O if its manifest is
    /// damaged; usage if it has a state tensor that no optimizer can have.
    pub fn open(directory: &Path) -> Result<Self> {
        Self::open_inventory(directory, 0)
    }

    /// Opens one inventory of a checkpoint's directory.
    ///
    /// # Errors
    /// Unavailable if there is no checkpoint, or its version is not known; I/O if its manifest is
    /// damaged; usage if there is no such inventory, or a state tensor that no optimizer can have.
    pub fn open_inventory(directory: &Path, number: u32) -> Result<Self> {
        let manifest = Manifest::read(directory)?;
        let count = manifest.inventories();
        let manifest = manifest.of_inventory(number).ok_or_else(|| {
            Error::usage("the checkpoint has not so many inventories")
                .with("checkpoint", directory.display())
                .with("inventory", number)
                .with("inventories", count)
        })?;
        let tensor = |(name, codec): &(String, Codec)| {
            StateTensor::named(name, *codec).ok_or_else(|| {
                Error::usage("the checkpoint has a state tensor that no optimizer can have")
                    .with("checkpoint", directory.display())
                    .with("state tensor", name)
            })
        };
        let tensors = manifest.tensors.iter().map(tensor).collect::<Result<_>>()?;
        let places = Places::of(&manifest.inventory()?, &manifest.shards).map_err(|why| {
            Error::new(ErrorKind::Io, "the shards of a checkpoint do not fit each other")
                .with("checkpoint", directory.display())
                .because(why)
        })?;
        let (directory, open, resident) = (directory.to_owned(), Vec::new(), Vec::new());
        Ok(Self { directory, manifest, tensors, places, open, resident, read_bytes: 0 })
    }

    /// The checkpoint's state tensors.
    pub fn tensors(&self) -> &[StateTensor] {
        &self.tensors
    }

    /// Checks that the checkpoint has state tensors of these names; their codecs may differ.
    ///
    /// # Errors
    /// Usage, with the names of both.
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

    /// The checkpoint's manifest, of this inventory alone.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The checkpoint's directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Bytes read so far.
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes
    }

    /// Checks that the checkpoint has the parameters of this model.
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

    /// Copies the state of the elements of the flat space from `flat_start` on into one slice per
    /// state tensor, all of the same length.
    ///
    /// # Errors
    /// I/O if a file cannot be read or a chunk differs from its checksums; usage if the range ends
    /// beyond the flat space.
    pub fn read_flat(&mut self, flat_start: u64, out: &mut [&mut [f32]]) -> Result<()> {
        let end = flat_start + out.first().map_or(0, |out| out.len() as u64);
        let mut at = flat_start;
        while at < end {
            let place = self.places.at(at).ok_or_else(|| {
                Error::usage("the checkpoint ends before this range").with("element", at)
            })?;
            let position = place.position + (at - place.flat.start);
            let (shard, place_end) = (place.shard, place.flat.end);
            let resident = self.chunk_at(shard, position)?;
            let until = end.min(place_end).min(at + (resident.positions.end - position));
            let from = (position - resident.positions.start) as usize;
            let elems = (until - at) as usize;
            let to = (at - flat_start) as usize;
            for (out, values) in out.iter_mut().zip(&resident.values) {
                out[to..to + elems].copy_from_slice(&values[from..from + elems]);
            }
            at = until;
        }
        Ok(())
    }

    /// Number of chunks of a shard.
    ///
    /// # Errors
    /// I/O if its index cannot be read.
    pub(super) fn chunks_of(&mut self, shard: usize) -> Result<usize> {
        Ok(self.shard(shard)?.index.chunks.len())
    }

    /// Where each chunk of a shard begins in its file.
    ///
    /// # Errors
    /// I/O if its index cannot be read.
    pub(super) fn chunk_offsets(&mut self, shard: usize) -> Result<Vec<u64>> {
        Ok(self.shard(shard)?.index.chunks.iter().map(|chunk| chunk.offset).collect())
    }

    /// Reads one chunk, compares it with its checksums, and returns its bytes.
    pub(super) fn check_chunk(&mut self, shard: usize, chunk: usize) -> Result<u64> {
        self.resident.clear();
        let resident = self.read_chunk(shard, chunk)?;
        Ok(resident.bytes)
    }

    fn chunk_at(&mut self, shard: usize, position: u64) -> Result<&Resident> {
        let holds = |held: &Resident| held.shard == shard && held.positions.contains(&position);
        let resident = match self.resident.iter().position(holds) {
            Some(at) => self.resident.remove(at),
            None => {
                let chunks = &self.shard(shard)?.index.chunks;
                let chunk = chunks.partition_point(|it| it.flat_start + it.elems <= position);
                self.make_room();
                self.read_chunk(shard, chunk)?
            }
        };
        self.resident.push(resident);
        self.resident.last().ok_or_else(|| Error::internal("no chunk is resident"))
    }

    /// Forgets chunks until the next one fits.
    fn make_room(&mut self) {
        let most = if self.manifest.has_pieces() { RESIDENT_BYTES_MAX } else { 0 };
        let bytes = |it: &Resident| it.values.iter().map(|values| 4 * values.len() as u64).sum();
        let sizes: Vec<u64> = self.resident.iter().map(bytes).collect();
        let mut left: u64 = sizes.iter().sum();
        let largest = sizes.iter().copied().max().unwrap_or(0);
        let surplus = sizes.iter().take_while(|size| {
            let is_over = left + largest > most;
            left -= **size;
            is_over
        });
        let surplus = surplus.count();
        self.resident.drain(..surplus);
    }

    fn shard(&mut self, shard: usize) -> Result<&OpenShard> {
        let known = self.open.iter().position(|(number, _)| *number == shard);
        if let Some(at) = known {
            let open = self.open.remove(at);
            self.open.push(open);
        } else {
            let most = if self.manifest.has_pieces() { OPEN_SHARDS_MAX } else { 1 };
            if self.open.len() >= most {
                self.open.remove(0);
            }
            let open = self.open_shard(shard)?;
            self.open.push((shard, open));
        }
        let open = self.open.last().map(|(_, open)| open);
        open.ok_or_else(|| Error::internal("a shard is not open"))
    }

    fn open_shard(&self, shard: usize) -> Result<OpenShard> {
        let entry = &self.manifest.shards[shard];
        let path = self.directory.join(&entry.file);
        let damaged =
            |message: &str| Error::new(ErrorKind::Io, message).with("path", path.display());
        let file = File::open(&path).map_err(|error| {
            damaged("a file of the checkpoint cannot be opened")
                .because(error)
                .hint("if the checkpoint has just been saved again under this name, open it again")
        })?;
        let index = ShardIndex::read(&path)?;
        let is_halved = self.tensors.iter().any(|it| it.codec == Codec::Remainder16);
        let sums = self.tensors.len() + usize::from(is_halved);
        let file_bytes = file.metadata().map_or(0, |metadata| metadata.len());
        let mut flat = entry.flat_start;
        for chunk in &index.chunks {
            let fits = chunk.flat_start == flat
                && chunk.elems <= chunk.padded_elems
                && chunk.padded_elems <= 1 << 32
                && chunk.checksums.len() == sums;
            if !fits {
                return Err(damaged("the index of a checkpoint's shard is inconsistent"));
            }
            // No memory is taken for what the file cannot hold.
            let bytes = ExtentLayout::new(chunk.padded_elems, &self.tensors, true).bytes();
            if chunk.offset.checked_add(bytes).is_none_or(|end| end > file_bytes) {
                return Err(damaged("a file of the checkpoint is shorter than its index says")
                    .with("chunk at", chunk.offset)
                    .with("length", bytes)
                    .with("file", file_bytes)
                    .hint("use an older checkpoint"));
            }
            flat += chunk.elems;
        }
        let is_of_shard =
            index.generation == self.manifest.generation && flat == entry.flat_start + entry.elems;
        if !is_of_shard {
            return Err(damaged("the index of a checkpoint's shard is of another shard"));
        }
        Ok(OpenShard { file, index })
    }

    fn read_chunk(&mut self, shard: usize, chunk: usize) -> Result<Resident> {
        let path = self.directory.join(&self.manifest.shards[shard].file);
        let is_contiguous = self.manifest.shards[shard].pieces.is_empty();
        let space = if is_contiguous { "flat space" } else { "shard" };
        let parameters = |entry: &ChunkEntry| {
            let end = entry.flat_start + entry.elems;
            format!("elements {}..{end} of the {space}", entry.flat_start)
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
        let positions = entry.flat_start..entry.flat_start + entry.elems;
        self.read_bytes += layout.bytes();
        Ok(Resident { shard, chunk, positions, values, bytes: layout.bytes() })
    }
}

impl std::fmt::Debug for Resident {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "chunk {} of shard {}", self.chunk, self.shard)
    }
}
