//! How fast the world, its nodes, drives and ranks moved their state in a benchmark, and how near
//! that is to what the drives can do.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::latency::Latencies;
use super::stats::median;
use crate::forecast::{Bandwidth, Binding};
use crate::measure::{NodeFacts, Repetition};
use crate::step::RankRecord;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// All ranks.
    World,
    /// The ranks of one node.
    Node,
    /// One drive of a node.
    Drive,
    /// One rank.
    Rank,
}

/// One of them, per step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Throughput {
    /// What it is.
    pub scope: Scope,
    /// Its name: `world`, a host, `host:directory`, `rank 3`.
    pub name: String,
    /// Bytes read in one step.
    pub read_bytes: f64,
    /// Bytes written in one step.
    pub written_bytes: f64,
    /// Seconds per step of every repetition: the slowest rank's of those that it has.
    pub seconds: Vec<f64>,
    /// The least time that its drives need for these bytes; none if their speed is not known.
    pub limit_seconds: Option<f64>,
    /// What sets that time.
    pub bound_by: Option<Binding>,
    /// How long its operations took, over all repetitions.
    #[serde(default)]
    pub latency: Latencies,
}

impl Throughput {
    /// Seconds per step: the median of the repetitions.
    pub fn median_seconds(&self) -> f64 {
        median(&self.seconds)
    }

    /// Gigabytes (1e9) read and written per second.
    pub fn gb_per_s(&self) -> [f64; 2] {
        let seconds = self.median_seconds();
        [self.read_bytes, self.written_bytes].map(|bytes| per_second(bytes, seconds) / 1e9)
    }

    /// How much of the limit was reached, in percent, in a step of so many seconds.
    pub fn limit_percent(&self, seconds: f64) -> Option<f64> {
        self.limit_seconds.map(|limit| per_second(limit, seconds) * 100.0)
    }
}

fn per_second(amount: f64, seconds: f64) -> f64 {
    if seconds > 0.0 { amount / seconds } else { 0.0 }
}

/// What the drives can do: told by the user, or as they were probed.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// MB/s in each direction, drive by drive; the last counts for all that follow. Empty: as
    /// probed.
    pub told_mbps: Vec<f64>,
}

impl Limits {
    fn of_drive(&self, node: &NodeFacts, index: usize) -> Option<Bandwidth> {
        match (self.told_mbps.get(index).or(self.told_mbps.last()), node.drives.get(index)) {
            (Some(mbps), _) => Some(Bandwidth::symmetric(mbps * 1e6)),
            (None, Some(drive)) => drive.profile.as_ref().map(Bandwidth::of),
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

/// Everything, from the world down to ranks.
pub fn throughputs(
    nodes: &[NodeFacts],
    records: &[RankRecord],
    repetitions: &[Repetition],
    limits: &Limits,
) -> Vec<Throughput> {
    let mut all = Vec::new();
    for node in nodes {
        let ranks = ranks_of(records, &node.host);
        let limit = limits.of_node(node);
        all.push(over_ranks(Scope::Node, node.host.clone(), &ranks, records, repetitions, limit));
        for (index, drive) in node.drives.iter().enumerate() {
            let root = &drive.details.root;
            let name = format!("{}:{}", node.host, root.display());
            let mut of_drive = over_ranks(
                Scope::Drive,
                name,
                &ranks,
                records,
                repetitions,
                limits.of_drive(node, index),
            );
            let moved = ranks.iter().map(|rank| moved_on(&records[*rank], root));
            let [read, written] = moved.fold([0.0; 2], |sum, [r, w]| [sum[0] + r, sum[1] + w]);
            of_drive.set_bytes(read, written, limits.of_drive(node, index));
            of_drive.latency = latencies(&ranks, records, Some(root));
            all.push(of_drive);
        }
    }
    let every: Vec<usize> = (0..records.len()).collect();
    let mut world =
        over_ranks(Scope::World, "world".to_owned(), &every, records, repetitions, None);
    // The world waits for its slowest node.
    let of_nodes: Vec<&Throughput> = all.iter().filter(|it| it.scope == Scope::Node).collect();
    if of_nodes.iter().all(|node| node.limit_seconds.is_some())
        && let Some(slowest) = of_nodes.iter().max_by(|a, b| {
            let seconds = |node: &Throughput| node.limit_seconds.unwrap_or(0.0);
            seconds(a).total_cmp(&seconds(b))
        })
    {
        (world.limit_seconds, world.bound_by) = (slowest.limit_seconds, slowest.bound_by);
    }
    all.insert(0, world);
    for rank in every {
        let name = format!("rank {rank}");
        all.push(over_ranks(Scope::Rank, name, &[rank], records, repetitions, None));
    }
    all
}

fn ranks_of(records: &[RankRecord], host: &str) -> Vec<usize> {
    (0..records.len()).filter(|rank| records[*rank].host == host).collect()
}

fn over_ranks(
    scope: Scope,
    name: String,
    ranks: &[usize],
    records: &[RankRecord],
    repetitions: &[Repetition],
    limit: Option<Bandwidth>,
) -> Throughput {
    let seconds = |repetition: &Repetition| {
        let of_rank = |rank: &usize| {
            let steps = repetition.rank_step_seconds[*rank].len().max(1);
            repetition.rank_seconds[*rank] / steps as f64
        };
        ranks.iter().map(of_rank).fold(0.0, f64::max)
    };
    let per_step = |bytes: fn(&RankRecord) -> u64| -> f64 {
        let of_rank =
            |rank: &usize| bytes(&records[*rank]) as f64 / records[*rank].steps.max(1) as f64;
        ranks.iter().map(of_rank).sum()
    };
    let mut throughput = Throughput {
        scope,
        name,
        read_bytes: 0.0,
        written_bytes: 0.0,
        seconds: repetitions.iter().map(seconds).collect(),
        limit_seconds: None,
        bound_by: None,
        latency: latencies(ranks, records, None),
    };
    let (read, written) = (per_step(RankRecord::read_bytes), per_step(RankRecord::written_bytes));
    throughput.set_bytes(read, written, limit);
    throughput
}

fn latencies(ranks: &[usize], records: &[RankRecord], root: Option<&Path>) -> Latencies {
    Latencies::of(ranks.iter().map(|rank| &records[*rank]), root)
}

impl Throughput {
    fn set_bytes(&mut self, read: f64, written: f64, limit: Option<Bandwidth>) {
        (self.read_bytes, self.written_bytes) = (read, written);
        let least = limit.map(|limit| limit.seconds(read, written));
        (self.limit_seconds, self.bound_by) = least.unzip();
    }
}

/// Bytes that one rank read from and wrote to a drive in one step.
fn moved_on(record: &RankRecord, root: &Path) -> [f64; 2] {
    let files = record.drives.iter().filter(|drive| drive.path.starts_with(root));
    let steps = record.steps.max(1) as f64;
    files.fold([0.0; 2], |[read, written], drive| {
        let totals = &drive.totals;
        [read + totals.read_bytes as f64 / steps, written + totals.written_bytes as f64 / steps]
    })
}
