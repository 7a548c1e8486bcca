//! How fast the world, its nodes, drives and ranks moved their state in a benchmark, and how near
//! that is to what the drives can do.

use std::path::Path;

use serde::Serialize;

use super::latency::Latencies;
use crate::forecast::{Bandwidth, Binding};
use crate::measure::{NodeFacts, RankPlace, Repetition};
use optswap::internals::telemetry::{OverRanks, RankRecord, median};

/// What a line of the result is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// All ranks.
    #[default]
    World,
    /// The ranks of one node.
    Node,
    /// One drive of a node.
    Drive,
    /// One rank.
    Rank,
}

/// The throughput of the world, a node, a drive or a rank.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Throughput {
    /// What it is.
    pub scope: Scope,
    /// Its name: `world`, a host, `host:directory`, `rank 3`.
    pub name: String,
    /// Ranks that it has.
    pub ranks: usize,
    /// Parameters (elements) of those.
    pub params: u64,
    /// Bytes read in one step.
    pub read_bytes: f64,
    /// Bytes written in one step.
    pub written_bytes: f64,
    /// Seconds per step of every repetition: the slowest rank's of those that it has.
    pub seconds: Vec<f64>,
    /// The median of those.
    pub median_seconds: f64,
    /// Nanoseconds per parameter, from the median.
    pub ns_per_param: f64,
    /// Gigabytes (1e9) read per second, from the median.
    pub read_gb_per_s: f64,
    /// Gigabytes written.
    pub written_gb_per_s: f64,
    /// The same in gibibytes (2^30).
    pub read_gib_per_s: f64,
    /// The same in gibibytes.
    pub written_gib_per_s: f64,
    /// When its ranks were done: seconds per step until their own last writes, to this drive or to
    /// all, over its ranks, in every repetition. `min` is the first, `max` the last.
    pub done: Vec<OverRanks>,
    /// The same from every rank's median over the repetitions; none if nothing was written.
    pub done_seconds: Option<OverRanks>,
    /// The least time that its drives need for these bytes; none if their speed is not known.
    pub limit_seconds: Option<f64>,
    /// What sets that time.
    pub bound_by: Option<Binding>,
    /// How much of that was reached, in percent, from the median.
    pub limit_percent: Option<f64>,
    /// How long its operations took, over all repetitions.
    pub latency: Latencies,
}

impl Throughput {
    /// Gigabytes (1e9) read and written per second in a step of so many seconds.
    pub fn gb_per_s(&self, seconds: f64) -> [f64; 2] {
        [self.read_bytes, self.written_bytes].map(|bytes| per_second(bytes, seconds) / 1e9)
    }

    /// How much of the limit was reached, in percent, in a step of so many seconds.
    pub fn limit_percent_in(&self, seconds: f64) -> Option<f64> {
        self.limit_seconds.map(|limit| per_second(limit, seconds) * 100.0)
    }

    /// Nanoseconds per parameter in a step of so many seconds.
    pub fn ns_per_param_in(&self, seconds: f64) -> f64 {
        seconds * 1e9 / self.params.max(1) as f64
    }
}

/// Gibibytes of a gigabyte.
pub(super) const GIB_PER_GB: f64 = 1e9 / (1u64 << 30) as f64;

fn per_second(amount: f64, seconds: f64) -> f64 {
    if seconds > 0.0 { amount / seconds } else { 0.0 }
}

/// What the drives can do: as the user says, or as they were probed, or as their site expects.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// MB/s in each direction, drive by drive; the last counts for all that follow. Empty: as
    /// probed or expected.
    pub given_mbps: Vec<f64>,
}

impl Limits {
    fn of_drive(&self, node: &NodeFacts, index: usize) -> Option<Bandwidth> {
        match (self.given_mbps.get(index).or(self.given_mbps.last()), node.drives.get(index)) {
            (Some(mbps), _) => Some(Bandwidth::symmetric(mbps * 1e6)),
            (None, Some(drive)) => {
                let probed = drive.profile.as_ref().map(Bandwidth::of);
                probed.or_else(|| drive.expected_gb_per_s.map(Bandwidth::expected))
            }
            (None, None) => None,
        }
    }

    /// All drives of a node together, if every one is known.
    fn of_node(&self, node: &NodeFacts) -> Option<Bandwidth> {
        let drives: Option<Vec<_>> =
            (0..node.drives.len()).map(|index| self.of_drive(node, index)).collect();
        drives.filter(|drives| !drives.is_empty()).map(Bandwidth::sum)
    }
}

/// The throughput of the world, every node, every drive and every rank.
pub fn throughputs(
    nodes: &[NodeFacts],
    places: &[RankPlace],
    records: &[RankRecord],
    repetitions: &[Repetition],
    limits: &Limits,
) -> Vec<Throughput> {
    let gathered = Gathered { places, records, repetitions };
    let mut all = Vec::new();
    for node in nodes {
        let ranks = gathered.ranks_of(&node.host);
        let host = node.host.clone();
        all.push(gathered.over(Scope::Node, host, &ranks, None, limits.of_node(node)));
        for (index, drive) in node.drives.iter().enumerate() {
            let root = &drive.details.root;
            let name = format!("{}:{}", node.host, root.display());
            let limit = limits.of_drive(node, index);
            all.push(gathered.over(Scope::Drive, name, &ranks, Some(root), limit));
        }
    }
    let every: Vec<usize> = (0..records.len()).collect();
    let mut world = gathered.over(Scope::World, "world".to_owned(), &every, None, None);
    // The world waits for its slowest node.
    let of_nodes: Vec<&Throughput> = all.iter().filter(|it| it.scope == Scope::Node).collect();
    if of_nodes.iter().all(|node| node.limit_seconds.is_some())
        && let Some(slowest) = of_nodes.iter().max_by(|a, b| {
            let seconds = |node: &Throughput| node.limit_seconds.unwrap_or(0.0);
            seconds(a).total_cmp(&seconds(b))
        })
    {
        (world.limit_seconds, world.bound_by) = (slowest.limit_seconds, slowest.bound_by);
        world.limit_percent = world.limit_percent_in(world.median_seconds);
    }
    all.insert(0, world);
    for rank in every {
        all.push(gathered.over(Scope::Rank, format!("rank {rank}"), &[rank], None, None));
    }
    all
}

