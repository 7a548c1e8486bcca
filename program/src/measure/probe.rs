//! What drives can do: reading, writing and both at once, each drive by itself and then all drives
//! of a node together.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::node::drives_of_node;
use optswap::internals::config::EngineName;
use optswap::internals::coord::{Communicator, Topology, agree, gather_all};
use optswap::internals::error::{Error, ErrorKind, Result};
use optswap::internals::io::{
    EngineSpec, Load, LoadKind, LoadResult, Loader, Part, allocate_buffers,
};
use optswap::internals::job::stop_request;
use optswap::internals::storage::{Device, Drive, DriveProfile, same_disk, scratch_file};
use optswap::internals::telemetry::ProcessIo;

/// One operation: as large as a stripe unit is by default.
pub(super) const BLOCK_BYTES: u64 = 1 << 20;
/// Size of a file: more than drives keep in caches of their own.
const FILE_BYTES: u64 = 1 << 30;
/// Warm-up before a measurement, as a part of its time. Drives answer the first operations faster,
/// from what they have prepared while idle.
const WARMUP_SHARE: f64 = 0.2;
/// The part of the bytes that the kernel must have moved for I/O to count as direct.
const DIRECT_SHARE: f64 = 0.9;

/// How to measure.
#[derive(Clone, Debug)]
pub struct ProbeOptions {
    /// Seconds of each of the three measurements of a drive.
    pub seconds: f64,
    /// Bytes of the file on each drive; none is 1 GiB, or half of the free space.
    pub file_bytes: Option<u64>,
    /// How operations reach the kernel.
    pub engine: EngineName,
    /// Operations in flight on each drive.
    pub depth: usize,
    /// Keep the profiles beside the data.
    pub saves: bool,
    /// Memory file systems that are measured all the same.
    pub allow_filesystems: Vec<String>,
}

/// What one node's drives can do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeProbe {
    /// The node.
    pub host: String,
    /// Its drives, in the order in which they were named.
    pub drives: Vec<DriveProbe>,
}

/// What one drive can do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DriveProbe {
    /// The directory that the user named.
    pub root: PathBuf,
    /// Its file system.
    pub filesystem: String,
    /// Its device.
    pub device: String,
    /// An earlier drive of this node that lies on the same disk.
    pub shares_device_with: Option<PathBuf>,
    /// Whether the kernel moved all bytes between memory and the drive itself (`/proc/self/io`).
    pub is_direct: bool,
    /// The bandwidths.
    pub profile: DriveProfile,
}

impl NodeProbe {
    /// Both directions together, all drives, each by itself: bytes per second.
    pub fn mixed_alone(&self) -> f64 {
        self.drives.iter().map(|drive| drive.profile.mixed_bytes_per_s).sum()
    }

    /// The same, all at once.
    pub fn mixed_together(&self) -> f64 {
        self.drives.iter().map(|drive| drive.profile.weight()).sum()
    }
}

/// Collective: measures the drives of every node, all nodes at once. The first rank of a node does
/// it, for all drives that its ranks name, and keeps the profiles.
///
/// # Errors
/// The worst of any node, agreed; a signal ends it, too.
pub fn probe_nodes(
    comm: &dyn Communicator,
    roots: &[PathBuf],
    options: &ProbeOptions,
) -> Result<Vec<NodeProbe>> {
    let topology = Topology::discover(comm)?;
    let of_node = drives_of_node(comm, &topology, roots)?;
    let is_first = topology.local_ranks().next() == Some(comm.rank());
    let probed = if is_first { probe_node(comm, &of_node, options).map(Some) } else { Ok(None) };
    let all: Vec<Option<NodeProbe>> = gather_all(comm, &agree(comm, probed)?)?;
    Ok(all.into_iter().flatten().collect())
}

