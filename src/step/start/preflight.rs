//! Checks before anything is created: whether the drives of a node have space for all of its ranks,
//! whether another job claims a drive, and whether the memory suffices.

use std::collections::BTreeMap;

use crate::config::{Config, memory_limit, open_files};
use crate::coord::{Communicator, Topology, agree, gather_alike, gather_all};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{Plan, ShardSize};
use crate::storage::{Drive, ShardDirectory, check_file_size};
use crate::units::Bytes;

/// Device numbers and bytes, one entry per drive.
type DriveBytes = Vec<(u64, u64)>;

/// A drive's state file is open for the job and for its engine.
const FILES_OF_DRIVE: u64 = 2;
/// Records, metrics, the engine's own, and directories while they are looked at.
const FILES_BESIDE: u64 = 24;

/// Files and directories that a rank has on a drive.
const INODES_OF_RANK: u64 = 6;

/// Collective: checks that the drives could hold the shards of this node's ranks at all, if nothing
/// but this job were on them: a coarse check before tables are built. [`check_space`] follows.
/// Changes nothing.
///
/// # Errors
/// Cannot create, with what is needed and what is free; unavailable if a directory cannot be read.
/// Agreed.
pub(super) fn check_size(
    config: &Config,
    size: &ShardSize,
    drives: &[Drive],
    comm: &dyn Communicator,
    topology: &Topology,
) -> Result<()> {
    let mine = per_device(drives, &size.drive_bytes());
    let all = gather_alike(comm, &mine)?;
    let needed = totals(topology.local_ranks().filter_map(|rank| all.of(rank)));
    // A job that goes on has its files already, under whatever number.
    let allocated = |drive: &Drive| {
        let shards = ShardDirectory::all_on(&drive.root, Some(&config.job))?;
        Ok(shards.iter().map(ShardDirectory::allocated_bytes).sum())
    };
    let allocated: Result<Vec<u64>> = drives.iter().map(allocated).collect();
    let taken = totals([&per_device(drives, &agree(comm, allocated)?)].into_iter());
    let fit = |drive: &Drive| fits(drive, of(&needed, drive), of(&taken, drive));
    agree(comm, drives.iter().try_for_each(fit))
}

/// Checks that the files of a job on so many drives may be open at the same time.
///
/// # Errors
/// Unavailable, with the limit and what is open now.
pub(super) fn check_open_files(drives: usize) -> Result<()> {
    let needed = FILES_OF_DRIVE * drives as u64 + FILES_BESIDE;
    match open_files() {
        Some((limit, open)) if open + needed > limit => {
            Err(Error::new(ErrorKind::Unavailable, "this process may open too few files")
                .with("needed", needed)
                .with("open now", open)
                .with("limit", limit)
                .hint("raise the limit of open files (ulimit -n)"))
        }
        _ => Ok(()),
    }
}

/// Bytes of each drive, with the number of its device.
fn per_device(drives: &[Drive], bytes: &[u64]) -> DriveBytes {
    drives.iter().map(|drive| drive.device).zip(bytes.iter().copied()).collect()
}

/// The bytes of each device.
fn totals<'a>(of_ranks: impl Iterator<Item = &'a DriveBytes>) -> BTreeMap<u64, u64> {
    let mut totals = BTreeMap::new();
    for (device, bytes) in of_ranks.flatten() {
        *totals.entry(*device).or_default() += bytes;
    }
    totals
}

fn of(totals: &BTreeMap<u64, u64>, drive: &Drive) -> u64 {
    totals.get(&drive.device).copied().unwrap_or(0)
}

/// An error if a drive has less room than is needed. `reclaimable` is what will be free.
fn fits(drive: &Drive, need: u64, reclaimable: u64) -> Result<()> {
    let need = if drive.overwrites_in_place { need } else { need.saturating_mul(2) };
    let free = drive.free_bytes + reclaimable;
    if need <= free {
        return Ok(());
    }
    let error = Error::new(ErrorKind::CannotCreate, "the drive is too small")
        .with("drive", drive.root.display())
        .with("needed by this node's ranks", format!("{need} B = {}", Bytes(need).human()))
        .with("free", format!("{free} B = {}", Bytes(free).human()));
    if drive.overwrites_in_place {
        return Err(error.hint(
            "free space on it, give it a smaller weight, lower drives.stripe_headroom, or add \
             drives",
        ));
    }
    Err(error.with("file system", &drive.filesystem).hint(
        "this file system writes what is overwritten to new places, so twice the space is \
         needed: free space, add drives, or use one that overwrites in place, such as xfs or ext4",
    ))
}

