//! Tuning of chunk, depth, stripe unit and weights. Settings are tried with reads and writes mixed
//! as in a step, on all ranks at once. Then real steps are measured with and without what was
//! found, in turns.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use half::bf16;
use serde::Serialize;

use super::probe::{BLOCK_BYTES, blocks_of_file, run_load};
use super::search::{GAIN_MIN, Setting, Trial, search};
use super::workload::{Workload, synthetic_inventory};
use optswap::internals::config::{Config, Durability};
use optswap::internals::coord::{Communicator, Topology, agree, gather_all};
use optswap::internals::error::{Error, Result};
use optswap::internals::io::{EngineSpec, LoadKind, Loader, Part, allocate_buffers};
use optswap::internals::storage::{Drive, ExtentLayout, Placement, scratch_file};
use optswap::internals::units::{Bytes, Elems, ExtentIndex, Rank};

/// Size of the file of each rank on each drive, as long as the files of all ranks take no more than
/// this part of the free space.
const FILE_BYTES: u64 = 256 << 20;
const FILE_ROOM_USED: f64 = 0.5;
/// Blocks in flight while it is written. They are enough for a drive, and few, because all of them
/// still have to come back when time is over.
const BLOCKS_IN_FLIGHT: usize = 8;
/// Blocks that are written however long it takes.
const BLOCKS_MIN: u64 = 16;
/// How long a setting is tried.
const TRIAL_SECONDS: f64 = 0.8;
/// Drives whose speeds differ by less are equal.
const UNEQUAL: f64 = 1.1;
/// Pairs of measured steps, without and with what was found.
const PAIRS: usize = 5;
/// How long a step of a pair is meant to take, if there is time for that.
const STEP_SECONDS: f64 = 0.5;
/// The time of all pairs in steps, warm-up and the creation of two jobs included.
const STEPS_OF_PAIRS: f64 = 24.0;
/// The fewest pairs that say anything.
const PAIRS_MIN: usize = 2;
/// Parts of the whole time: for writing the files, and for everything before the pairs.
const FILL_SHARE: f64 = 0.15;
const TRIALS_SHARE: f64 = 0.5;
/// Parameters of a rank in pairs, so many that every chunk size that is tried gives several chunks.
const PARAMS_MIN: u64 = 4 << 20;
const PARAMS_MAX: u64 = 64 << 20;
/// Parameters of a rank in pairs where drives have no room for more.
const PARAMS_FEW: u64 = 64 << 10;
/// The part of the free space that is used, so that no drive runs full.
const ROOM_USED: f64 = 0.9;

/// What was tried and found.
#[derive(Clone, Debug, Serialize)]
pub struct Tuning {
    /// The settings of the given configuration.
    pub before: Setting,
    /// What was tried.
    pub trials: Vec<Trial>,
    /// The best setting, after it was tried again.
    pub best: Option<Trial>,
    /// Relative speeds of the drives; empty if they are equal.
    pub weights: Vec<f64>,
    /// How many times as fast the steps of each pair were with what was found. Empty if there was
    /// nothing to compare.
    pub gains: Vec<f64>,
    /// Whether every pair gained. Only then `config` has what was found.
    pub is_gain: bool,
    /// The configuration to use.
    pub config: Config,
    /// Seconds that all of it took.
    pub seconds: f64,
}

