//! How a model is cut into the ranks and chunks of a cluster: everything that can be computed
//! before a step is simulated.

use super::rank::Rank;
use super::{Bandwidth, Cluster, NodeKind, StateBytes, Swapping};
use optswap::internals::config::GradientPlace;
use optswap::internals::error::{Error, Result};
use optswap::internals::plan::{GradientRoom, Tables, cached_chunks};
use optswap::internals::units::{BLOCK_ELEMS, Bytes, round_up};

/// Bytes that the update moves between memory and processors for one parameter: gradient, master
/// and moments in, parameter, master and moments out.
const UPDATE_BYTES: f64 = 28.0;
/// Checksums of a chunk at most: three state tensors, and the upper halves of masters.
const SUMS_PER_CHUNK: u64 = 4;

/// What all ranks have in common.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub params_per_rank: u64,
    pub buffers: u64,
    pub kept: u64,
    pub extent_bytes: u64,
    /// Bytes of gradients that a rank keeps in memory of its budget, buffers for others included.
    pub gradient_memory_bytes: u64,
    /// Bytes of what a rank keeps of its chunks and stripe units, beside its budget.
    pub table_bytes: u64,
    /// Bytes of gradients that a rank writes to its drives before a step and reads in it.
    pub spilled_bytes: u64,
    /// Chunks that a rank reads and writes in a step, on average.
    pub moved_chunks: [f64; 2],
    /// Seconds of one collective over all ranks.
    pub collective_seconds: f64,
    /// Seconds that the processors of a node need in a step.
    pub processor_seconds: f64,
    /// Seconds that its memory needs.
    pub memory_seconds: f64,
    /// Stripe units of a rank's state, all slots, and of its spilled gradients.
    units: u64,
    unit_bytes: u64,
    headroom: f64,
}

impl Shape {
    /// Bytes of a rank's file on a drive with this part of the state.
    pub fn file_bytes(&self, share: f64) -> u64 {
        let units = (self.units as f64 * share).ceil();
        (units + (units * self.headroom).ceil()) as u64 * self.unit_bytes
    }
}

/// The drives of a node as a stripe over all of them: each holds its share, so that the one that
/// is slow for its share sets the pace.
pub(super) fn striped(drives: &[Bandwidth], shares: &[f64]) -> Bandwidth {
    let pace = |speed: fn(&Bandwidth) -> f64| {
        let used = drives.iter().zip(shares).filter(|(_, share)| **share > 0.0);
        used.map(|(drive, share)| speed(drive) / share).fold(f64::INFINITY, f64::min)
    };
    Bandwidth { read: pace(|it| it.read), write: pace(|it| it.write), mixed: pace(|it| it.mixed) }
}

/// The shape, and a rank of each kind of node.
pub(super) fn shapes(
    params: u64,
    cluster: &Cluster,
    bytes: &StateBytes,
    swapping: &Swapping,
) -> Result<(Shape, Vec<Rank>)> {
    check(params, cluster)?;
    let cut = Cut::of(params, cluster, bytes, swapping)?;
    let costs = Costs::of(&cut);
    let ranks = cluster.kinds.iter().map(|kind| cut.rank(kind, &costs)).collect();
    Ok((cut.shape(&costs), ranks))
}

/// A model cut into the chunks of ranks that are all alike.
struct Cut<'a> {
    cluster: &'a Cluster,
    bytes: &'a StateBytes,
    swapping: &'a Swapping,
    params_per_rank: u64,
    chunk_elems: u64,
    chunks: u64,
    extent_bytes: u64,
    buffers: u64,
    kept: u64,
    /// Chunks that a rank reads and writes in a step, on average.
    moved_chunks: [f64; 2],
    gradients: Gradients,
}

