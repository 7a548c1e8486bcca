//! Checks before anything is created: whether the drives of a node have space for all of its ranks,
//! whether another job claims a drive, and whether the memory suffices.

use std::collections::BTreeMap;

use crate::config::memory_limit;
use crate::coord::{Communicator, Topology, agree, gather_all};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::Plan;
use crate::storage::{Drive, ShardDirectory};
use crate::units::Bytes;

/// Device numbers and bytes, one entry per drive.
type DriveBytes = Vec<(u64, u64)>;

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
    let per_device = |bytes: &[u64]| -> DriveBytes {
        drives.iter().map(|drive| drive.device).zip(bytes.iter().copied()).collect()
    };
    let mine = (per_device(&plan.drive_bytes()), per_device(&reclaimable));
    let all: Vec<(DriveBytes, DriveBytes)> = gather_all(comm, &mine)?;
    let local = topology.local_ranks().map(|rank| &all[rank.index()]);
    agree(comm, compare_space(drives, local))?;
    Ok(directories)
}

fn compare_space<'a>(
    drives: &[Drive],
    local: impl Iterator<Item = &'a (DriveBytes, DriveBytes)>,
) -> Result<()> {
    let mut needed: BTreeMap<u64, u64> = BTreeMap::new();
    let mut reclaimable: BTreeMap<u64, u64> = BTreeMap::new();
    for (demand, dead) in local {
        for (device, bytes) in demand {
            *needed.entry(*device).or_default() += bytes;
        }
        for (device, bytes) in dead {
            *reclaimable.entry(*device).or_default() += bytes;
        }
    }
    for drive in drives {
        let need = needed.get(&drive.device).copied().unwrap_or(0);
        let free = drive.free_bytes + reclaimable.get(&drive.device).copied().unwrap_or(0);
        if need > free {
            return Err(Error::new(ErrorKind::CannotCreate, "the drive is too small")
                .with("drive", drive.root.display())
                .with("needed by this node's ranks", format!("{need} B = {}", Bytes(need).human()))
                .with("free", format!("{free} B = {}", Bytes(free).human()))
                .hint(
                    "free space on it, give it a smaller weight, lower \
                     drives.stripe_headroom, or add drives",
                ));
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

/// Collective: checks that the buffers of all ranks of a node fit its memory.
///
/// # Errors
/// Usage, agreed.
pub(super) fn check_node_memory(
    plan: &Plan,
    comm: &dyn Communicator,
    topology: &Topology,
) -> Result<()> {
    let all: Vec<u64> = gather_all(comm, &plan.memory_bytes())?;
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
