//! What one node of a site needs for its part of a model, and how long its steps take.

use serde::Serialize;

use super::node::NodeStep;
use super::{Bandwidth, Site, StateBytes, Swapping};
use crate::error::{Error, Result};
use crate::units::{BLOCK_ELEMS, Bytes, round_up};

/// Bytes that the update moves between memory and processors for one parameter: gradient, master
/// and moments in, parameter, master and moments out.
const UPDATE_BYTES: f64 = 28.0;
/// Gradients and parameters of two bytes each, in the training program's memory.
const CALLER_BYTES: u64 = 4;

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
    /// Norm, checksums and update.
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
    /// Space that it needs.
    pub space_bytes: u64,
    /// Space that it has, if that is known.
    pub free_bytes: Option<u64>,
    /// Read in one step.
    pub read_bytes: u64,
    /// Written in one step.
    pub written_bytes: u64,
    /// Days until it has taken as many writes as it is made for.
    pub endurance_days: Option<f64>,
}

/// What a node needs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Forecast {
    /// Ranks of the job.
    pub ranks: u64,
    /// Parameters of one rank.
    pub params_per_rank: u64,
    /// Parameters of one node.
    pub params_per_node: u64,
    /// Its drives.
    pub drives: Vec<DriveForecast>,
    /// I/O buffers of each rank.
    pub buffers_per_rank: u64,
    /// I/O buffers of all ranks.
    pub buffer_bytes: u64,
    /// Gradients and parameters of two bytes each, if the training program keeps them in memory.
    pub caller_bytes: u64,
    /// Seconds of one step.
    pub step_seconds: f64,
    /// What takes the most of it.
    pub bound_by: BoundBy,
    /// Seconds that each would take alone.
    pub parts: Vec<(BoundBy, f64)>,
    /// Nanoseconds per parameter of the model.
    pub ns_per_param: f64,
    /// The largest model whose state fits the drives.
    pub largest_by_space: Option<u64>,
    /// The largest model whose gradients and parameters fit the memory beside the buffers.
    pub largest_by_memory: Option<u64>,
}

/// The drives of a node as a stripe over all of them: each holds its share, so that the one that
/// is slow for its share sets the pace.
pub(super) fn striped(drives: &[Bandwidth], shares: &[f64]) -> Bandwidth {
    let pace = |speed: fn(&Bandwidth) -> f64| {
        let paces = drives.iter().zip(shares).map(|(drive, share)| speed(drive) / share);
        paces.fold(f64::INFINITY, f64::min)
    };
    Bandwidth { read: pace(|it| it.read), write: pace(|it| it.write), mixed: pace(|it| it.mixed) }
}

/// Everything that follows from model and site before anything varies.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub ranks: u64,
    pub params_per_rank: u64,
    pub buffers_per_rank: u64,
    pub buffer_bytes: u64,
    pub shares: Vec<f64>,
    pub node: NodeStep,
    /// Seconds of one collective over all ranks.
    pub collective_seconds: f64,
    pub processor_seconds: f64,
    pub memory_seconds: f64,
}

impl Shape {
    pub fn of(params: u64, site: &Site, bytes: &StateBytes, swapping: &Swapping) -> Result<Self> {
        check(params, site)?;
        let ranks = site.nodes * site.ranks_per_node;
        let params_per_rank = round_up(params.div_ceil(ranks), BLOCK_ELEMS);
        let chunk_elems = swapping.chunk_elems.min(params_per_rank);
        let chunks = params_per_rank.div_ceil(chunk_elems);
        let extent_bytes = round_up((chunk_elems as f64 * bytes.space) as u64, 4096);
        let buffers = (swapping.budget_bytes / extent_bytes).min(chunks);
        if buffers < chunks.min(2) {
            return Err(Error::usage("the memory budget is below the minimum")
                .with("memory budget", Bytes(swapping.budget_bytes).human())
                .with("minimum", Bytes(chunks.min(2) * extent_bytes).human()));
        }
        let weights: f64 = site.drives.iter().map(|drive| drive.bandwidth.mixed).sum();
        let shares: Vec<f64> =
            site.drives.iter().map(|drive| drive.bandwidth.mixed / weights).collect();
        let params_per_node = (params_per_rank * site.ranks_per_node) as f64;
        let moved = UPDATE_BYTES + bytes.read + bytes.written;
        let memory_seconds = site.memory_bytes_per_s.map_or(0.0, |speed| moved / speed);
        let update = (site.update_ns_per_param * 1e-9).max(memory_seconds);
        let norm_seconds = params_per_node * site.norm_ns_per_param * 1e-9;
        let hops = 64 - (ranks - 1).leading_zeros();
        let collective_seconds = 2.0 * f64::from(hops) * site.hop_seconds;
        let drives: Vec<Bandwidth> = site.drives.iter().map(|drive| drive.bandwidth).collect();
        // A rank's last chunk is short: on average its chunks are a little smaller than a full one.
        let elems = params_per_rank as f64 / chunks as f64;
        Ok(Self {
            ranks,
            params_per_rank,
            buffers_per_rank: buffers,
            buffer_bytes: buffers * extent_bytes * site.ranks_per_node,
            node: NodeStep {
                chunks: chunks * site.ranks_per_node,
                buffers: buffers * site.ranks_per_node,
                read_bytes: elems * bytes.read,
                written_bytes: elems * bytes.written,
                update_seconds: elems * update,
                bandwidth: striped(&drives, &shares),
                norm_seconds: norm_seconds + collective_seconds,
            },
            shares,
            collective_seconds,
            processor_seconds: params_per_node * site.update_ns_per_param * 1e-9 + norm_seconds,
            memory_seconds: params_per_node * memory_seconds,
        })
    }
}