impl<'a> Cut<'a> {
    /// # Errors
    /// Usage, if the budget is too small for two chunks.
    fn of(
        params: u64,
        cluster: &'a Cluster,
        bytes: &'a StateBytes,
        swapping: &'a Swapping,
    ) -> Result<Self> {
        let params_per_rank = round_up(params.div_ceil(cluster.ranks()), BLOCK_ELEMS);
        let chunk_elems = swapping.chunk_elems.min(params_per_rank);
        let chunks = params_per_rank.div_ceil(chunk_elems);
        let extent_bytes = whole_sectors(chunk_elems, bytes);
        let gradients = Gradients::of(swapping, params_per_rank, chunk_elems, extent_bytes);
        let room = swapping.budget_bytes.saturating_sub(gradients.memory_bytes);
        let buffers = (room / extent_bytes).min(chunks);
        if buffers < chunks.min(2) {
            let minimum = chunks.min(2) * extent_bytes + gradients.memory_bytes;
            return Err(Error::usage("the memory budget is below the minimum")
                .with("memory budget", Bytes(swapping.budget_bytes).human())
                .with("minimum", Bytes(minimum).human()));
        }
        let kept = cached_chunks(swapping.cache, extent_bytes, buffers, chunks) as u64;
        let moving = (chunks - kept) as f64;
        let kept_written = swapping.commit_every.map_or(0.0, |every| kept as f64 / every as f64);
        Ok(Self {
            cluster,
            bytes,
            swapping,
            params_per_rank,
            chunk_elems,
            chunks,
            extent_bytes,
            buffers,
            kept,
            moved_chunks: [moving, moving + kept_written],
            gradients,
        })
    }

    /// Elements of a chunk on average: a rank's last chunk is short.
    fn mean_chunk_elems(&self) -> f64 {
        self.params_per_rank as f64 / self.chunks as f64
    }

    /// Seconds of a node for all its parameters.
    fn node_seconds(&self, ns_per_param: f64) -> f64 {
        let ranks = self.cluster.ranks_per_node as f64;
        self.params_per_rank as f64 * ranks * ns_per_param * 1e-9
    }

    /// Stripe units of a rank's state in one slot.
    fn units(&self) -> u64 {
        let unit_bytes = self.swapping.stripe_unit_bytes;
        let last_elems = self.params_per_rank - (self.chunks - 1) * self.chunk_elems;
        let last = whole_sectors(last_elems, self.bytes).div_ceil(unit_bytes);
        (self.chunks - 1) * self.extent_bytes.div_ceil(unit_bytes) + last
    }

    fn rank(&self, kind: &NodeKind, costs: &Costs) -> Rank {
        let (elems, node) = (self.mean_chunk_elems(), self.cluster.ranks_per_node as f64);
        let drives: Vec<Bandwidth> = kind.drives.iter().map(|drive| drive.bandwidth).collect();
        let Bandwidth { read, write, mixed } = striped(&drives, &kind.shares());
        // They are written before a step, while the program computes, and read with the state.
        let spilled_bytes = self.gradients.spilled_bytes as f64 / self.chunks as f64;
        Rank {
            chunks: self.chunks,
            buffers: self.buffers,
            kept: self.kept,
            read_bytes: elems * self.bytes.read + spilled_bytes,
            written_bytes: elems * self.bytes.written,
            // All ranks of a node update at the same time.
            update_seconds: elems * node * costs.processor_ns.max(costs.memory_ns) * 1e-9,
            bandwidth: Bandwidth { read: read / node, write: write / node, mixed: mixed / node },
            norm_seconds: costs.norm_seconds + costs.collective_seconds,
            agreement_seconds: costs.collective_seconds,
            compute_seconds: self.cluster.compute_seconds,
            spilled_bytes,
            write_behind: self.swapping.write_behind,
            prefetch: self.swapping.prefetch,
            commit_every: self.swapping.commit_every,
        }
    }

    fn shape(&self, costs: &Costs) -> Shape {
        let unit_bytes = self.swapping.stripe_unit_bytes;
        let spilled_units = self.gradients.spilled_bytes.div_ceil(unit_bytes);
        let units = self.swapping.slots() * self.units() + spilled_units;
        let tables = Tables {
            chunks: self.chunks,
            slots: self.swapping.slots(),
            units,
            headroom: self.swapping.stripe_headroom,
            // Of parameters there are far fewer than of chunks where this matters.
            pieces: 0,
            sums_per_chunk: SUMS_PER_CHUNK,
            keeps_gradients: self.swapping.gradients != GradientPlace::Caller,
            spills_gradients: spilled_units > 0,
        };
        Shape {
            params_per_rank: self.params_per_rank,
            buffers: self.buffers,
            kept: self.kept,
            extent_bytes: self.extent_bytes,
            gradient_memory_bytes: self.gradients.memory_bytes,
            table_bytes: tables.bytes(),
            spilled_bytes: self.gradients.spilled_bytes,
            moved_chunks: self.moved_chunks,
            collective_seconds: costs.collective_seconds,
            processor_seconds: self.node_seconds(costs.processor_ns) + costs.norm_seconds,
            memory_seconds: self.node_seconds(costs.memory_ns),
            units,
            unit_bytes,
            headroom: self.swapping.stripe_headroom,
        }
    }
}

