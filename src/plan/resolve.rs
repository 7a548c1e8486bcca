//! The plan: everything that follows from configuration, inventory and world before anything is
//! created.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::gradients::GradientPlan;
use super::size::{BUFFERS_MIN, ShardSize, buffer_count};
use super::tables::Tables;
use crate::config::{CacheSize, Config};
use crate::error::Result;
use crate::optim::Rounder;
use crate::partition::{Allotment, Chunk, Cut, NormBlocks, Partition, Run, contiguous_range};
use crate::state::{Codec, Inventory, StateTensor};
use crate::storage::{ExtentLayout, Placement, Shares};
use crate::units::{Bytes, ChunkIndex};

/// Buffers that `cache = "auto"` leaves for chunks on their way: enough for deep queues in both
/// directions.
const MOVING_BUFFERS: u64 = 8;

/// What one rank is going to do: its shard, its chunks and where they lie, and its memory.
#[derive(Clone, Debug)]
pub struct Plan {
    config: Config,
    tensors: Vec<StateTensor>,
    inventory: Arc<Inventory>,
    allotment: Arc<Allotment>,
    partition: Arc<Partition>,
    norm_blocks: Arc<NormBlocks>,
    placement: Arc<Placement>,
    buffer_count: usize,
    buffer_bytes: usize,
    cached_chunks: usize,
    gradients: GradientPlan,
}

impl Plan {
    /// Resolves the plan of the rank that has this shard. A pure function of its arguments.
    ///
    /// # Errors
    /// Usage if the configuration is out of range, no drive is named, or the memory budget is below
    /// the minimum, which is in the message.
    pub fn resolve(config: &Config, inventory: Inventory, allotment: &Allotment) -> Result<Self> {
        config.validate()?;
        // Before any table is built.
        ShardSize::resolve(config, &inventory, allotment)?;
        let (sub_group, chunk) = (config.swap.sub_group_elements, config.swap.chunk_elements);
        let pieces = allotment.cut.pieces(&inventory);
        let partition = Arc::new(Partition::of_pieces(&inventory, &pieces, sub_group.0, chunk.0));
        let blocks = match allotment.cut {
            Cut::Contiguous { .. } => NormBlocks::of_flat_space,
            Cut::Own(_) => NormBlocks::of_parameters,
        };
        let norm_blocks = blocks(&partition, &allotment.uncounted);
        let tensors = config.state_tensors();
        let is_durable = config.is_durable();
        let layout = |chunk: &Chunk| ExtentLayout::new(chunk.padded_elems, &tensors, is_durable);
        let extents = partition.chunks().iter().map(|chunk| layout(chunk).bytes());
        let extents: Vec<u64> = extents.collect();
        let weights = config.drive_weights();
        let slots = if config.is_durable() { 2 } else { 1 };
        let placement = Placement::weighted(
            &extents.repeat(slots),
            config.drives.stripe_unit.0,
            &weights,
            allotment.shard as usize,
            config.drives.stripe_headroom,
        );
        let buffer_bytes = extents.iter().copied().max().unwrap_or(0);
        let chunks = extents.len() as u64;
        let gradients =
            GradientPlan::resolve(config, &partition, &placement, buffer_bytes, allotment.shard);
        let taken = gradients.memory_bytes();
        let buffer_count = buffer_count(config, taken, buffer_bytes, chunks)?;
        let cached_chunks =
            cached_chunks(config.swap.cache, buffer_bytes, buffer_count as u64, chunks);
        Ok(Self {
            config: config.clone(),
            tensors,
            inventory: Arc::new(inventory),
            allotment: Arc::new(allotment.clone()),
            partition,
            norm_blocks: Arc::new(norm_blocks),
            placement: Arc::new(placement),
            buffer_count,
            buffer_bytes: buffer_bytes as usize,
            cached_chunks,
            gradients,
        })
    }

    /// The configuration that the plan follows.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The model's parameters.
    pub fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// The number of this rank's shard.
    pub fn shard(&self) -> u32 {
        self.allotment.shard
    }

    /// This rank's shard among all shards of the job.
    pub fn allotment(&self) -> &Allotment {
        &self.allotment
    }

    /// The blocks in which the gradients of this shard count in the norm.
    pub fn norm_blocks(&self) -> &NormBlocks {
        &self.norm_blocks
    }

    /// The range of the flat space, in elements, of every rank that shares this rank's inventory,
    /// in the order of these ranks. Empty where they have brought pieces of their own.
    pub fn ranges(&self) -> Vec<Range<u64>> {
        let (parts, elems) = (&self.allotment.parts, self.inventory.total_elems());
        let count = parts.len() as u32;
        parts.iter().map(|part| contiguous_range(elems, *part, count)).collect()
    }

