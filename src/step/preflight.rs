//! Checks before anything is touched: the drives, the space on them summed over the ranks of a
//! node, living jobs of the same name, memory.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::plan::Plan;
use crate::config::memory_limit;
use crate::coord::{Communicator, Topology, agree, gather_all};
use crate::error::{Error, ErrorKind, Result};
use crate::storage::{Drive, ShardDirectory, inspect_drives};
use crate::units::Bytes;

/// What a rank wants of its node.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Demand {
    /// Device number and bytes, one entry per drive.
    drives: Vec<(u64, u64)>,
    memory_bytes: u64,
}

/// Collective: looks at everything and changes nothing. Gives this rank's shard directories.
///
/// # Errors
/// The worst problem of any rank, agreed.
pub(super) fn preflight(
    plan: &Plan,
    comm: &dyn Communicator,
    topology: &Topology,
) -> Result<Vec<ShardDirectory>> {
    let found = agree(comm, look_at_drives(plan, comm))?;
    let (drives, directories): (Vec<Drive>, Vec<ShardDirectory>) = found.into_iter().unzip();
    let needs = plan.placement().drive_bytes();
    let demand = Demand {
        drives: drives.iter().zip(needs).map(|(drive, need)| (drive.device, *need)).collect(),
        memory_bytes: (plan.buffer_count() * plan.buffer_bytes()) as u64,
    };
    // What a dead job of this name holds is free for us once it is removed.
    let reclaimable: Result<Vec<u64>> =
        directories.iter().map(ShardDirectory::reclaimable_bytes).collect();
    let reclaimable = agree(comm, reclaimable)?;
    let all = gather_all(comm, &(demand, drives_and_bytes(&drives, &reclaimable)))?;
    let local: Vec<_> = topology.local_ranks().map(|rank| &all[rank.index()]).collect();
    let checked = check_space(&drives, local.iter().map(|(demand, free)| (demand, free)))
        .and_then(|()| check_memory(local.iter().map(|(demand, _)| demand.memory_bytes).sum()));
    agree(comm, checked)?;
    Ok(directories)
}

type DriveBytes = Vec<(u64, u64)>;

fn drives_and_bytes(drives: &[Drive], bytes: &[u64]) -> DriveBytes {
    drives.iter().map(|drive| drive.device).zip(bytes.iter().copied()).collect()
}

fn look_at_drives(plan: &Plan, comm: &dyn Communicator) -> Result<Vec<(Drive, ShardDirectory)>> {
    let config = &plan.config().drives;
    let drives = inspect_drives(&config.paths, &config.allow_filesystems)?;
    let shard = comm.rank().0;
    let directory = |drive: &Drive| ShardDirectory::new(drive, &plan.config().job, shard);
    Ok(drives.into_iter().map(|drive| (drive.clone(), directory(&drive))).collect())
}

fn check_space<'a>(
    drives: &[Drive],
    local: impl Iterator<Item = (&'a Demand, &'a DriveBytes)>,
) -> Result<()> {
    let mut needed: BTreeMap<u64, u64> = BTreeMap::new();
    let mut reclaimable: BTreeMap<u64, u64> = BTreeMap::new();
    for (demand, dead) in local {
        for (device, bytes) in &demand.drives {
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
                .hint("free space on it, give it a smaller weight, or add drives"));
        }
    }
    Ok(())
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