fn probe_node(
    comm: &dyn Communicator,
    roots: &[PathBuf],
    options: &ProbeOptions,
) -> Result<NodeProbe> {
    let mut trials = Vec::new();
    for root in roots {
        let (drive, _) = Drive::try_out(root, &options.allow_filesystems, "probe")?;
        tracing::info!("measuring {} for about {:.0} s", root.display(), 4.0 * options.seconds);
        let mut trial = Trial::open(drive, options)?;
        trial.measure(comm, options)?;
        trials.push(trial);
    }
    measure_together(comm, &mut trials, options)?;
    let mut drives: Vec<DriveProbe> = Vec::new();
    for trial in trials {
        let twin = drives.iter().find(|earlier| same_disk(&earlier.root, &trial.drive.root));
        let device = Device::of(&trial.drive.root).unwrap_or_default();
        let probe = DriveProbe {
            shares_device_with: twin.map(|twin| twin.root.clone()),
            device: device.name,
            filesystem: trial.drive.filesystem,
            root: trial.drive.root,
            is_direct: trial.is_direct,
            profile: trial.profile,
        };
        if options.saves {
            probe.profile.write(&probe.root)?;
        }
        drives.push(probe);
    }
    Ok(NodeProbe { host: comm.host().to_owned(), drives })
}

/// One drive with its file.
struct Trial {
    drive: Drive,
    file: std::fs::File,
    /// Blocks that have been written: only those are measured, because first writes are slower.
    blocks: u64,
    is_direct: bool,
    profile: DriveProfile,
}

impl Trial {
    fn open(drive: Drive, options: &ProbeOptions) -> Result<Self> {
        let fitting = FILE_BYTES.min(drive.free_bytes / 2);
        let file_bytes = options.file_bytes.unwrap_or(fitting);
        let blocks = (file_bytes / BLOCK_BYTES).max(2 * options.depth as u64);
        let file = scratch_file(&drive, blocks * BLOCK_BYTES)?;
        Ok(Self { drive, file, blocks, is_direct: true, profile: DriveProfile::default() })
    }

    fn measure(&mut self, comm: &dyn Communicator, options: &ProbeOptions) -> Result<()> {
        let mut loader = open_loader(std::slice::from_ref(self), options)?;
        let process_io = ProcessIo::open();
        let before = process_io.bytes();
        let lanes = [blocks_of_file(0, self.blocks)];
        let filled = run_load(comm, &mut loader, &lanes, LoadKind::Fill, options.seconds)?;
        // A slow drive has not got to the file's end; but no block is moved twice at once.
        self.blocks = filled.extents[0].max(options.depth as u64 + 1).min(self.blocks);
        let lanes = [blocks_of_file(0, self.blocks)];
        let mut moved = moved_bytes(&filled);
        let mut measure = |kind| {
            let result = run_load(comm, &mut loader, &lanes, kind, options.seconds)?;
            moved += moved_bytes(&result);
            Ok(result)
        };
        let (read, write) = (measure(LoadKind::Read)?, measure(LoadKind::Write)?);
        let (start, cpu_before) = (Instant::now(), cpu_seconds());
        let mixed = measure(LoadKind::Cycle)?;
        // The warm-up moves bytes as well.
        let moved_bytes = mixed.bytes_per_s() * start.elapsed().as_secs_f64();
        let cpu_ns_per_byte = (cpu_seconds() - cpu_before) * 1e9 / moved_bytes.max(1.0);
        let kernel = process_io.bytes() - before;
        let kernel_bytes = kernel.read_bytes + kernel.written_bytes;
        self.is_direct = kernel_bytes as f64 >= DIRECT_SHARE * moved as f64;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        self.profile = DriveProfile {
            read_bytes_per_s: read.bytes_per_s().round(),
            write_bytes_per_s: write.bytes_per_s().round(),
            mixed_bytes_per_s: mixed.bytes_per_s().round(),
            mixed_together_bytes_per_s: 0.0,
            spread: (spread(&mixed.slices) * 1e4).round() / 1e4,
            cpu_ns_per_byte: (cpu_ns_per_byte * 1e4).round() / 1e4,
            probed_at_unix_s: now.map_or(0, |now| now.as_secs()),
        };
        Ok(())
    }
}

