//! Checksums of chunks: one CRC32C per state tensor, taken when a chunk is swapped out and compared
//! when it is swapped in, so that training never goes on with bytes that a drive has changed.

use half::bf16;
use rayon::prelude::*;

use crate::config::VerifyChecksums;
use crate::error::{Error, ErrorKind, Result};
use crate::optim::SPLIT_ELEMS;
use crate::plan::Plan;
use crate::storage::{ExtentLayout, Segment, ShardDirectory};
use crate::units::{ChunkIndex, ExtentIndex};
use crate::wire::{crc32c, crc32c_joined};

/// With sampling, each chunk is compared once in this many steps.
const SAMPLING_STEPS: u64 = 16;
const PIECE_BYTES: usize = 4 * SPLIT_ELEMS;

/// The CRC32C of every state tensor of a chunk, padding included, and of the upper halves of its
/// live masters if there are any; in parallel.
pub(super) fn checksums_of(
    pool: &rayon::ThreadPool,
    layout: &ExtentLayout,
    bytes: &[u8],
    uppers: &[bf16],
) -> Vec<u32> {
    let uppers = (!uppers.is_empty()).then(|| bytemuck::cast_slice(uppers));
    let tensors = layout.sections().iter().map(|section| &bytes[section.clone()]);
    let sections: Vec<&[u8]> = tensors.chain(uppers).collect();
    let pieces: Vec<&[u8]> = sections.iter().flat_map(|it| it.chunks(PIECE_BYTES)).collect();
    let sums: Vec<u32> = pool.install(|| pieces.par_iter().map(|piece| crc32c(piece)).collect());
    let mut summed = pieces.into_iter().zip(sums);
    let join = |section: &&[u8]| {
        let pieces = summed.by_ref().take(section.len().div_ceil(PIECE_BYTES));
        let joined = pieces.map(|(piece, sum)| (sum, piece.len() as u64));
        joined.reduce(|(first, _), (second, len)| (crc32c_joined(first, second, len), 0))
    };
    sections.iter().map(join).map(|joined| joined.map_or(0, |(sum, _)| sum)).collect()
}

/// The checksums of a shard's chunks in their newest slots.
#[derive(Clone, Debug)]
pub(super) struct Checksums {
    mode: VerifyChecksums,
    /// Whether the checksums are used: by this process, a later start, or a checkpoint.
    is_kept: bool,
    per_chunk: usize,
    table: Vec<u32>,
}

impl Checksums {
    /// A table for the chunks of a plan.
    pub fn new(plan: &Plan) -> Self {
        let mode = plan.config().durability.verify;
        let per_chunk = plan.sums_per_chunk();
        let chunks = plan.partition().chunks().len();
        let config = plan.config();
        let is_saved = config.is_durable() || config.checkpoint.dir.is_some();
        let is_kept = is_saved || mode != VerifyChecksums::Off;
        Self { mode, is_kept, per_chunk, table: vec![0; per_chunk * chunks] }
    }

    /// Computes and keeps the checksums of a chunk that has changed in memory, before it is swapped
    /// out.
    pub fn take(
        &mut self,
        pool: &rayon::ThreadPool,
        layout: &ExtentLayout,
        chunk: ChunkIndex,
        bytes: &[u8],
        uppers: &[bf16],
    ) {
        if self.is_kept {
            let sums = checksums_of(pool, layout, bytes, uppers);
            self.of_mut(chunk).copy_from_slice(&sums);
        }
    }

    /// Checks that the parameters of a shard, which hold the upper halves of its masters, are those
    /// that were emitted last.
    ///
    /// # Errors
    /// Usage, naming the first chunk whose parameters differ.
    pub fn verify_parameters(
        &self,
        pool: &rayon::ThreadPool,
        plan: &Plan,
        attempt: u64,
        params: &[bf16],
    ) -> Result<()> {
        if !self.is_kept {
            return Ok(());
        }
        let differs = |chunk: &ChunkIndex| {
            let live = &params[plan.partition().chunk(*chunk).in_shard()];
            self.differ_from_halves(plan, *chunk, attempt, live)
        };
        let chunks = (0..plan.partition().chunks().len()).into_par_iter();
        let chunks = chunks.map(ChunkIndex::from_index);
        let first = pool.install(|| chunks.find_first(differs));
        first.map_or(Ok(()), |chunk| Err(other_parameters(plan, chunk)))
    }

