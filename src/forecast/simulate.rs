//! Many ranks: every node's drives and every rank's way into a collective vary, and a step of the
//! world takes as long as its slowest rank. Seeded: the same question has the same answer.

use serde::Serialize;

use super::node::NodeStep;
use super::predict::{Shape, striped};
use super::random::Random;
use super::{Bandwidth, Site, StateBytes, Swapping};
use crate::error::Result;

/// A drive's spread is that of its speed over so many seconds.
const SPREAD_SECONDS: f64 = 0.2;
/// More chunks of a node than this change a step by less than 1 in 500.
const CHUNKS_MAX: u64 = 500;

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

/// What came of it.
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
    /// A step in which nothing varies, over the mean step.
    pub efficiency: f64,
}

/// Steps of all ranks of a site.
///
/// # Errors
/// As [`super::predict`].
pub fn simulate(
    params: u64,
    site: &Site,
    bytes: &StateBytes,
    swapping: &Swapping,
    steps: u64,
    seed: u64,
) -> Result<Simulation> {
    let shape = Shape::of(params, site, bytes, swapping)?;
    let node = coarser(shape.node);
    let steady_seconds = node.seconds();
    let mut random = Random::new(seed);
    let nodes: Vec<Vec<Bandwidth>> =
        (0..site.nodes).map(|_| drives_of_node(site, &mut random)).collect();
    let slices = (steady_seconds / SPREAD_SECONDS).max(1.0);
    let (mut of_world, mut of_ranks, mut waiting) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..steps {
        let mut delay = || random.exponential(site.noise_seconds);
        // The all-reduce of the norm ends when its last rank has come.
        let latest = (0..shape.ranks).map(|_| delay()).fold(0.0, f64::max);
        let norm_seconds = node.norm_seconds + latest;
        let mut own = Vec::with_capacity(shape.ranks as usize);
        for drives in &nodes {
            let bandwidth = in_this_step(drives, site, slices, &mut random);
            let bandwidth = striped(&bandwidth, &shape.shares);
            let ends = NodeStep { bandwidth, norm_seconds, ..node }.seconds();
            let ranks = 0..site.ranks_per_node;
            own.extend(ranks.map(|_| ends + random.exponential(site.noise_seconds)));
        }
        let world = own.iter().copied().fold(0.0, f64::max) + shape.collective_seconds;
        waiting.extend(own.iter().map(|own| (world - own) / world));
        of_ranks.append(&mut own);
        of_world.push(world);
    }
    let step_seconds = Percentiles::of(of_world);
    Ok(Simulation {
        ranks: shape.ranks,
        steps,
        seed,
        efficiency: (steady_seconds + shape.collective_seconds) / step_seconds.mean.max(1e-12),
        step_seconds,
        own_seconds: Percentiles::of(of_ranks),
        waiting_share: Percentiles::of(waiting),
    })
}

/// The drives of one node: of one model, but not equal.
fn drives_of_node(site: &Site, random: &mut Random) -> Vec<Bandwidth> {
    let drive =
        |drive: &super::SiteDrive| scaled(drive.bandwidth, random.speed(site.drive_to_drive));
    site.drives.iter().map(drive).collect()
}

/// Over a whole step, what varies from moment to moment averages out.
fn in_this_step(
    drives: &[Bandwidth],
    site: &Site,
    slices: f64,
    random: &mut Random,
) -> Vec<Bandwidth> {
    let drives = drives.iter().zip(&site.drives);
    let drive = |(drive, known): (&Bandwidth, &super::SiteDrive)| {
        scaled(*drive, random.speed(known.spread / slices.sqrt()))
    };
    drives.map(drive).collect()
}

fn scaled(drive: Bandwidth, factor: f64) -> Bandwidth {
    let Bandwidth { read, write, mixed } = drive;
    Bandwidth { read: read * factor, write: write * factor, mixed: mixed * factor }
}

/// The same bytes in fewer chunks, for sites with many nodes.
fn coarser(node: NodeStep) -> NodeStep {
    let chunks = node.chunks.min(CHUNKS_MAX);
    let factor = node.chunks as f64 / chunks.max(1) as f64;
    NodeStep {
        chunks,
        read_bytes: node.read_bytes * factor,
        written_bytes: node.written_bytes * factor,
        update_seconds: node.update_seconds * factor,
        ..node
    }
}

#[cfg(test)]
mod tests {
    use super::super::bytes::tests::adamw;
    use super::super::predict::tests::{SWAPPING, site};
    use super::*;

    fn run(site: &Site, seed: u64) -> Simulation {
        let bytes = adamw("fp32", false);
        let params = site.nodes * site.ranks_per_node * (16 << 20);
        simulate(params, site, &bytes, &SWAPPING, 20, seed).unwrap()
    }

    #[test]
    fn nothing_varies_and_nobody_waits() {
        let steady = run(&Site { nodes: 4, ..site(2) }, 1);
        assert!((steady.efficiency - 1.0).abs() < 1e-9);
        assert_eq!(steady.waiting_share, Percentiles::default());
    }

    #[test]
    fn more_ranks_wait_longer_for_the_slowest() {
        let varying = |nodes| {
            let mut site = Site { nodes, drive_to_drive: 0.03, noise_seconds: 1e-4, ..site(2) };
            site.drives.iter_mut().for_each(|drive| drive.spread = 0.1);
            site
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
    fn percentiles_of_few_values() {
        let found = Percentiles::of(vec![4.0, 1.0, 3.0, 2.0]);
        assert_eq!((found.p50, found.p90, found.max, found.mean), (2.0, 4.0, 4.0, 2.5));
        assert_eq!(Percentiles::of(Vec::new()), Percentiles::default());
    }
}
