//! A durable shard that nobody holds, as it lies on its drives: for looking at it, checking it and
//! putting it right between two runs of its job.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use half::bf16;

use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{Plan, ShardSize};
use crate::state::Inventory;
use crate::step::{Decoder, as_it_lies, corrupt, encode_chunk, place_as_recorded, upper_halves};
use crate::storage::{FoundShard, Record, ShardDirectory, Slots};
use crate::units::{Bytes, ChunkIndex, ExtentIndex};
use crate::wire::crc32c;

/// A shard at one of its commits.
pub struct StoredShard {
    plan: Plan,
    record: Record,
    slots: Slots,
    directories: Vec<ShardDirectory>,
    files: Vec<File>,
}

impl StoredShard {
    /// Opens a shard as a record has it.
    ///
    /// # Errors
    /// Unavailable if a drive is missing or its job is alive; I/O if a file cannot be opened.
    pub fn open(found: &FoundShard, record: Record, for_repair: bool) -> Result<Self> {
        let directories = found.complete()?;
        let layout = &found.layout;
        let mut config =
            as_it_lies(&Config::default().for_tensors(&layout.tensors), layout, &directories);
        // No buffers are allocated here.
        config.swap.memory_budget = Bytes(1 << 62);
        let inventory = Inventory::new(layout.parameters.clone())?;
        layout.cut.check(&inventory)?;
        let allotment = layout.allotment();
        let unfit = |what: &str| {
            Error::new(ErrorKind::Io, format!("{what} does not fit its layout"))
                .with("job", &layout.job)
                .with("shard", layout.shard)
        };
        config.validate()?;
        // Before tables of all chunks and their stripe units are built: a layout that lies could
        // have any number of them.
        let size = ShardSize::resolve(&config, &inventory, &allotment)?;
        if record.slots.len() as u64 != size.chunks() {
            return Err(unfit("a record"));
        }
        // Locked as long as they are open, so that no job starts on what is being looked at.
        let files = directories.iter().map(|directory| directory.open_dead(for_repair));
        let files: Vec<File> = files.collect::<Result<_>>()?;
        // What is missing at the end of a file is written anew by a repair.
        let least = size.drive_bytes().into_iter().map(|bytes| if for_repair { 0 } else { bytes });
        for ((directory, file), bytes) in directories.iter().zip(&files).zip(least) {
            let path = directory.state_path();
            let there = file.metadata().map_err(|error| {
                unfit("a state file").with("path", path.display()).because(error)
            })?;
            if there.len() < bytes {
                return Err(unfit("a state file")
                    .with("path", path.display())
                    .with("length", there.len())
                    .with("expected", bytes));
            }
        }
        let plan = Plan::resolve(&config, inventory, &allotment)?;
        if record.checksums.len() != record.slots.len() * plan.sums_per_chunk() {
            return Err(unfit("a record"));
        }
        place_as_recorded(&plan, &record)?;
        let slots = Slots::from_committed(record.slots.clone());
        Ok(Self { plan, record, slots, directories, files })
    }

    /// The plan that the shard follows.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Its directories, in its order of drives.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.directories.iter().map(|directory| directory.path().to_owned()).collect()
    }

    /// The commit.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Number of chunks.
    pub fn chunks(&self) -> usize {
        self.plan.partition().chunks().len()
    }

    /// Elements that a chunk's state tensors take.
    pub fn padded_elems(&self, chunk: ChunkIndex) -> usize {
        self.plan.partition().chunk(chunk).padded_elems as usize
    }

    fn extent(&self, chunk: ChunkIndex) -> ExtentIndex {
        self.slots.read_extent(chunk)
    }

    /// Reads a chunk's extent. (The type is for its alignment.)
    ///
    /// # Errors
    /// I/O: what cannot be read where.
    pub fn read(&self, chunk: ChunkIndex) -> Result<Vec<f32>> {
        let mut values = vec![0.0f32; self.plan.layout(chunk).bytes() as usize / 4];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut values);
        for segment in self.plan.placement().segments(self.extent(chunk)) {
            let part = &mut bytes[segment.extent_offset..][..segment.len];
            let read = self.files[segment.drive.index()].read_exact_at(part, segment.file_offset);
            read.map_err(|error| {
                let path = self.directories[segment.drive.index()].state_path();
                Error::new(ErrorKind::Io, "a chunk cannot be read")
                    .with("path", path.display())
                    .with("offset", segment.file_offset)
                    .with("length", segment.len)
                    .with("holding", self.plan.describe(chunk))
                    .because(error)
            })?;
        }
        Ok(values)
    }

    /// The f32 values of every state tensor of a chunk that [`Self::read`] gave, padding included.
    pub fn decode(&self, chunk: ChunkIndex, extent: &[f32]) -> Vec<Vec<f32>> {
        let mut decoder = Decoder::default();
        let values = decoder.decode(&self.plan, chunk, bytemuck::cast_slice(extent), &[]);
        values.into_iter().map(<[f32]>::to_vec).collect()
    }

    /// Compares a chunk's extent with the record.
    ///
    /// # Errors
    /// I/O: which state tensor of which parameters differs, and where it lies.
    pub fn check(&self, chunk: ChunkIndex, values: &[f32]) -> Result<()> {
        let sums = self.plan.sums_per_chunk();
        let expected = &self.record.checksums[chunk.index() * sums..][..sums];
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let layout = self.plan.layout(chunk);
        let uppers = upper_halves(&self.plan, chunk, &layout, bytes, &[]);
        let tensors = layout.sections().iter().map(|section| &bytes[section.clone()]);
        let parts = tensors.chain([bytemuck::cast_slice(uppers)]);
        let mut differs = parts.zip(expected).map(|(part, expected)| crc32c(part) != *expected);
        match differs.position(|differs| differs) {
            None => Ok(()),
            Some(tensor) => Err(corrupt(&self.plan, chunk, self.extent(chunk), tensor)),
        }
    }

    /// Writes a chunk's extent anew from its values, padding included, if that is what the record
    /// promises.
    ///
    /// # Errors
    /// I/O if it is not, and nothing is written then; or if it cannot be written.
    pub fn repair(&self, chunk: ChunkIndex, values: &[Vec<f32>]) -> Result<()> {
        let mut extent = vec![0.0f32; self.plan.layout(chunk).bytes() as usize / 4];
        let live = self.plan.partition().chunk(chunk).elems as usize;
        let mut params = vec![bf16::ZERO; live];
        encode_chunk(&self.plan, chunk, values, bytemuck::cast_slice_mut(&mut extent), &mut params);
        self.check(chunk, &extent).map_err(|_| {
            Error::new(ErrorKind::Io, "the checkpoint has other bytes for this chunk")
        })?;
        let bytes: &[u8] = bytemuck::cast_slice(&extent);
        for segment in self.plan.placement().segments(self.extent(chunk)) {
            let file = &self.files[segment.drive.index()];
            let part = &bytes[segment.extent_offset..][..segment.len];
            let written = file.write_all_at(part, segment.file_offset);
            written.and_then(|()| file.sync_data()).map_err(|error| {
                let path = self.directories[segment.drive.index()].state_path();
                Error::new(ErrorKind::Io, "a chunk cannot be repaired")
                    .with("path", path.display())
                    .with("offset", segment.file_offset)
                    .because(error)
            })?;
        }
        Ok(())
    }
}