/// Collective: checks that the drives have room for a new job, and changes nothing. Returns this
/// rank's shard directories.
///
/// # Errors
/// The worst problem of any rank, agreed.
pub(super) fn check_space(
    plan: &Plan,
    drives: &[Drive],
    comm: &dyn Communicator,
    topology: &Topology,
) -> Result<Vec<ShardDirectory>> {
    let directory =
        |drive: &Drive| ShardDirectory::new(&drive.root, &plan.config().job, plan.shard());
    let directories: Vec<ShardDirectory> = drives.iter().map(directory).collect();
    let files = directories.iter().zip(plan.drive_bytes());
    let mut files = files.map(|(it, bytes)| check_file_size(&it.state_path(), bytes));
    agree(comm, files.try_for_each(|checked| checked))?;
    // What a dead job of this name holds is free for us once it is removed.
    let reclaimable: Result<Vec<u64>> =
        directories.iter().map(ShardDirectory::reclaimable_bytes).collect();
    let mut reclaimable = agree(comm, reclaimable)?;
    // So is what is left of ranks that the job no longer has. One rank of the node counts it.
    if topology.local_ranks().next() == Some(comm.rank()) {
        for (drive, bytes) in drives.iter().zip(&mut reclaimable) {
            let shards = ShardDirectory::all_on(&drive.root, Some(&plan.config().job));
            let surplus = shards.unwrap_or_default().into_iter();
            let surplus = surplus.filter(|it| it.shard() as usize >= comm.size());
            *bytes += surplus.map(|shard| shard.allocated_bytes()).sum::<u64>();
        }
    }
    let mine = (per_device(drives, &plan.drive_bytes()), per_device(drives, &reclaimable));
    let all = gather_alike(comm, &mine)?;
    let local: Vec<_> = topology.local_ranks().filter_map(|rank| all.of(rank)).collect();
    agree(comm, compare_space(drives, &local))?;
    Ok(directories)
}

fn compare_space(drives: &[Drive], local: &[&(DriveBytes, DriveBytes)]) -> Result<()> {
    let needed = totals(local.iter().map(|(demand, _)| demand));
    let reclaimable = totals(local.iter().map(|(_, dead)| dead));
    for drive in drives {
        let taken = of(&reclaimable, drive);
        fits(drive, of(&needed, drive), taken)?;
        let inodes = INODES_OF_RANK * local.len() as u64;
        if let Some(free) = drive.free_inodes.filter(|free| *free < inodes && taken == 0) {
            return Err(Error::new(ErrorKind::CannotCreate, "the drive has too few free inodes")
                .with("drive", drive.root.display())
                .with("needed by this node's ranks", inodes)
                .with("free", free)
                .hint("remove small files on it, or make its file system with more inodes"));
        }
    }
    Ok(())
}

/// An error if another job is alive on these drives and one of the two has `drives.exclusive` set.
/// This is checked after this job's own files are locked, so that two jobs that start at the same
/// time see each other.
pub(super) fn neighbours(plan: &Plan) -> Result<()> {
    let config = plan.config();
    for drive in &config.drives.paths {
        for other in ShardDirectory::all_on(drive, None)? {
            let owner = other.owner().filter(|owner| owner.job != config.job);
            let Some(owner) = owner else { continue };
            if (config.drives.exclusive || owner.exclusive) && other.is_alive() {
                let who = if owner.exclusive { "that job" } else { "this job" };
                return Err(Error::new(ErrorKind::Unavailable, "another job lives on this drive")
                    .with("drive", drive.display())
                    .with("job", &owner.job)
                    .with("host", &owner.host)
                    .with("process", owner.pid)
                    .hint(format!("{who} has drives.exclusive set; wait, or use other drives")));
            }
        }
    }
    Ok(())
}

/// Collective: checks that the buffers and tables of all ranks of a node fit its memory.
///
/// # Errors
/// Usage, agreed.
pub(super) fn check_node_memory(
    plan: &Plan,
    comm: &dyn Communicator,
    topology: &Topology,
) -> Result<()> {
    let all: Vec<u64> = gather_all(comm, &(plan.memory_bytes() + plan.table_bytes()))?;
    let needed = topology.local_ranks().map(|rank| all[rank.index()]).sum();
    agree(comm, check_memory(needed))
}

fn check_memory(needed_bytes: u64) -> Result<()> {
    let Some((limit, source)) = memory_limit() else { return Ok(()) };
    if needed_bytes <= limit.0 {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Usage, "the I/O buffers of this node's ranks exceed its memory")
        .with("needed", Bytes(needed_bytes).human())
        .with(source, limit.human())
        .hint("lower --memory-budget: it is per rank"))
}
