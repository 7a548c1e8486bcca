//! Steps of many ranks. The drives of every node and the delay of every rank vary by chance, and a
//! step of the world takes as long as its slowest rank. The same seed gives the same result.

use serde::Serialize;

use super::random::Random;
use super::response::Response;
use super::shape::shapes;
use super::{Cluster, DriveSpec, NodeKind, StateBytes, Swapping};
use optswap::internals::error::Result;

/// The spread of a drive is measured over intervals of so many seconds.
const SPREAD_SECONDS: f64 = 0.2;

/// Values at some percents of a distribution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// The mean.
    pub mean: f64,
    /// Half are below.
    pub p50: f64,
    /// Nine in ten are below.
    pub p90: f64,
    /// 99 of 100 are below.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl Percentiles {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let index = (share * values.len() as f64).ceil() as usize;
            values.get(index.saturating_sub(1)).copied().unwrap_or(0.0)
        };
        let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
        Self { mean, p50: at(0.5), p90: at(0.9), p99: at(0.99), max: at(1.0) }
    }
}

/// The result of a simulation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Simulation {
    /// Ranks.
    pub ranks: u64,
    /// Steps.
    pub steps: u64,
    /// The seed.
    pub seed: u64,
    /// Seconds of a step of the world.
    pub step_seconds: Percentiles,
    /// Seconds until a rank's own last completion, over all ranks and steps.
    pub own_seconds: Percentiles,
    /// The part of a step that a rank waits for the slowest one, over all ranks and steps.
    pub waiting_share: Percentiles,
    /// The time of a step in which nothing varies, divided by that of the mean step.
    pub efficiency: f64,
}

