//! What the nodes of a cluster need for their parts of a model, and how long their steps take.

use serde::Serialize;

use super::rank::Rank;
use super::shape::{Shape, shapes};
use super::{Bandwidth, Cluster, DriveSpec, NodeKind, StateBytes, Swapping};
use optswap::internals::config::GradientPlace;
use optswap::internals::error::Result;

/// Parameters of two bytes each, in the training program's memory; and gradients of as many.
const PARAM_BYTES: u64 = 2;
const GRADIENT_BYTES: u64 = 2;

/// What takes the most of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BoundBy {
    /// Reading from the drives.
    Read,
    /// Writing to them.
    Write,
    /// Both at the same time.
    Mixed,
    /// Norm, checksums, update, and what I/O takes from them.
    Processor,
    /// The bandwidth of memory.
    Memory,
    /// Waiting in collectives.
    Collectives,
}

/// One drive of a node.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct DriveForecast {
    /// Its part of the node's state.
    pub share: f64,
    /// Space that it needs: slots, whole stripe units, headroom.
    pub space_bytes: u64,
    /// Space that it has, if that is known.
    pub free_bytes: Option<u64>,
    /// Read in one step.
    pub read_bytes: u64,
    /// Written in one step; on average, if not every step is a commit.
    pub written_bytes: u64,
    /// Days until it has taken as many writes as it is made for, at the pace of this job.
    pub endurance_days: Option<f64>,
}

/// What a node of one kind needs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NodeForecast {
    /// Its drives.
    pub drives: Vec<DriveForecast>,
    /// Seconds of a step, if all nodes were of this kind.
    pub step_seconds: f64,
    /// What takes the most of it.
    pub bound_by: BoundBy,
    /// Seconds that each would take alone.
    pub parts: Vec<(BoundBy, f64)>,
    /// The largest model whose state fits the drives.
    pub largest_by_space: Option<u64>,
    /// The largest model whose gradients and parameters fit the memory beside the buffers.
    pub largest_by_memory: Option<u64>,
}

/// What a job needs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Forecast {
    /// Ranks of the job.
    pub ranks: u64,
    /// Parameters of one rank.
    pub params_per_rank: u64,
    /// Parameters of one node.
    pub params_per_node: u64,
    /// I/O buffers of each rank.
    pub buffers_per_rank: u64,
    /// Of those, buffers that keep a chunk from one step to the next.
    pub kept_per_rank: u64,
    /// I/O buffers of all ranks of a node.
    pub buffer_bytes: u64,
    /// Gradients and parameters of two bytes each of a node, if the training program keeps them in
    /// memory. Without gradients, where optswap keeps them.
    pub caller_bytes: u64,
    /// Gradients that the ranks of a node keep in memory of their budgets, buffers included.
    pub gradient_memory_bytes: u64,
    /// What the ranks of a node keep of their chunks and stripe units, beside their budgets.
    pub table_bytes: u64,
    /// Gradients that a node's ranks write to their drives before a step, and read in it.
    pub spilled_gradient_bytes: u64,
    /// What writing them takes. It is a part of `step_seconds` as far as nothing is computed
    /// meanwhile.
    pub spill_seconds: f64,
    /// What each kind of node needs.
    pub kinds: Vec<NodeForecast>,
    /// The kind that all others wait for.
    pub slowest: usize,
    /// Seconds of one step: the slowest kind's.
    pub step_seconds: f64,
    /// What takes the most of it.
    pub bound_by: BoundBy,
    /// Nanoseconds per parameter of the model.
    pub ns_per_param: f64,
    /// The largest model whose state fits the drives of every node.
    pub largest_by_space: Option<u64>,
    /// The largest model whose gradients and parameters fit the memory of every node.
    pub largest_by_memory: Option<u64>,
}