    /// This rank's shard, cut into chunks.
    pub fn partition(&self) -> &Partition {
        &self.partition
    }

    /// Where this rank's chunks lie. All copies of a plan share it, and it follows what is written.
    pub fn placement(&self) -> &Arc<Placement> {
        &self.placement
    }

    /// Where gradients that are handed over during backward lie.
    pub fn gradients(&self) -> &GradientPlan {
        &self.gradients
    }

    /// Bytes that the shard's file on each drive must have: state, headroom and spilled gradients.
    pub fn drive_bytes(&self) -> Vec<u64> {
        let state = self.placement.drive_bytes();
        match self.gradients.placement() {
            None => state,
            Some(spills) => {
                let both = state.iter().zip(spills.drive_bytes());
                both.map(|(state, spilled)| state + spilled).collect()
            }
        }
    }

    /// Bytes of all memory that counts against the budget: buffers and gradients.
    pub fn memory_bytes(&self) -> u64 {
        (self.buffer_count * self.buffer_bytes) as u64 + self.gradients.memory_bytes()
    }

    /// Bytes of the tables of this rank, which count against no budget: what is known of each
    /// chunk, stripe unit and piece.
    pub fn table_bytes(&self) -> u64 {
        let spills = self.gradients.placement();
        Tables {
            chunks: self.partition.chunks().len() as u64,
            slots: if self.config.is_durable() { 2 } else { 1 },
            units: (self.placement.unit_count() + spills.map_or(0, |it| it.unit_count())) as u64,
            headroom: self.config.drives.stripe_headroom,
            pieces: self.partition.pieces().len() as u64,
            sums_per_chunk: self.sums_per_chunk() as u64,
            keeps_gradients: self.gradients.is_on(),
            spills_gradients: spills.is_some(),
        }
        .bytes()
    }

    /// Gives the drives new weights for all that is written from now on, and returns the shares of
    /// the state that follow.
    pub fn reweigh(&self, weights: &[f64]) -> Shares {
        if let Some(spills) = self.gradients.placement() {
            spills.reweigh(weights);
        }
        self.placement.reweigh(weights)
    }

    /// Number of I/O buffers for state.
    pub fn buffer_count(&self) -> usize {
        self.buffer_count
    }

    /// Bytes of one I/O buffer: the largest extent.
    pub fn buffer_bytes(&self) -> usize {
        self.buffer_bytes
    }

    /// Number of chunks that stay in memory between steps, each in a buffer of its own: the first
    /// ones of the shard.
    pub fn cached_chunks(&self) -> usize {
        self.cached_chunks
    }

    /// The layout of one chunk's extent on the drives.
    pub fn layout(&self, chunk: ChunkIndex) -> ExtentLayout {
        let padded_elems = self.partition.chunk(chunk).padded_elems;
        ExtentLayout::new(padded_elems, &self.tensors, self.config.is_durable())
    }

    /// The layout of one chunk in a checkpoint, which holds the whole state.
    pub fn saved_layout(&self, chunk: ChunkIndex) -> ExtentLayout {
        ExtentLayout::new(self.partition.chunk(chunk).padded_elems, &self.tensors, true)
    }

    /// The sub-group of a chunk: sub-groups are cut in shard order, all but the last of one size.
    pub fn sub_group_of(&self, chunk: ChunkIndex) -> u32 {
        let elems = self.config.swap.sub_group_elements.0;
        (self.partition.chunk(chunk).shard_offset / elems) as u32
    }

    /// The sub-group of every chunk, ascending.
    pub fn sub_groups(&self) -> Vec<u32> {
        let chunks = (0..self.partition.chunks().len()).map(ChunkIndex::from_index);
        chunks.map(|chunk| self.sub_group_of(chunk)).collect()
    }

    /// The chunks of a sub-group.
    pub fn chunks_of(&self, sub_group: u32) -> Range<usize> {
        let elems = self.config.swap.sub_group_elements.0;
        let chunks = self.partition.chunks();
        let before = |end: u64| chunks.partition_point(|chunk| chunk.shard_offset < end);
        let start = u64::from(sub_group) * elems;
        before(start)..before(start + elems)
    }

    /// Bytes of the gradients of a chunk that are handed over.
    pub fn gradient_bytes(&self, chunk: usize) -> usize {
        let padded_elems = self.partition.chunks()[chunk].padded_elems;
        (padded_elems * self.gradients.elem_bytes()) as usize
    }