/// All drives at once, each as it was measured by itself: what they share shows.
fn measure_together(
    comm: &dyn Communicator,
    trials: &mut [Trial],
    options: &ProbeOptions,
) -> Result<()> {
    if trials.len() < 2 {
        return Ok(());
    }
    let mut loader = open_loader(trials, options)?;
    let lanes: Vec<_> =
        (0u32..).zip(trials.iter()).map(|(file, it)| blocks_of_file(file, it.blocks)).collect();
    let result = run_load(comm, &mut loader, &lanes, LoadKind::Cycle, options.seconds)?;
    for (file, trial) in trials.iter_mut().enumerate() {
        trial.profile.mixed_together_bytes_per_s = result.file_bytes_per_s(file).round();
    }
    Ok(())
}

fn open_loader(trials: &[Trial], options: &ProbeOptions) -> Result<Loader> {
    let files = trials.iter().map(|trial| trial.file.try_clone());
    let files = files.collect::<std::io::Result<Vec<_>>>().map_err(|error| {
        Error::new(ErrorKind::Unavailable, "a file cannot be shared with the I/O engine")
            .because(error)
    })?;
    let depth = (options.depth * trials.len()).min(4096);
    let buffers = allocate_buffers(depth, BLOCK_BYTES as usize)?;
    let spec = EngineSpec { choice: options.engine, depth, files, faults: Vec::new() };
    Loader::open(spec, buffers, trials.iter().map(|trial| trial.drive.root.clone()).collect())
}

/// The first so many blocks of a file, each moved by an operation of its own.
pub(super) fn blocks_of_file(file: u32, blocks: u64) -> Vec<Vec<Part>> {
    let mut lane = Vec::new();
    for number in 0..blocks {
        let file_offset = number * BLOCK_BYTES;
        lane.push(vec![Part { file, file_offset, buffer_offset: 0, len: BLOCK_BYTES as usize }]);
    }
    lane
}

/// One load after a warm-up; a signal to stop is an error.
pub(super) fn run_load(
    comm: &dyn Communicator,
    loader: &mut Loader,
    lanes: &[Vec<Vec<Part>>],
    kind: LoadKind,
    seconds: f64,
) -> Result<LoadResult> {
    let warmup = if kind == LoadKind::Fill { 0.0 } else { WARMUP_SHARE * seconds };
    let result = loader.run(&Load {
        kind,
        lanes,
        warmup: Duration::from_secs_f64(warmup),
        duration: Duration::from_secs_f64(seconds),
        is_stopped: &|| stop_request().is_some(),
        // The other ranks of the node wait, and learn from this that this one works.
        on_progress: &|completed_ops| {
            if let Some(presence) = comm.presence() {
                presence.progress(completed_ops);
            }
        },
    })?;
    match stop_request() {
        None => Ok(result),
        Some(stop) => {
            let kind = match stop.name() {
                "SIGINT" => ErrorKind::Interrupted,
                _ => ErrorKind::Terminated,
            };
            Err(Error::new(kind, format!("{}: stopped, nothing is kept", stop.name())))
        }
    }
}

/// What all threads of this process have used of processors.
fn cpu_seconds() -> f64 {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}

fn moved_bytes(result: &LoadResult) -> u64 {
    result.files.iter().map(|file| file.read_bytes + file.written_bytes).sum()
}

/// Standard deviation over mean.
fn spread(samples: &[f64]) -> f64 {
    let count = samples.len().max(1) as f64;
    let mean = samples.iter().sum::<f64>() / count;
    let variance = samples.iter().map(|sample| (sample - mean).powi(2)).sum::<f64>() / count;
    if mean > 0.0 { variance.sqrt() / mean } else { 0.0 }
}