/// What each node needs for its part of a model of so many parameters.
///
/// # Errors
/// Usage, if the cluster has a node without drives or no rank, or the budget is too small for a
/// chunk.
pub fn predict(
    params: u64,
    cluster: &Cluster,
    bytes: &StateBytes,
    swapping: &Swapping,
) -> Result<Forecast> {
    let (shape, ranks) = shapes(params, cluster, bytes, swapping)?;
    let seconds: Vec<f64> = ranks.iter().map(Rank::step_seconds).collect();
    let mut slowest = 0;
    for (kind, own_seconds) in seconds.iter().enumerate() {
        // Of kinds that are as slow as each other, the first.
        if *own_seconds > seconds[slowest] {
            slowest = kind;
        }
    }
    let step_seconds = seconds[slowest];
    let kinds = cluster.kinds.iter().zip(&ranks).zip(&seconds);
    let kinds: Vec<NodeForecast> = kinds
        .map(|((kind, rank), own)| {
            let caller_bytes = caller_bytes(swapping);
            let node = NodeQuestion { cluster, shape: &shape, kind, rank, caller_bytes };
            node.forecast(*own, step_seconds + cluster.compute_seconds)
        })
        .collect();
    let least = |largest: fn(&NodeForecast) -> Option<u64>| -> Option<u64> {
        let all: Option<Vec<u64>> = kinds.iter().map(largest).collect();
        all.and_then(|all| all.into_iter().min())
    };
    Ok(Forecast {
        ranks: cluster.ranks(),
        params_per_rank: shape.params_per_rank,
        params_per_node: shape.params_per_rank * cluster.ranks_per_node,
        buffers_per_rank: shape.buffers,
        kept_per_rank: shape.kept,
        buffer_bytes: shape.buffers * shape.extent_bytes * cluster.ranks_per_node,
        caller_bytes: caller_bytes(swapping) * shape.params_per_rank * cluster.ranks_per_node,
        gradient_memory_bytes: shape.gradient_memory_bytes * cluster.ranks_per_node,
        table_bytes: shape.table_bytes * cluster.ranks_per_node,
        spilled_gradient_bytes: shape.spilled_bytes * cluster.ranks_per_node,
        spill_seconds: shape.spilled_bytes as f64 / ranks[slowest].bandwidth.write,
        slowest,
        step_seconds,
        bound_by: kinds[slowest].bound_by,
        ns_per_param: step_seconds * 1e9 / params as f64,
        largest_by_space: least(|kind| kind.largest_by_space),
        largest_by_memory: least(|kind| kind.largest_by_memory),
        kinds,
    })
}

/// Bytes of one parameter in the training program's memory.
fn caller_bytes(swapping: &Swapping) -> u64 {
    match swapping.gradients {
        GradientPlace::Caller => PARAM_BYTES + GRADIENT_BYTES,
        _ => PARAM_BYTES,
    }
}

/// One kind of node.
struct NodeQuestion<'a> {
    cluster: &'a Cluster,
    shape: &'a Shape,
    kind: &'a NodeKind,
    rank: &'a Rank,
    caller_bytes: u64,
}