    /// Bytes of each chunk that a step reads.
    pub fn swap_in_bytes(&self) -> Vec<usize> {
        let chunks = (0..self.partition.chunks().len()).map(ChunkIndex::from_index);
        chunks.map(|chunk| self.layout(chunk).swap_in_bytes() as usize).collect()
    }

    /// The state tensors in the order in which they lie in an extent.
    pub fn tensors(&self) -> &[StateTensor] {
        &self.tensors
    }

    /// Whether the parameters are the upper halves of the masters (the codec remainder16).
    pub fn is_halved(&self) -> bool {
        self.tensors.iter().any(|tensor| tensor.codec == Codec::Remainder16)
    }

    /// Checksums of a chunk: one for each state tensor, and one for upper halves.
    pub fn sums_per_chunk(&self) -> usize {
        self.tensors.len() + usize::from(self.is_halved())
    }

    /// The name of what a checksum of a chunk covers: a state tensor, or the upper halves of the
    /// masters.
    pub fn sum_name(&self, sum: usize) -> &str {
        self.tensors.get(sum).map_or("upper halves of master", |tensor| &tensor.name)
    }

    /// The number of the random number that rounds an element of the shard, among those of a step.
    /// Copies of a whole shard round alike, different shards do not.
    pub fn rounding_offset(&self, shard_offset: u64) -> u64 {
        let origin = match &self.allotment.cut {
            Cut::Contiguous { .. } => {
                self.partition.flat().start | u64::from(self.allotment.group) << 50
            }
            own @ Cut::Own(_) => 1 << 59 | (own.fingerprint() & 0x7ff_ffff) << 32,
        };
        origin + shard_offset
    }

    /// How a step rounds.
    pub fn rounder(&self, attempt: u64) -> Rounder {
        Rounder::new(self.config.codecs.rounding, self.config.codecs.seed, attempt)
    }

    /// What a chunk holds, for messages.
    pub fn describe(&self, chunk: ChunkIndex) -> String {
        describe(&self.inventory, &self.partition, chunk)
    }

    /// A function that does what [`Self::describe`] does, for the I/O thread.
    pub fn describer(&self) -> Box<dyn Fn(ChunkIndex) -> String + Send> {
        let (inventory, partition) = (Arc::clone(&self.inventory), Arc::clone(&self.partition));
        Box::new(move |chunk| describe(&inventory, &partition, chunk))
    }
}

fn describe(inventory: &Inventory, partition: &Partition, chunk: ChunkIndex) -> String {
    let name = |run: &Run| {
        let end = run.param_offset + run.elems;
        format!("{}[{}..{end}]", inventory.parameter(run.param).name, run.param_offset)
    };
    match partition.runs_of(chunk) {
        [] => chunk.to_string(),
        [only] => format!("{chunk}: {}", name(only)),
        [first, .., last] => format!("{chunk}: {} to {}", name(first), name(last)),
    }
}

/// The number of chunks that stay in memory. All of them if they fit; otherwise so many that enough
/// buffers are left for the others to pass through.
pub fn cached_chunks(cache: CacheSize, buffer_bytes: u64, buffers: u64, chunks: u64) -> usize {
    let (wanted, moving) = match cache {
        CacheSize::Bytes(bytes) => (bytes.0.checked_div(buffer_bytes).unwrap_or(0), BUFFERS_MIN),
        CacheSize::Auto => (chunks, MOVING_BUFFERS.min(buffers.div_ceil(2)).max(BUFFERS_MIN)),
    };
    if wanted >= chunks && buffers == chunks {
        return chunks as usize;
    }
    wanted.min(buffers.saturating_sub(moving)) as usize
}

impl fmt::Display for Plan {
    /// The budget's formula and the shape of the shard, for the log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, bytes) = (self.buffer_count as u64, self.buffer_bytes as u64);
        write!(
            f,
            "shard of {} elements in {} chunks; memory: {count} buffers x {}",
            self.partition.elems(),
            self.partition.chunks().len(),
            Bytes(bytes).human(),
        )?;
        let gradients = self.gradients.formula();
        if !gradients.is_empty() {
            write!(f, " + {gradients}")?;
        }
        let all = Bytes(self.memory_bytes()).human();
        write!(f, " = {all} of {} budget", self.config.swap.memory_budget)?;
        let cached = self.cached_chunks as u64;
        if cached > 0 {
            let kept = Bytes(cached * bytes).human();
            write!(f, ", {cached} of them ({kept}) keep chunks between steps")?;
        }
        write!(f, "; beside it {} of tables", Bytes(self.table_bytes()).human())
    }
}
