//! The resources of an optimizer on this rank: its files, buffers and threads.

use std::sync::Arc;

use super::super::durable::Durable;
use crate::config::{Config, FaultConfig};
use crate::coord::{Communicator, draw_id, gather_alike};
use crate::error::{Error, Result};
use crate::io::{Buffer, DriveMeters, EngineSpec, allocate_sized};
use crate::plan::Plan;
use crate::storage::{
    Drive, FoundShard, Owner, ShardDirectory, ShardFiles, ShardLayout, StateFile,
};
use crate::swap::{Overlap, SpillPort, Swapper, SwapperSpec};
use crate::timers::Tracer;

/// Room in a record's file for a caller's value; a longer one has room from its first commit on.
const RECORD_MORE_BYTES: u64 = 64 << 10;

/// Collective: a name for this creation of the job: a number above those of all creations that any
/// rank sees on its drives, and random bits. So names sort by creation, whatever the clocks say.
pub(super) fn draw_job_id(config: &Config, comm: &dyn Communicator) -> Result<String> {
    // What cannot be read here is about to be overwritten.
    let seen = FoundShard::all_on(&config.drives.paths, Some(&config.job)).unwrap_or_default();
    let number_of = |shard: &FoundShard| {
        let number = shard.layout.job_id.split('-').next().unwrap_or_default();
        u64::from_str_radix(number, 16).unwrap_or(0)
    };
    let newest = seen.iter().map(number_of).max().unwrap_or(0);
    let newest = gather_alike(comm, &newest)?.values().iter().copied().max().unwrap_or(0);
    Ok(format!("{:010x}-{}", newest.saturating_add(1), draw_id(comm)?))
}

pub(super) fn create_files(
    plan: &Plan,
    comm: &dyn Communicator,
    directories: Vec<ShardDirectory>,
    drives: &[Drive],
    job_id: &str,
) -> Result<ShardFiles> {
    let config = plan.config();
    let (rank, ranks) = (comm.rank().0, comm.size() as u32);
    let owner = Owner::this_process(&config.job, rank, ranks, comm.host(), config.drives.exclusive);
    let layout = config.is_durable().then(|| ShardLayout {
        job_id: job_id.to_owned(),
        job: config.job.clone(),
        shard: plan.shard(),
        shards: ranks,
        drive: 0,
        drives: config.drives.paths.clone(),
        weights: config.drive_weights(),
        stripe_headroom: config.drives.stripe_headroom,
        stripe_unit_bytes: config.drives.stripe_unit.0,
        chunk_elems: config.swap.chunk_elements.0,
        sub_group_elems: config.swap.sub_group_elements.0,
        tensors: plan.tensors().iter().map(|it| (it.name.clone().into_owned(), it.codec)).collect(),
        parameters: plan.inventory().parameters().to_vec(),
        group: plan.allotment().group,
        groups: plan.allotment().groups,
        cut: plan.allotment().cut.clone(),
    });
    let wanted = state_files(&plan.drive_bytes(), &directories, drives);
    let on_progress = progress_of(comm);
    let mut files =
        ShardFiles::create(directories, &wanted, &owner, layout.as_ref(), &on_progress)?;
    files.keep(config.drives.keep_files);
    Ok(files)
}

/// The state file of each directory, of so many bytes, opened as the trial of its drive has shown
/// that it can be.
pub(super) fn state_files(
    bytes: &[u64],
    directories: &[ShardDirectory],
    drives: &[Drive],
) -> Vec<StateFile> {
    let is_direct = |directory: &ShardDirectory| {
        let mut drives = drives.iter();
        drives.find(|drive| drive.root == directory.drive()).is_none_or(|drive| drive.is_direct)
    };
    let pairs = directories.iter().zip(bytes);
    let file = |(directory, bytes): (_, &u64)| StateFile {
        bytes: *bytes,
        is_direct: is_direct(directory),
    };
    pairs.map(file).collect()
}

/// Bytes that are written while files are created, as progress that the other ranks see.
pub(super) fn progress_of(comm: &dyn Communicator) -> impl Fn(u64) {
    let presence = comm.presence().cloned();
    move |bytes| {
        if let Some(presence) = &presence {
            presence.progress(bytes >> 20);
        }
    }
}