/// What a step costs beside the drives.
struct Costs {
    /// Nanoseconds of a node's processors for one parameter: update, and what I/O takes from it.
    processor_ns: f64,
    /// Nanoseconds of its memory for one parameter.
    memory_ns: f64,
    /// Seconds of a node for the norm of its gradients.
    norm_seconds: f64,
    /// Seconds of one collective over all ranks.
    collective_seconds: f64,
}

impl Costs {
    fn of(cut: &Cut<'_>) -> Self {
        let (cluster, bytes) = (cut.cluster, cut.bytes);
        let moved_per_param = UPDATE_BYTES + bytes.read + bytes.written;
        let memory_ns =
            cluster.memory_bytes_per_s.map_or(0.0, |speed| moved_per_param * 1e9 / speed);
        let [read_chunks, written_chunks] = cut.moved_chunks;
        let state_bytes =
            cut.mean_chunk_elems() * (read_chunks * bytes.read + written_chunks * bytes.written);
        let io_bytes = state_bytes + 2.0 * cut.gradients.spilled_bytes as f64;
        let io_ns = cluster.io_ns_per_byte * io_bytes / cut.params_per_rank as f64;
        // A collective goes up and down a binary tree of all ranks.
        let hops = 64 - (cluster.ranks() - 1).leading_zeros();
        Self {
            processor_ns: cluster.update_ns_per_param + io_ns,
            memory_ns,
            norm_seconds: cut.node_seconds(cluster.norm_ns_per_param),
            collective_seconds: 2.0 * f64::from(hops) * cluster.hop_seconds,
        }
    }
}

/// What gradients take of a rank's memory, and of its drives.
struct Gradients {
    memory_bytes: u64,
    spilled_bytes: u64,
}

impl Gradients {
    fn of(swapping: &Swapping, params_per_rank: u64, chunk_elems: u64, extent_bytes: u64) -> Self {
        if swapping.gradients == GradientPlace::Caller {
            return Self { memory_bytes: 0, spilled_bytes: 0 };
        }
        let chunks = params_per_rank.div_ceil(chunk_elems);
        let elems = |chunk: u64| chunk_elems.min(params_per_rank - chunk * chunk_elems);
        let bytes = (0..chunks).map(|chunk| elems(chunk) * swapping.gradient_bytes);
        let bytes: Vec<u64> = bytes.collect();
        let GradientRoom { resident_chunks, buffers } =
            GradientRoom::divide(swapping.gradients, &bytes, swapping.budget_bytes, extent_bytes);
        let (resident, spilled) = bytes.split_at(resident_chunks);
        Self {
            memory_bytes: resident.iter().sum::<u64>() + buffers * bytes[0],
            spilled_bytes: spilled.iter().sum(),
        }
    }
}

/// Bytes of an extent.
fn whole_sectors(elems: u64, bytes: &StateBytes) -> u64 {
    round_up((elems as f64 * bytes.space) as u64, 4096)
}

fn check(params: u64, cluster: &Cluster) -> Result<()> {
    let is_speed = |speed: f64| speed.is_finite() && speed > 0.0;
    let is_fast = |it: &Bandwidth| [it.read, it.write, it.mixed].into_iter().all(is_speed);
    for kind in &cluster.kinds {
        if kind.drives.is_empty() {
            return Err(Error::usage("a node needs a drive").with("nodes", &kind.name).hint(
                "name probed drives with --drives, a site with --site, or speeds with --drive-mbps",
            ));
        }
        if !kind.drives.iter().all(|drive| is_fast(&drive.bandwidth)) {
            return Err(Error::usage("a drive's speed must be above 0").with("nodes", &kind.name));
        }
        let is_weight = |weight: f64| weight.is_finite() && weight >= 0.0;
        let some = kind.drives.iter().any(|drive| drive.weight > 0.0);
        if !some || !kind.drives.iter().all(|drive| is_weight(drive.weight)) {
            return Err(Error::usage("weights of drives must not be negative, nor all 0"));
        }
    }
    if cluster.ranks() == 0 || cluster.kinds.iter().any(|kind| kind.nodes == 0) || params == 0 {
        return Err(Error::usage("nodes, ranks on each and parameters must be at least 1"));
    }
    Ok(())
}
