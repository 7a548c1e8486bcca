//! The plan: everything that follows from configuration, inventory and world before anything is
//! created.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::config::Config;
use crate::coord::Communicator;
use crate::error::{Error, ErrorKind, Result};
use crate::partition::{Chunk, Partition, contiguous_ranges};
use crate::state::{ADAMW_STATE, Inventory};
use crate::storage::{ExtentLayout, Placement};
use crate::units::{Bytes, ChunkIndex};

/// The least number of buffers that keeps reads and writes going at the same time.
const BUFFERS_MIN: u64 = 2;

/// What one rank is going to do.
#[derive(Clone, Debug)]
pub struct Plan {
    config: Config,
    inventory: Arc<Inventory>,
    ranges: Vec<Range<u64>>,
    partition: Arc<Partition>,
    placement: Placement,
    buffer_count: usize,
    buffer_bytes: usize,
}

impl Plan {
    /// Resolves the plan of one rank. A pure function of its arguments.
    ///
    /// # Errors
    /// Usage if the configuration is out of range, no drive is named, or the memory budget is below
    /// the minimum, which is in the message.
    pub fn resolve(config: &Config, inventory: Inventory, comm: &dyn Communicator) -> Result<Self> {
        config.validate()?;
        if config.drives.paths.is_empty() {
            return Err(Error::usage("no drive is named").hint(
                "name a directory on each drive with --drives DIR,DIR or in [drives] paths",
            ));
        }
        let ranges = contiguous_ranges(inventory.total_elems(), comm.size());
        let rank = comm.rank().index();
        let (sub_group, chunk) = (config.swap.sub_group_elements, config.swap.chunk_elements);
        let partition = Partition::new(&inventory, ranges[rank].clone(), sub_group.0, chunk.0);
        let extents = partition.chunks().iter().map(|chunk| layout_of(chunk).bytes());
        let extents: Vec<u64> = extents.collect();
        let weights = config.drive_weights();
        let placement = Placement::weighted(&extents, config.drives.stripe_unit.0, &weights, rank);
        let buffer_bytes = extents.iter().copied().max().unwrap_or(0);
        let buffer_count = buffer_count(config, buffer_bytes, extents.len() as u64)?;
        Ok(Self {
            config: config.clone(),
            inventory: Arc::new(inventory),
            ranges,
            partition: Arc::new(partition),
            placement,
            buffer_count,
            buffer_bytes: buffer_bytes as usize,
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

    /// Every rank's range of the flat space, in elements.
    pub fn ranges(&self) -> &[Range<u64>] {
        &self.ranges
    }

    /// This rank's part.
    pub fn partition(&self) -> &Partition {
        &self.partition
    }

    /// Where this rank's chunks lie.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// Number of I/O buffers.
    pub fn buffer_count(&self) -> usize {
        self.buffer_count
    }

    /// Bytes of one I/O buffer: the largest extent.
    pub fn buffer_bytes(&self) -> usize {
        self.buffer_bytes
    }

    /// The layout of one chunk's extent.
    pub fn layout(&self, chunk: ChunkIndex) -> ExtentLayout {
        layout_of(self.partition.chunk(chunk))
    }

    /// A function that says what a chunk holds, for messages from the I/O thread.
    pub(super) fn describer(&self) -> Box<dyn Fn(ChunkIndex) -> String + Send> {
        let (inventory, partition) = (Arc::clone(&self.inventory), Arc::clone(&self.partition));
        Box::new(move |chunk| {
            let name = |param| &inventory.parameter(param).name;
            match partition.runs_of(chunk) {
                [] => chunk.to_string(),
                [only] => format!("{chunk}: {}", name(only.param)),
                [first, .., last] => {
                    format!("{chunk}: {} to {}", name(first.param), name(last.param))
                }
            }
        })
    }
}

fn layout_of(chunk: &Chunk) -> ExtentLayout {
    ExtentLayout::new(chunk.padded_elems, &ADAMW_STATE)
}

/// As many buffers as the budget holds, but no more than there are chunks.
fn buffer_count(config: &Config, buffer_bytes: u64, chunks: u64) -> Result<usize> {
    let wanted = BUFFERS_MIN.min(chunks);
    let budget = config.swap.memory_budget;
    let fitting = budget.0.checked_div(buffer_bytes).unwrap_or(0).min(chunks);
    if fitting < wanted {
        return Err(Error::new(ErrorKind::Usage, "the memory budget is below the minimum")
            .with("swap.memory_budget", budget)
            .with("minimum", Bytes(wanted * buffer_bytes))
            .hint(format!(
                "{wanted} buffers of one chunk ({}) are needed: raise --memory-budget, or lower \
                 swap.chunk_elements (now {})",
                Bytes(buffer_bytes).human(),
                config.swap.chunk_elements
            )));
    }
    Ok(fitting as usize)
}

impl fmt::Display for Plan {
    /// The budget's formula and the shape of the shard, for the log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, bytes) = (self.buffer_count as u64, self.buffer_bytes as u64);
        write!(
            f,
            "shard of {} elements in {} chunks; memory: {count} buffers x {} = {} of {} budget",
            self.partition.elems(),
            self.partition.chunks().len(),
            Bytes(bytes).human(),
            Bytes(count * bytes).human(),
            self.config.swap.memory_budget,
        )
    }
}