impl NodeQuestion<'_> {
    /// `cycle_seconds` go by from one step to the next.
    fn forecast(&self, step_seconds: f64, cycle_seconds: f64) -> NodeForecast {
        let parts = self.parts();
        let more =
            |most: (BoundBy, f64), it: &(BoundBy, f64)| if it.1 > most.1 { *it } else { most };
        let bound_by = parts.iter().fold(parts[0], more).0;
        let shares = self.kind.shares();
        let drives = self.kind.drives.iter().zip(&shares);
        let drives: Vec<DriveForecast> =
            drives.map(|(drive, share)| self.drive(drive, *share, cycle_seconds)).collect();
        let (shape, ranks) = (self.shape, self.cluster.ranks());
        let ranks_per_node = self.cluster.ranks_per_node;
        let space_per_param = |drive: &DriveForecast| {
            drive.space_bytes as f64 / (shape.params_per_rank * ranks_per_node) as f64
        };
        let fits = |drive: &DriveForecast| -> Option<f64> {
            Some(drive.free_bytes? as f64 / space_per_param(drive) / ranks_per_node as f64)
        };
        let by_drive: Option<Vec<f64>> = drives.iter().map(fits).collect();
        let least = |all: Vec<f64>| all.into_iter().fold(f64::INFINITY, f64::min);
        let buffers = shape.buffers * shape.extent_bytes + shape.gradient_memory_bytes;
        let taken = (buffers + shape.table_bytes) * ranks_per_node;
        let room = self.kind.memory_bytes.map(|memory| memory.saturating_sub(taken));
        NodeForecast {
            drives,
            step_seconds,
            bound_by,
            parts,
            largest_by_space: by_drive.map(|all| (least(all) * ranks as f64) as u64),
            largest_by_memory: room.map(|room| room / self.caller_bytes * self.cluster.nodes()),
        }
    }

    /// Bytes that a node reads and writes in a step, on average, spilled gradients included.
    fn moved(&self) -> [f64; 2] {
        let node = self.cluster.ranks_per_node as f64;
        let [read_chunks, written_chunks] = self.shape.moved_chunks;
        let spilled = self.shape.spilled_bytes as f64;
        let read = self.rank.read_bytes - self.rank.spilled_bytes;
        let written = written_chunks * self.rank.written_bytes;
        [node * (read_chunks * read + spilled), node * (written + spilled)]
    }

    fn parts(&self) -> Vec<(BoundBy, f64)> {
        let (rank, shape) = (self.rank, self.shape);
        let [read, written] = self.moved();
        let node = self.cluster.ranks_per_node as f64;
        let Bandwidth { read: read_speed, write: write_speed, mixed } = rank.bandwidth;
        let processor = shape.processor_seconds;
        vec![
            (BoundBy::Read, read / (read_speed * node)),
            (BoundBy::Write, written / (write_speed * node)),
            (BoundBy::Mixed, (read + written) / (mixed * node)),
            (BoundBy::Processor, processor),
            (BoundBy::Memory, shape.memory_seconds),
            (BoundBy::Collectives, 2.0 * shape.collective_seconds),
        ]
    }

    fn drive(&self, drive: &DriveSpec, share: f64, cycle_seconds: f64) -> DriveForecast {
        let [read, written] = self.moved();
        let written_bytes = (written * share).round();
        let steps = drive.endurance_bytes.map(|life| life / written_bytes);
        DriveForecast {
            share,
            space_bytes: self.shape.file_bytes(share) * self.cluster.ranks_per_node,
            free_bytes: drive.free_bytes,
            read_bytes: (read * share).round() as u64,
            written_bytes: written_bytes as u64,
            endurance_days: steps.map(|steps| steps * cycle_seconds / 86_400.0),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::forecast::bytes::tests::adamw;
    use optswap::internals::config::Config;

    pub fn kind(nodes: u64, drives: usize) -> NodeKind {
        let drive = DriveSpec {
            path: None,
            bandwidth: Bandwidth::symmetric(3e8),
            weight: 1.0,
            free_bytes: Some(4 << 30),
            spread: 0.0,
            endurance_bytes: Some(1e15),
        };
        NodeKind {
            name: "node".to_owned(),
            nodes,
            drives: vec![drive; drives],
            memory_bytes: Some(8 << 30),
        }
    }

    pub fn cluster(nodes: u64, drives: usize) -> Cluster {
        Cluster {
            kinds: vec![kind(nodes, drives)],
            ranks_per_node: 2,
            memory_bytes_per_s: None,
            update_ns_per_param: 0.1,
            norm_ns_per_param: 0.0,
            io_ns_per_byte: 0.0,
            drive_to_drive: 0.0,
            hop_seconds: 0.0,
            noise_seconds: 0.0,
            compute_seconds: 0.0,
        }
    }

    pub fn swapping() -> Swapping {
        let mut config = Config::default();
        config.drives.stripe_headroom = 0.0;
        Swapping::of(&config)
    }

    #[test]
    fn bytes_over_bandwidth() {
        let fp32 = adamw("fp32", false);
        let cluster = Cluster { compute_seconds: 1.0, ..cluster(1, 1) };
        let forecast = predict(64 << 20, &cluster, &fp32, &swapping()).unwrap();
        assert_eq!(forecast.bound_by, BoundBy::Read);
        assert_eq!((forecast.ranks, forecast.params_per_rank), (2, 32 << 20));
        assert_eq!(forecast.buffers_per_rank, 21);
        let node = &forecast.kinds[0];
        let drive = &node.drives[0];
        assert_eq!((drive.space_bytes, drive.read_bytes), (12 << 26, 12 << 26));
        let days = 1e15 / f64::from(12 << 26) * (forecast.step_seconds + 1.0) / 86_400.0;
        assert!((drive.endurance_days.unwrap() - days).abs() < 1e-6);
        assert_eq!(forecast.largest_by_space, Some((4u64 << 30) / 12));
        let step = |drives| {
            let cluster = super::tests::cluster(1, drives);
            predict(64 << 20, &cluster, &fp32, &swapping()).unwrap()
        };
        let (one, four) = (step(1), step(4));
        let limit = 12.0 * f64::from(64 << 20) / 3e8;
        assert!((one.step_seconds / limit - 1.0).abs() < 1e-3, "{one:?}");
        assert!((four.step_seconds * 4.0 / limit - 1.0).abs() < 1e-3, "{four:?}");
        assert_eq!(four.largest_by_space, Some((16u64 << 30) / 12));
    }

    #[test]
    fn what_binds_is_named() {
        let bytes = adamw("int8+remainder16", true);
        let durable = Swapping { commit_every: Some(1), ..swapping() };
        let mut cluster = cluster(1, 1);
        let set = |cluster: &mut Cluster, read: f64, write: f64, mixed: f64| {
            cluster.kinds[0].drives[0].bandwidth = Bandwidth { read, write, mixed };
        };
        let bound_by = |it: &Cluster| predict(1 << 30, it, &bytes, &durable).unwrap().bound_by;
        set(&mut cluster, 9e12, 9e12, 18e12);
        assert_eq!(bound_by(&cluster), BoundBy::Processor);
        cluster.memory_bytes_per_s = Some(1e11);
        assert_eq!(bound_by(&cluster), BoundBy::Memory);
        cluster.hop_seconds = 10.0;
        assert_eq!(bound_by(&cluster), BoundBy::Collectives);
        set(&mut cluster, 9e6, 9e6, 10e6);
        assert_eq!(bound_by(&cluster), BoundBy::Mixed);
        set(&mut cluster, 9e6, 9e6, 18e6);
        assert_eq!(bound_by(&cluster), BoundBy::Write, "a durable job writes more than it reads");
    }

    #[test]
    fn the_slowest_kind_of_node_binds() {
        let fp32 = adamw("fp32", false);
        let mut mixed = cluster(3, 4);
        let mut small = kind(1, 2);
        small.drives.iter_mut().for_each(|drive| drive.free_bytes = Some(1 << 30));
        mixed.kinds.push(small);
        let forecast = predict(64 << 20, &mixed, &fp32, &swapping()).unwrap();
        assert_eq!((forecast.ranks, forecast.slowest), (8, 1));
        let [four, two] = [0, 1].map(|kind: usize| forecast.kinds[kind].step_seconds);
        assert!((two / four - 2.0).abs() < 0.02, "{two} {four}");
        assert_eq!(forecast.step_seconds, two);
        // Each of the four nodes has as large a part as the small one.
        assert_eq!(forecast.largest_by_space, Some(4 * (2u64 << 30) / 12));
    }

    #[test]
    fn kept_chunks_and_headroom() {
        let fp32 = adamw("fp32", false);
        let kept = Swapping { cache: "auto".parse().unwrap(), ..swapping() };
        let forecast = predict(64 << 20, &cluster(1, 1), &fp32, &kept).unwrap();
        assert_eq!((forecast.buffers_per_rank, forecast.kept_per_rank), (21, 13));
        // 19 of 32 chunks move.
        let drive = forecast.kinds[0].drives[0];
        assert_eq!(drive.read_bytes, (12 << 26) / 32 * 19);
        assert_eq!((drive.written_bytes, drive.space_bytes), (drive.read_bytes, 12 << 26));
        let commits = Swapping { commit_every: Some(4), ..kept };
        let forecast = predict(64 << 20, &cluster(1, 1), &fp32, &commits).unwrap();
        let drive = forecast.kinds[0].drives[0];
        assert_eq!(drive.written_bytes, (12 << 26) / 32 * 19 + (12 << 26) / 32 * 13 / 4);
        let roomy = Swapping { stripe_headroom: 0.25, ..swapping() };
        let forecast = predict(64 << 20, &cluster(1, 1), &fp32, &roomy).unwrap();
        assert_eq!(forecast.kinds[0].drives[0].space_bytes, 15 << 26);
    }

    #[test]
    fn spilled_gradients_take_space_bytes_and_time() {
        let fp32 = adamw("fp32", false);
        let of = |place: &str, compute_seconds: f64| {
            let mut config = Config::default();
            config.drives.stripe_headroom = 0.0;
            config.gradients.place = serde_json::from_value(place.into()).unwrap();
            let cluster = Cluster { compute_seconds, ..cluster(1, 1) };
            predict(64 << 20, &cluster, &fp32, &Swapping::of(&config)).unwrap()
        };
        let (plain, spilled) = (of("caller", 0.0), of("drives", 0.0));
        assert_eq!(spilled.spilled_gradient_bytes, 4 << 26);
        let drive = spilled.kinds[0].drives[0];
        assert_eq!((drive.space_bytes, drive.read_bytes), (16 << 26, 16 << 26));
        assert_eq!(drive.written_bytes, 16 << 26);
        // With nothing to hide behind, they are written first, while state is read ahead; then they
        // are read with it.
        let first = f64::from(4 << 26) / 3e8;
        assert!((spilled.spill_seconds / first - 1.0).abs() < 1e-9);
        let ratio = spilled.step_seconds / plain.step_seconds;
        assert!((16.0 / 12.0..20.0 / 12.0).contains(&ratio), "{ratio}");
        let hidden = of("drives", 10.0).step_seconds;
        assert!(hidden < spilled.step_seconds - first, "{hidden}");
        assert_eq!(spilled.caller_bytes * 2, plain.caller_bytes);
        // In memory they take no bytes of drives, but buffers of the budget. 128 MiB a rank.
        let kept = of("auto", 0.0);
        assert!(kept.spilled_gradient_bytes < 4 << 26 && kept.gradient_memory_bytes > 0);
        assert!(kept.buffers_per_rank < plain.buffers_per_rank);
    }

    #[test]
    fn impossible_clusters_are_refused() {
        let bytes = adamw("fp32", false);
        let refused = |cluster: &Cluster, swapping: &Swapping| {
            predict(1 << 30, cluster, &bytes, swapping).unwrap_err().to_string()
        };
        assert!(refused(&cluster(1, 0), &swapping()).contains("--drive-mbps"));
        assert!(refused(&cluster(0, 1), &swapping()).contains("at least 1"));
        let tiny = Swapping { budget_bytes: 1 << 20, ..swapping() };
        assert!(refused(&cluster(1, 1), &tiny).contains("minimum 24.00 MiB"));
    }
}