/// Collective: tunes within about so many seconds.
///
/// # Errors
/// Agreed: usage if the configuration does not fit the drives or memory, errors of the drives or of
/// lost ranks, terminated after a signal.
pub fn tune(comm: &Arc<dyn Communicator>, config: &Config, seconds: f64) -> Result<Tuning> {
    let start = Instant::now();
    let topology = Topology::discover(&**comm)?;
    let after = |share: f64| start + Duration::from_secs_f64(seconds * share);
    let mut bench = Bench::open(comm, &topology, config)?;
    let weights = bench.fill_and_weigh(FILL_SHARE * seconds)?;
    let before = setting_of(config);
    let deadline = after(TRIALS_SHARE);
    let mut tried = 0;
    let mut measure = |setting: Setting| {
        let late = gather_all(&**comm, &(Instant::now() >= deadline))?;
        if tried > 0 && late.contains(&true) {
            return Ok(None);
        }
        tried += 1;
        bench.measure(setting, &weights)
    };
    let trials = search(before, &mut measure)?;
    let best = confirm(&bench, before, trials.last().copied(), &weights)?;
    drop(bench);
    let mut found = config.clone();
    found.drives.weights.clone_from(&weights);
    if let Some(best) = best {
        apply(best.setting, &mut found);
    }
    let speed = best.map_or(0.0, |best| best.bytes_per_s);
    let gains = if found == *config {
        Vec::new()
    } else {
        gains_of_pairs(comm, &topology, [config, &found], speed, after(1.0))?
    };
    let is_gain = !gains.is_empty() && gains.iter().all(|gain| *gain > 1.0);
    Ok(Tuning {
        before,
        trials,
        best,
        weights,
        is_gain,
        gains,
        config: if is_gain { found } else { config.clone() },
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// Collective: tries the best setting and the given one again, in turns, because the best of many
/// trials may only have been lucky. Gives the better of the two.
fn confirm(
    bench: &Bench<'_>,
    before: Setting,
    best: Option<Trial>,
    weights: &[f64],
) -> Result<Option<Trial>> {
    let Some(best) = best.filter(|best| best.setting != before) else { return Ok(best) };
    let (mut of_before, mut of_best) = (0.0, 0.0);
    for _ in 0..2 {
        of_before += bench.measure(before, weights)?.unwrap_or(0.0);
        of_best += bench.measure(best.setting, weights)?.unwrap_or(0.0);
    }
    Ok(Some(if of_best > of_before * GAIN_MIN {
        best
    } else {
        Trial { setting: before, bytes_per_s: of_before / 2.0 }
    }))
}

fn setting_of(config: &Config) -> Setting {
    Setting {
        stripe_unit: config.drives.stripe_unit.0,
        depth: config.io.depth as u64,
        chunk_elems: config.swap.chunk_elements.0,
    }
}

fn apply(setting: Setting, config: &mut Config) {
    config.drives.stripe_unit = Bytes(setting.stripe_unit);
    config.io.depth = setting.depth as usize;
    config.swap.chunk_elements = Elems(setting.chunk_elems);
}

/// One rank's files.
struct Bench<'a> {
    comm: &'a Arc<dyn Communicator>,
    topology: &'a Topology,
    config: &'a Config,
    files: Vec<std::fs::File>,
    /// Bytes of every file that have been written, the same on all ranks. Only those are used: a
    /// read of others would not reach the drive.
    file_bytes: u64,
}

impl<'a> Bench<'a> {
    /// Collective: creates the files.
    fn open(
        comm: &'a Arc<dyn Communicator>,
        topology: &'a Topology,
        config: &'a Config,
    ) -> Result<Self> {
        let ranks = topology.local_ranks().count() as f64;
        let room = |drive: &Drive| (FILE_ROOM_USED * drive.free_bytes as f64 / ranks) as u64;
        let drives = agree(&**comm, inspect(config))?;
        let mine = drives.iter().map(room).min().unwrap_or(0).min(FILE_BYTES);
        let least = gather_all(&**comm, &mine)?.into_iter().min().unwrap_or(0);
        let file_bytes = (least / BLOCK_BYTES).max(BLOCKS_MIN) * BLOCK_BYTES;
        let files = drives.iter().map(|drive| scratch_file(drive, file_bytes)).collect();
        Ok(Self { comm, topology, config, files: agree(&**comm, files)?, file_bytes })
    }

    fn loader(&self, depth: usize, buffers: usize, buffer_bytes: usize) -> Result<Loader> {
        let files = self.files.iter().map(std::fs::File::try_clone);
        let files = files.collect::<std::io::Result<Vec<_>>>().map_err(|error| {
            Error::internal("a file cannot be shared with the I/O engine").because(error)
        })?;
        let choice = self.config.io.engine;
        let spec = EngineSpec { choice, depth, files, faults: Vec::new() };
        let buffers = allocate_buffers(buffers, buffer_bytes)?;
        // Many engines are opened one after the other, and each would log what it is.
        let quiet = tracing::subscriber::NoSubscriber::default();
        tracing::subscriber::with_default(quiet, || {
            Loader::open(spec, buffers, self.config.drives.paths.clone())
        })
    }

    /// Collective: writes as much of the files as there is time for, then measures the relative
    /// speeds of the drives. Gives none if they are alike, or if nodes differ.
    fn fill_and_weigh(&mut self, fill_seconds: f64) -> Result<Vec<f64>> {
        let lanes = |blocks: u64| -> Vec<_> {
            (0..self.files.len() as u32).map(|file| blocks_of_file(file, blocks)).collect()
        };
        let buffers = BLOCKS_IN_FLIGHT * self.files.len();
        let comm = &**self.comm;
        let mut loader = agree(comm, self.loader(buffers, buffers, BLOCK_BYTES as usize))?;
        let first = run_load(comm, &mut loader, &lanes(BLOCKS_MIN), LoadKind::Fill, 3600.0);
        agree(comm, first)?;
        let whole = self.file_bytes / BLOCK_BYTES;
        let filled = run_load(comm, &mut loader, &lanes(whole), LoadKind::Fill, fill_seconds);
        let mine = agree(comm, filled)?.extents.into_iter().min().unwrap_or(0);
        let blocks = gather_all(comm, &mine)?.into_iter().min().unwrap_or(0).max(BLOCKS_MIN);
        let cycle = LoadKind::Cycle;
        let result = run_load(comm, &mut loader, &lanes(blocks), cycle, 2.0 * TRIAL_SECONDS);
        let result = agree(comm, result)?;
        let mine = (0..self.files.len()).map(|file| result.file_bytes_per_s(file));
        let all: Vec<Vec<f64>> = gather_all(comm, &mine.collect::<Vec<f64>>())?;
        drop(loader);
        self.file_bytes = blocks * BLOCK_BYTES;
        Ok(unequal_speeds(&all, self.topology.nodes()))
    }

    /// Collective: bytes per second that the ranks of the slowest node read and write together with
    /// this setting. `None` if memory or files are too small for it.
    fn measure(&self, setting: Setting, weights: &[f64]) -> Result<Option<f64>> {
        let tensors = self.config.state_tensors();
        let layout = ExtentLayout::new(setting.chunk_elems, &tensors, self.config.is_durable());
        let extent_bytes = layout.bytes();
        let weights =
            if weights.is_empty() { vec![1.0; self.files.len()] } else { weights.to_vec() };
        // As many extents as the fullest file holds.
        let place = |extents: u64| {
            let extents = vec![extent_bytes; extents as usize];
            let first = self.comm.rank().index();
            Placement::weighted(&extents, setting.stripe_unit, &weights, first, 0.0)
        };
        let mut extents = self.file_bytes * self.files.len() as u64 / extent_bytes;
        let fits =
            |extents| place(extents).drive_bytes().iter().all(|bytes| *bytes <= self.file_bytes);
        while extents > 0 && !fits(extents) {
            extents -= extents.div_ceil(8);
        }
        let buffers = (self.config.swap.memory_budget.0 / extent_bytes).min(extents);
        if buffers < 2 {
            return Ok(None);
        }
        let placement = place(extents);
        let lane = (0..extents as usize).map(|extent| {
            let segments = placement.segments(ExtentIndex::from_index(extent)).into_iter();
            let part = segments.map(|segment| Part {
                file: segment.drive.0,
                file_offset: segment.file_offset,
                buffer_offset: segment.extent_offset,
                len: segment.len,
            });
            part.collect::<Vec<Part>>()
        });
        let lanes = [lane.collect::<Vec<_>>()];
        let loader = self.loader(setting.depth as usize, buffers as usize, extent_bytes as usize);
        let mut loader = agree(&**self.comm, loader)?;
        self.comm.barrier()?;
        let load = run_load(&**self.comm, &mut loader, &lanes, LoadKind::Cycle, TRIAL_SECONDS);
        let mine = agree(&**self.comm, load)?.bytes_per_s();
        let all: Vec<f64> = gather_all(&**self.comm, &mine)?;
        Ok(Some(slowest_node(&all, self.topology.nodes())))
    }
}

/// The least sum over the ranks of a node.
fn slowest_node(of_ranks: &[f64], nodes: &[Vec<Rank>]) -> f64 {
    let of_node = |ranks: &Vec<Rank>| ranks.iter().map(|rank| of_ranks[rank.index()]).sum();
    nodes.iter().map(of_node).fold(f64::INFINITY, f64::min)
}

/// Weights of a node's drives relative to the fastest, from the speeds that every rank measured,
/// added up over the ranks of a node. Empty if the drives are alike, or not the same on all nodes.
fn unequal_speeds(of_ranks: &[Vec<f64>], nodes: &[Vec<Rank>]) -> Vec<f64> {
    let of_node = |ranks: &Vec<Rank>| -> Vec<f64> {
        let drives = of_ranks.iter().map(Vec::len).min().unwrap_or(0);
        let sum = ranks.iter().fold(vec![0.0; drives], |mut sum, rank| {
            let speeds = &of_ranks[rank.index()];
            sum.iter_mut().zip(speeds).for_each(|(sum, speed)| *sum += speed);
            sum
        });
        let fastest = sum.iter().copied().fold(0.0, f64::max);
        sum.iter().map(|speed| (speed / fastest * 100.0).round().max(1.0) / 100.0).collect()
    };
    let first = nodes.first().map(of_node).unwrap_or_default();
    let is_alike = |weights: &Vec<f64>| {
        let pairs = weights.iter().zip(&first);
        pairs.into_iter().all(|(a, b)| a / b < UNEQUAL && b / a < UNEQUAL)
    };
    let slowest = first.iter().copied().fold(1.0, f64::min);
    if slowest * UNEQUAL < 1.0 && nodes.iter().map(of_node).all(|it| is_alike(&it)) {
        first
    } else {
        Vec::new()
    }
}

fn inspect(config: &Config) -> Result<Vec<Drive>> {
    let allowed = &config.drives.allow_filesystems;
    let tried = |root: &PathBuf| Drive::try_out(root, allowed, &config.job).map(|(drive, _)| drive);
    config.drives.paths.iter().map(tried).collect()
}

/// Parameters of a rank for which this node's drives have room, when two jobs with one slot and
/// headroom lie on them.
fn params_that_fit(topology: &Topology, config: &Config) -> Result<u64> {
    let drives = inspect(config)?;
    let (weights, ranks) = (config.drive_weights(), topology.local_ranks().count() as f64);
    let whole: f64 = weights.iter().sum();
    let layout = ExtentLayout::new(PARAMS_MIN, &config.state_tensors(), false);
    let headroom = 1.0 + config.drives.stripe_headroom;
    let bytes_per_param = 2.0 * ranks * headroom * layout.bytes() as f64 / PARAMS_MIN as f64;
    let of_device = |drive: &Drive| {
        let same = drives.iter().zip(&weights).filter(|(it, _)| it.device == drive.device);
        let share = same.map(|(_, weight)| weight).sum::<f64>() / whole;
        ROOM_USED * drive.free_bytes as f64 / (bytes_per_param * share)
    };
    Ok(drives.iter().map(of_device).fold(f64::INFINITY, f64::min) as u64)
}

/// Collective: takes steps without and with what was found, in turns, as many pairs as there is
/// time for. Gives how many times as fast the second step of each pair was.
fn gains_of_pairs(
    comm: &Arc<dyn Communicator>,
    topology: &Topology,
    [without, with]: [&Config; 2],
    node_bytes_per_s: f64,
    deadline: Instant,
) -> Result<Vec<f64>> {
    let ranks = comm.size() as u64;
    let of_node = topology.nodes().iter().map(Vec::len).max().unwrap_or(1) as u64;
    let layout = ExtentLayout::new(PARAMS_MIN, &without.state_tensors(), false);
    let moved_bytes = (layout.swap_in_bytes() + layout.bytes()) as f64 / PARAMS_MIN as f64;
    let left = deadline.saturating_duration_since(Instant::now()).as_secs_f64();
    let in_time = |seconds: f64| (seconds * node_bytes_per_s / moved_bytes) as u64 / of_node;
    let wanted = in_time(STEP_SECONDS).clamp(PARAMS_MIN, PARAMS_MAX);
    let fitting = agree(&**comm, params_that_fit(topology, with))?;
    let mine = wanted.min(in_time(left / STEPS_OF_PAIRS)).min(fitting);
    // Even a short step says more than none.
    let per_rank = gather_all(&**comm, &mine)?.into_iter().min().unwrap_or(0).max(PARAMS_FEW);
    let params = ranks * per_rank;
    let create = |config: &Config, name: &str| {
        let mut config = config.clone();
        config.job = format!("{}-tune-{name}", config.job);
        config.durability.mode = Durability::Scratch;
        config.drives.keep_files = false;
        let inventory = synthetic_inventory(params)?;
        Workload::create(comm, &config, inventory, 0, false, bf16::from_f32)
    };
    let (mut first, mut second) = (create(without, "before")?, create(with, "after")?);
    first.run(1)?;
    second.run(1)?;
    let mut gains = Vec::new();
    for pair in 0..PAIRS {
        let is_late = gather_all(&**comm, &(Instant::now() >= deadline))?.contains(&true);
        if is_late && pair >= PAIRS_MIN {
            break;
        }
        // The order alternates, because the second job may find the drives warmed up.
        let (before, after) = match pair % 2 {
            0 => (first.run(2)?, second.run(2)?),
            _ => {
                let after = second.run(2)?;
                (first.run(2)?, after)
            }
        };
        let all: Vec<(f64, f64)> = gather_all(&**comm, &(before.seconds, after.seconds))?;
        let slowest =
            all.iter().fold((0.0f64, 0.0f64), |worst, it| (worst.0.max(it.0), worst.1.max(it.1)));
        gains.push(slowest.0 / slowest.1);
    }
    first.optimizer.close();
    second.optimizer.close();
    Ok(gains)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(of: &[&[u32]]) -> Vec<Vec<Rank>> {
        of.iter().map(|ranks| ranks.iter().copied().map(Rank).collect()).collect()
    }

    #[test]
    fn weights_are_those_of_nodes() {
        let two = nodes(&[&[0, 1]]);
        assert_eq!(unequal_speeds(&[vec![2.0, 1.0], vec![2.0, 1.0]], &two), [1.0, 0.5]);
        assert!(unequal_speeds(&[vec![1.0, 1.04], vec![1.0, 1.0]], &two).is_empty());
        // Nodes that differ have no weights in common.
        let apart = nodes(&[&[0], &[1]]);
        assert!(unequal_speeds(&[vec![2.0, 1.0], vec![1.0, 2.0]], &apart).is_empty());
        assert_eq!(unequal_speeds(&[vec![9.0, 3.0], vec![3.0, 1.0]], &apart), [1.0, 0.33]);
    }

    #[test]
    fn a_node_is_as_fast_as_its_ranks_together() {
        assert_eq!(slowest_node(&[1.0, 2.0, 2.5], &nodes(&[&[0, 1], &[2]])), 2.5);
    }
}