/// Steps of all ranks of a cluster.
///
/// # Errors
/// Usage, if the cluster has a node without drives or no rank, or the budget is too small for a
/// chunk.
pub fn simulate(
    params: u64,
    cluster: &Cluster,
    bytes: &StateBytes,
    swapping: &Swapping,
    steps: u64,
    seed: u64,
) -> Result<Simulation> {
    let (_, ranks) = shapes(params, cluster, bytes, swapping)?;
    // The latest rank is later than this in one step of a thousand.
    let delay_max = cluster.noise_seconds * ((cluster.ranks() as f64).ln() + 7.0);
    let kinds: Vec<Kind> = cluster
        .kinds
        .iter()
        .zip(&ranks)
        .map(|(kind, rank)| Kind::new(kind, Response::of(rank, delay_max)))
        .collect();
    let steady = |kind: &Kind| kind.response.seconds(1.0, 0.0);
    let steady_seconds = kinds.iter().map(steady).fold(0.0, f64::max);
    let mut random = Random::new(seed);
    let mut nodes: Vec<(&Kind, Vec<f64>)> = Vec::new();
    for kind in &kinds {
        for _ in 0..kind.nodes {
            nodes.push((kind, kind.drives_of_node(cluster.drive_to_drive, &mut random)));
        }
    }
    let slices = (steady_seconds / SPREAD_SECONDS).max(1.0);
    let (mut world_seconds, mut rank_seconds, mut waiting_shares) =
        (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..steps {
        // The all-reduce of the norm ends when its last rank has come.
        let mut latest = 0.0f64;
        for _ in 0..cluster.ranks() {
            latest = latest.max(random.exponential(cluster.noise_seconds));
        }
        let mut own = Vec::with_capacity(cluster.ranks() as usize);
        for (kind, drives) in &nodes {
            let speed = kind.speed_in_this_step(drives, slices, &mut random);
            let ends = kind.response.seconds(speed, latest);
            for _ in 0..cluster.ranks_per_node {
                own.push(ends + random.exponential(cluster.noise_seconds));
            }
        }
        let world = own.iter().copied().fold(0.0, f64::max);
        waiting_shares.extend(own.iter().map(|own| (world - own) / world.max(1e-12)));
        rank_seconds.append(&mut own);
        world_seconds.push(world);
    }
    let step_seconds = Percentiles::of(world_seconds);
    Ok(Simulation {
        ranks: cluster.ranks(),
        steps,
        seed,
        efficiency: steady_seconds / step_seconds.mean.max(1e-12),
        step_seconds,
        own_seconds: Percentiles::of(rank_seconds),
        waiting_share: Percentiles::of(waiting_shares),
    })
}

/// Nodes that differ by chance alone.
struct Kind {
    nodes: u64,
    /// How much faster each drive is than its share of the state asks of it, the slowest one at 1;
    /// and its spread. Drives without a share do not count.
    drives: Vec<(f64, f64)>,
    response: Response,
}

impl Kind {
    fn new(kind: &NodeKind, response: Response) -> Self {
        let used = kind.drives.iter().filter(|drive| drive.weight > 0.0);
        let pace = |drive: &DriveSpec| drive.bandwidth.mixed / drive.weight;
        let slowest = used.clone().map(pace).fold(f64::INFINITY, f64::min);
        let drives = used.map(|drive| (pace(drive) / slowest, drive.spread)).collect();
        Self { nodes: kind.nodes, drives, response }
    }

    /// The speeds of the drives of one node, which are of one model but not equal.
    fn drives_of_node(&self, drive_to_drive: f64, random: &mut Random) -> Vec<f64> {
        self.drives.iter().map(|(speed, _)| speed * random.speed(drive_to_drive)).collect()
    }

    /// How fast a node's stripe is. Over a whole step, what varies from moment to moment averages
    /// out.
    fn speed_in_this_step(&self, drives: &[f64], slices: f64, random: &mut Random) -> f64 {
        let drives = drives.iter().zip(&self.drives);
        let speeds =
            drives.map(|(speed, (_, spread))| speed * random.speed(spread / slices.sqrt()));
        speeds.fold(f64::INFINITY, f64::min)
    }
}

#[cfg(test)]
mod tests {
    use super::super::bytes::tests::adamw;
    use super::super::predict::tests::{cluster, swapping};
    use super::*;

    fn run(cluster: &Cluster, seed: u64) -> Simulation {
        let bytes = adamw("fp32", false);
        let params = cluster.ranks() * (16 << 20);
        simulate(params, cluster, &bytes, &swapping(), 20, seed).unwrap()
    }

    #[test]
    fn nothing_varies_and_nobody_waits() {
        let steady = run(&cluster(4, 2), 1);
        assert!((steady.efficiency - 1.0).abs() < 1e-9);
        assert_eq!(steady.waiting_share, Percentiles::default());
    }

    #[test]
    fn more_ranks_wait_longer_for_the_slowest() {
        let varying = |nodes| {
            let noise_seconds = 1e-4;
            let mut cluster = Cluster { drive_to_drive: 0.03, noise_seconds, ..cluster(nodes, 2) };
            cluster.kinds[0].drives.iter_mut().for_each(|drive| drive.spread = 0.1);
            cluster
        };
        let (few, many) = (run(&varying(2), 3), run(&varying(500), 3));
        assert_eq!(many.ranks, 1000);
        assert_eq!(many, run(&varying(500), 3), "the seed does not decide");
        assert_ne!(many, run(&varying(500), 4));
        assert!(many.waiting_share.mean > few.waiting_share.mean + 0.01);
        assert!(many.efficiency < few.efficiency);
        let Percentiles { p50, p90, p99, max, .. } = many.waiting_share;
        assert!(0.0 < p50 && p50 <= p90 && p90 <= p99 && p99 <= max && max < 1.0);
    }

    #[test]
    fn drives_that_are_slow_for_their_shares_set_the_pace() {
        let mut unequal = cluster(1, 2);
        unequal.kinds[0].drives[0].bandwidth = super::super::Bandwidth::symmetric(1.5e8);
        let (equal, unequal) = (run(&cluster(1, 2), 0), run(&unequal, 0));
        let ratio = unequal.step_seconds.mean / equal.step_seconds.mean;
        assert!((ratio - 2.0).abs() < 0.01, "{ratio}");
    }

    #[test]
    fn percentiles_of_few_values() {
        let found = Percentiles::of(vec![4.0, 1.0, 3.0, 2.0]);
        assert_eq!((found.p50, found.p90, found.max, found.mean), (2.0, 4.0, 4.0, 2.5));
        assert_eq!(Percentiles::of(Vec::new()), Percentiles::default());
    }
}
