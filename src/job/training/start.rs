//! Where a job is the furthest: on its drives, or at a checkpoint.

use std::path::PathBuf;
use std::sync::Arc;

use crate::checkpoint::Checkpoints;
use crate::config::Config;
use crate::coord::{Communicator, Group};
use crate::error::{Error, ErrorKind, Result};
use crate::state::Inventory;
use crate::step::{CreateOptions, Existing, Sharding, SwappedOptimizer};

/// Opens the optimizer where the job is the furthest. If that is a checkpoint, new files are
/// created on the drives, and the directory of the checkpoint is returned as well.
pub(super) fn open_furthest(
    config: &Config,
    inventory: &Inventory,
    sharding: &Sharding,
    comm: &Arc<dyn Communicator>,
    checkpoints: Option<&Checkpoints>,
) -> Result<(SwappedOptimizer, Option<PathBuf>)> {
    let newest = checkpoints.map_or(Ok(None), Checkpoints::newest)?;
    let create = |existing| {
        let options = CreateOptions { sharding: sharding.clone(), existing };
        SwappedOptimizer::create(config, inventory.clone(), Arc::clone(comm), options)
    };
    let created = create(Existing::GoOn);
    let (Some(checkpoints), Some((saved_step, newest))) = (checkpoints, newest) else {
        return Ok((created?, None));
    };
    let why = match &created {
        Ok(optimizer) => match optimizer.resumed() {
            None => return Ok((created?, Some(newest))),
            Some(resumed) if resumed.attempt >= saved_step => return Ok((created?, None)),
            Some(resumed) => format!("the drives have step {} only", resumed.attempt),
        },
        Err(error) if can_be_replaced(error) => error.sentence(),
        Err(_) => return Ok((created?, None)),
    };
    // Nothing on the drives is removed before it is known that the checkpoint can be loaded.
    let on_drives = created.as_ref().ok().and_then(SwappedOptimizer::resumed);
    let reached = on_drives.map(|resumed| resumed.attempt);
    let group = Group::discover(comm, sharding.shared.clone())?;
    let whole = checkpoints.newest_whole(inventory, &group)?;
    match whole.filter(|(saved_step, _)| reached.is_none_or(|reached| *saved_step > reached)) {
        None => Ok((created?, None)),
        Some((saved_step, directory)) => {
            drop(created);
            let path = directory.display();
            tracing::warn!("{why}\n  checkpoint {path} of step {saved_step} takes their place");
            Ok((create(Existing::Overwrite)?, Some(directory)))
        }
    }
}

/// Whether a checkpoint may take the place of what is on the drives.
fn can_be_replaced(error: &Error) -> bool {
    error.is_agreed() && matches!(error.kind(), ErrorKind::StateUnavailable | ErrorKind::StateLost)
}