/// What all ranks have recorded.
struct Gathered<'a> {
    places: &'a [RankPlace],
    records: &'a [RankRecord],
    repetitions: &'a [Repetition],
}

impl Gathered<'_> {
    fn ranks_of(&self, host: &str) -> Vec<usize> {
        (0..self.records.len()).filter(|rank| self.records[*rank].host == host).collect()
    }

    /// Some ranks together, with all their drives or with one.
    fn over(
        &self,
        scope: Scope,
        name: String,
        ranks: &[usize],
        root: Option<&Path>,
        limit: Option<Bandwidth>,
    ) -> Throughput {
        let (records, repetitions) = (self.records, self.repetitions);
        let per_step = |repetition: &Repetition, rank: usize, seconds: f64| {
            seconds / repetition.rank_step_seconds[rank].len().max(1) as f64
        };
        let slowest = |it: &Repetition| {
            let seconds = ranks.iter().map(|rank| per_step(it, *rank, it.rank_seconds[*rank]));
            seconds.fold(0.0, f64::max)
        };
        let done = |it: &Repetition, rank: usize| {
            Some(per_step(it, rank, self.done_seconds(it, rank, root)?))
        };
        let seconds: Vec<f64> = repetitions.iter().map(slowest).collect();
        let all_done = |it: &Repetition| {
            over_ranks(ranks.iter().filter_map(|rank| Some((*rank, done(it, *rank)?))))
        };
        let medians = ranks.iter().filter_map(|rank| {
            let of: Vec<f64> = repetitions.iter().filter_map(|it| done(it, *rank)).collect();
            (!of.is_empty()).then(|| (*rank, median(&of)))
        });
        let moved = ranks.iter().map(|rank| moved_per_step(&records[*rank], root));
        let [read_bytes, written_bytes] =
            moved.fold([0.0; 2], |sum, [read, written]| [sum[0] + read, sum[1] + written]);
        let (limit_seconds, bound_by) =
            limit.map(|limit| limit.seconds(read_bytes, written_bytes)).unzip();
        let mut throughput = Throughput {
            scope,
            name,
            ranks: ranks.len(),
            params: ranks.iter().map(|rank| records[*rank].elems).sum(),
            read_bytes,
            written_bytes,
            median_seconds: median(&seconds),
            done: repetitions.iter().filter_map(all_done).collect(),
            done_seconds: over_ranks(medians),
            seconds,
            limit_seconds,
            bound_by,
            latency: Latencies::of(ranks.iter().map(|rank| &records[*rank]), root),
            ..Throughput::default()
        };
        let seconds = throughput.median_seconds;
        let [read, written] = throughput.gb_per_s(seconds);
        (throughput.read_gb_per_s, throughput.written_gb_per_s) = (read, written);
        throughput.read_gib_per_s = read * GIB_PER_GB;
        throughput.written_gib_per_s = written * GIB_PER_GB;
        throughput.ns_per_param = throughput.ns_per_param_in(seconds);
        throughput.limit_percent = throughput.limit_percent_in(seconds);
        throughput
    }

    /// Seconds of a repetition until a rank's last write, to any of its drives or to one; none if
    /// it does not have that, or wrote nothing to it.
    fn done_seconds(
        &self,
        repetition: &Repetition,
        rank: usize,
        root: Option<&Path>,
    ) -> Option<f64> {
        let Some(root) = root else { return Some(repetition.rank_done_seconds[rank]) };
        let drive = self.places[rank].drives.iter().position(|it| it == root)?;
        let of_rank = repetition.rank_drive_done_seconds.get(rank)?;
        of_rank.get(drive).copied().filter(|seconds| *seconds > 0.0)
    }
}

/// Some ranks summed up; `max_rank` is the number in the world.
fn over_ranks(values: impl Iterator<Item = (usize, f64)>) -> Option<OverRanks> {
    let (ranks, values): (Vec<usize>, Vec<f64>) = values.unzip();
    let over = OverRanks::of(&values)?;
    Some(OverRanks { max_rank: ranks[over.max_rank], ..over })
}

/// Bytes that one rank read and wrote in one step, on all its drives or on one.
fn moved_per_step(record: &RankRecord, root: Option<&Path>) -> [f64; 2] {
    let is_meant = |path: &Path| root.is_none_or(|root| path.starts_with(root));
    let files = record.drives.iter().filter(|drive| is_meant(&drive.path));
    let steps = record.steps.max(1) as f64;
    files.fold([0.0; 2], |[read, written], drive| {
        let totals = &drive.totals;
        [read + totals.read_bytes as f64 / steps, written + totals.written_bytes as f64 / steps]
    })
}