fn check(params: u64, site: &Site) -> Result<()> {
    if site.drives.is_empty() {
        return Err(Error::usage("a site needs a drive")
            .hint("name probed drives with --drives, or their speeds with --drive-mbps"));
    }
    let is_speed = |speed: f64| speed.is_finite() && speed > 0.0;
    let is_drive = |it: &Bandwidth| [it.read, it.write, it.mixed].into_iter().all(is_speed);
    if !site.drives.iter().all(|drive| is_drive(&drive.bandwidth)) {
        return Err(Error::usage("a drive's speed must be above 0"));
    }
    if site.nodes == 0 || site.ranks_per_node == 0 || params == 0 {
        return Err(Error::usage("nodes, ranks on each and parameters must be at least 1"));
    }
    Ok(())
}

/// What each node needs for its part of a model of so many parameters.
///
/// # Errors
/// Usage, if the site has no drive or no rank, or the budget is too small for a chunk.
pub fn predict(
    params: u64,
    site: &Site,
    bytes: &StateBytes,
    swapping: &Swapping,
) -> Result<Forecast> {
    let shape = Shape::of(params, site, bytes, swapping)?;
    let step_seconds = shape.node.seconds() + shape.collective_seconds;
    let params_per_node = shape.params_per_rank * site.ranks_per_node;
    let (read, written) =
        (params_per_node as f64 * bytes.read, params_per_node as f64 * bytes.written);
    let slots = if swapping.is_durable { 2.0 } else { 1.0 };
    let space_per_param = bytes.space * slots;
    let drive = |(drive, share): (&super::SiteDrive, &f64)| {
        let written_bytes = (written * share).round();
        let steps = site.endurance_bytes.map(|life| life / written_bytes);
        DriveForecast {
            share: *share,
            space_bytes: (params_per_node as f64 * space_per_param * share).round() as u64,
            free_bytes: drive.free_bytes,
            read_bytes: (read * share).round() as u64,
            written_bytes: written_bytes as u64,
            endurance_days: steps
                .map(|steps| steps * (step_seconds + site.compute_seconds) / 86_400.0),
        }
    };
    let Bandwidth { read: read_speed, write: write_speed, mixed } = shape.node.bandwidth;
    let parts = vec![
        (BoundBy::Read, read / read_speed),
        (BoundBy::Write, written / write_speed),
        (BoundBy::Mixed, (read + written) / mixed),
        (BoundBy::Processor, shape.processor_seconds),
        (BoundBy::Memory, shape.memory_seconds),
        (BoundBy::Collectives, 2.0 * shape.collective_seconds),
    ];
    let bound_by = parts.iter().fold(parts[0], |most, it| if it.1 > most.1 { *it } else { most });
    let nodes = site.nodes as f64;
    let fits = |(drive, share): (&super::SiteDrive, &f64)| {
        drive.free_bytes.map(|free| free as f64 / share / space_per_param * nodes)
    };
    let by_drive: Option<Vec<f64>> = site.drives.iter().zip(&shape.shares).map(fits).collect();
    let room = site.memory_bytes.map(|memory| memory.saturating_sub(shape.buffer_bytes));
    Ok(Forecast {
        ranks: shape.ranks,
        params_per_rank: shape.params_per_rank,
        params_per_node,
        drives: site.drives.iter().zip(&shape.shares).map(drive).collect(),
        buffers_per_rank: shape.buffers_per_rank,
        buffer_bytes: shape.buffer_bytes,
        caller_bytes: CALLER_BYTES * params_per_node,
        step_seconds,
        bound_by: bound_by.0,
        parts,
        ns_per_param: step_seconds * 1e9 / params as f64,
        largest_by_space: by_drive.map(|all| all.into_iter().fold(f64::INFINITY, f64::min) as u64),
        largest_by_memory: room.map(|room| room / CALLER_BYTES * site.nodes),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::forecast::SiteDrive;
    use crate::forecast::bytes::tests::adamw;

    pub fn site(drives: usize) -> Site {
        let drive = SiteDrive {
            bandwidth: Bandwidth::symmetric(3e8),
            free_bytes: Some(4 << 30),
            spread: 0.0,
        };
        Site {
            nodes: 1,
            ranks_per_node: 2,
            drives: vec![drive; drives],
            memory_bytes: Some(8 << 30),
            memory_bytes_per_s: None,
            update_ns_per_param: 0.1,
            norm_ns_per_param: 0.0,
            drive_to_drive: 0.0,
            hop_seconds: 0.0,
            noise_seconds: 0.0,
            endurance_bytes: Some(1e15),
            compute_seconds: 1.0,
        }
    }

    pub const SWAPPING: Swapping =
        Swapping { chunk_elems: 1 << 20, budget_bytes: 256 << 20, is_durable: false };

    #[test]
    fn bytes_over_bandwidth_and_a_chunk_to_drain() {
        let fp32 = adamw("fp32", false);
        let forecast = predict(64 << 20, &site(1), &fp32, &SWAPPING).unwrap();
        let limit = 12.0 * f64::from(64 << 20) / 3e8;
        let chunk = 12.0 * f64::from(1 << 20) / 3e8;
        assert!((forecast.step_seconds - limit - chunk).abs() < 0.01, "{forecast:?}");
        assert_eq!(forecast.bound_by, BoundBy::Read);
        assert_eq!((forecast.ranks, forecast.params_per_rank), (2, 32 << 20));
        assert_eq!(forecast.buffers_per_rank, 21);
        let drive = &forecast.drives[0];
        assert_eq!((drive.space_bytes, drive.read_bytes), (12 << 26, 12 << 26));
        let days = 1e15 / f64::from(12 << 26) * (forecast.step_seconds + 1.0) / 86_400.0;
        assert!((drive.endurance_days.unwrap() - days).abs() < 1e-6);
        assert_eq!(forecast.largest_by_space, Some((4u64 << 30) / 12));
        let four = predict(64 << 20, &site(4), &fp32, &SWAPPING).unwrap();
        assert!((forecast.step_seconds / four.step_seconds - 4.0).abs() < 0.1);
        assert_eq!(four.largest_by_space, Some((16u64 << 30) / 12));
    }

    #[test]
    fn what_binds_is_named() {
        let bytes = adamw("int8+remainder16", true);
        let mut site = site(1);
        site.drives[0].bandwidth = Bandwidth { read: 9e12, write: 9e12, mixed: 18e12 };
        let bound_by = |site: &Site| predict(1 << 30, site, &bytes, &SWAPPING).unwrap().bound_by;
        assert_eq!(bound_by(&site), BoundBy::Processor);
        site.memory_bytes_per_s = Some(1e11);
        assert_eq!(bound_by(&site), BoundBy::Memory);
        site.hop_seconds = 10.0;
        assert_eq!(bound_by(&site), BoundBy::Collectives);
        site.drives[0].bandwidth = Bandwidth { read: 9e6, write: 9e6, mixed: 10e6 };
        assert_eq!(bound_by(&site), BoundBy::Mixed);
        site.drives[0].bandwidth.mixed = 18e6;
        assert_eq!(bound_by(&site), BoundBy::Write, "a durable job writes more than it reads");
    }

    #[test]
    fn impossible_sites_are_refused() {
        let bytes = adamw("fp32", false);
        let refused = |site: &Site, swapping: &Swapping| {
            predict(1 << 30, site, &bytes, swapping).unwrap_err().to_string()
        };
        assert!(refused(&site(0), &SWAPPING).contains("--drive-mbps"));
        assert!(refused(&Site { nodes: 0, ..site(1) }, &SWAPPING).contains("at least 1"));
        let tiny = Swapping { budget_bytes: 1 << 20, ..SWAPPING };
        assert!(refused(&site(1), &tiny).contains("minimum 24.00 MiB"));
    }
}