/// Removes what a dead job of this name has left on the drives: this rank's shard, and those of
/// ranks that the job no longer has.
pub(super) fn reclaim(config: &Config, ranks: u32, directories: &[ShardDirectory]) -> Result<()> {
    ShardFiles::reclaim(directories)?;
    let mut left = Vec::new();
    for drive in &config.drives.paths {
        left.extend(ShardDirectory::all_on(drive, Some(&config.job))?);
    }
    left.retain(|shard| shard.shard() >= ranks);
    ShardDirectory::remove_all_dead(&left)
}

/// The records of a durable job.
///
/// # Errors
/// Cannot create.
pub(in crate::step) fn open_records(
    plan: &Plan,
    files: &ShardFiles,
    job_id: &str,
    comes_back: bool,
) -> Result<Option<Durable>> {
    if !plan.config().is_durable() {
        return Ok(None);
    }
    let records = files.records(!comes_back, record_bytes(plan))?;
    Ok(Some(Durable::new(records, job_id.to_owned())))
}

/// Bytes of the longest record, when every chunk has moved, with some for a caller's value. Numbers
/// of 32 bits take up to five bytes, those of 64 bits nine.
fn record_bytes(plan: &Plan) -> u64 {
    let chunks = plan.partition().chunks().len() as u64;
    let pieces = plan.partition().pieces().len() as u64;
    let bytes = plan.placement().drive_bytes();
    let units = bytes.iter().sum::<u64>() / plan.config().drives.stripe_unit.0;
    let of_chunk = 2 + plan.sums_per_chunk() as u64;
    5 * (chunks * of_chunk + units) + 9 * (pieces + bytes.len() as u64) + RECORD_MORE_BYTES
}

/// The threads of a rank, and the buffers that they work with.
pub(in crate::step) struct Threads {
    pub swapper: Swapper,
    pub spills: SpillPort,
    /// For gradients that stay in memory, a buffer for each chunk.
    pub resident: Vec<Buffer>,
    pub pool: Arc<rayon::ThreadPool>,
    /// Address and length of the mapping that all buffers lie in.
    pub arena: (usize, usize),
}

/// Allocates buffers, and starts the I/O thread and the update threads.
///
/// # Errors
/// Unavailable: no engine can be opened, no thread started, or no memory had.
pub(in crate::step) fn open_threads(
    plan: &Plan,
    comm: &dyn Communicator,
    files: &ShardFiles,
    meters: &Arc<DriveMeters>,
    tracer: &Arc<Tracer>,
) -> Result<Threads> {
    let config = plan.config();
    let gradients = plan.gradients();
    let mut sizes = vec![
        (plan.buffer_count(), plan.buffer_bytes()),
        (gradients.buffers(), gradients.buffer_bytes()),
    ];
    sizes.extend((0..gradients.resident_chunks()).map(|chunk| (1, plan.gradient_bytes(chunk))));
    let mut buffers = allocate_sized(&sizes)?;
    let arena = buffers.first().map_or((0, 0), Buffer::arena);
    let resident = buffers.split_off(plan.buffer_count() + gradients.buffers());
    let faults = config.faults.iter().filter(|fault| fault.rank == comm.rank().0);
    let faults: Vec<FaultConfig> = faults.copied().collect();
    let (swapper, spills) = Swapper::open(SwapperSpec {
        engine: EngineSpec {
            choice: config.io.engine,
            depth: config.io.depth,
            files: files.handles()?,
            faults,
        },
        paths: files.paths(),
        placement: Arc::clone(plan.placement()),
        meters: Arc::clone(meters),
        sub_groups: plan.sub_groups(),
        swap_in_bytes: plan.swap_in_bytes(),
        pinned: plan.cached_chunks(),
        overlap: Overlap {
            ahead: config.swap.prefetch,
            read: config.swap.pipeline_read,
            write: config.swap.pipeline_write,
        },
        reads_whole: !(plan.is_halved() && config.is_durable()),
        buffers,
        gradient_buffers: gradients.buffers(),
        gradient_placement: gradients.placement().cloned(),
        io_timeout: config.io_timeout(),
        on_progress: match comm.presence().cloned() {
            Some(presence) => Box::new(move |completed_ops| presence.progress(completed_ops)),
            None => Box::new(|_| ()),
        },
        tracer: Arc::clone(tracer),
        describe: plan.describer(),
    })?;
    Ok(Threads { swapper, spills, resident, pool: Arc::new(update_pool()?), arena })
}

/// A pool of this rank's own, as large as its share of processors (the affinity mask).
fn update_pool() -> Result<rayon::ThreadPool> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("optswap-cpu{index}"))
        .build()
        .map_err(|error| {
            Error::no_thread("update threads cannot be started", error).with("threads", threads)
        })
}