    /// Checks the same of the parameters of one chunk.
    ///
    /// # Errors
    /// Usage, naming the first chunk whose parameters differ.
    pub fn verify_parameters_of(
        &self,
        plan: &Plan,
        chunk: ChunkIndex,
        attempt: u64,
        halves: &[bf16],
    ) -> Result<()> {
        if self.is_kept && self.differ_from_halves(plan, chunk, attempt, halves) {
            return Err(other_parameters(plan, chunk));
        }
        Ok(())
    }

    fn differ_from_halves(
        &self,
        plan: &Plan,
        chunk: ChunkIndex,
        attempt: u64,
        halves: &[bf16],
    ) -> bool {
        let upper = plan.tensors().len();
        self.is_due(chunk, attempt) && crc32c(bytemuck::cast_slice(halves)) != self.of(chunk)[upper]
    }

    /// The checksums of one chunk.
    pub fn of(&self, chunk: ChunkIndex) -> &[u32] {
        &self.table[chunk.index() * self.per_chunk..][..self.per_chunk]
    }

    fn of_mut(&mut self, chunk: ChunkIndex) -> &mut [u32] {
        &mut self.table[chunk.index() * self.per_chunk..][..self.per_chunk]
    }

    /// Whether this chunk is to be compared at this step.
    pub fn is_due(&self, chunk: ChunkIndex, attempt: u64) -> bool {
        match self.mode {
            VerifyChecksums::Always => true,
            VerifyChecksums::Sampled => {
                (attempt + u64::from(chunk.0)).is_multiple_of(SAMPLING_STEPS)
            }
            VerifyChecksums::Off => false,
        }
    }

    /// Compares a chunk that has just been swapped in from `extent` with its checksums. `uppers`
    /// may be empty; otherwise they are compared too.
    ///
    /// # Errors
    /// State lost, naming the state tensor and the parameters that differ, and where on the drives
    /// they lie.
    pub fn verify(
        &self,
        pool: &rayon::ThreadPool,
        plan: &Plan,
        chunk: ChunkIndex,
        extent: ExtentIndex,
        bytes: &[u8],
        uppers: &[bf16],
    ) -> Result<()> {
        if !self.is_kept {
            return Ok(());
        }
        let found = checksums_of(pool, &plan.layout(chunk), bytes, uppers);
        let expected = self.of(chunk);
        let differs = found.iter().zip(expected).position(|(found, expected)| found != expected);
        match differs {
            None => Ok(()),
            Some(tensor) => Err(corrupt(plan, chunk, extent, tensor)
                .with("checksum", format!("{:08x}", found[tensor]))
                .with("expected", format!("{:08x}", expected[tensor]))),
        }
    }

    /// The checksums of all chunks, chunk by chunk, for a record.
    pub fn table(&self) -> &[u32] {
        &self.table
    }

    /// Takes over the checksums of a record.
    pub fn restore(&mut self, table: &[u32]) {
        self.table.copy_from_slice(table);
    }
}

fn other_parameters(plan: &Plan, chunk: ChunkIndex) -> Error {
    Error::usage(
        "parameters are not those that were emitted last: they hold the upper halves of the \
         masters",
    )
    .with("holding", plan.describe(chunk))
    .hint(
        "hand in the slice that the last step wrote, unchanged; or use the codec fp32 for the \
         master",
    )
}

/// The error of a chunk whose state tensor is not what was written to this extent.
pub(crate) fn corrupt(plan: &Plan, chunk: ChunkIndex, extent: ExtentIndex, tensor: usize) -> Error {
    let layout = plan.layout(chunk);
    let section = layout.sections().get(tensor).cloned().or_else(|| layout.upper_halves());
    let section = section.unwrap_or(0..0);
    let touches = |segment: &Segment| {
        segment.extent_offset < section.end && segment.extent_offset + segment.len > section.start
    };
    let segments = plan.placement().segments(extent);
    let places = segments.iter().filter(|segment| touches(segment)).map(|segment| {
        let from = section.start.max(segment.extent_offset);
        let to = section.end.min(segment.extent_offset + segment.len);
        let offset = segment.file_offset + (from - segment.extent_offset) as u64;
        let config = plan.config();
        let drive = &config.drives.paths[segment.drive.index()];
        let path = ShardDirectory::new(drive, &config.job, plan.shard()).state_path();
        format!("{}: {} offset {offset} length {}", segment.drive, path.display(), to - from)
    });
    Error::new(ErrorKind::StateLost, "a chunk on the drives is corrupt")
        .with("holding", plan.describe(chunk))
        .with("state tensor", plan.sum_name(tensor))
        .with("which lies on", places.collect::<Vec<_>>().join(" and "))
        .hint(
            "the drive has changed or lost bytes: look at its health; the job goes on from its \
             newest checkpoint, see optswap scrub",
        )
}
