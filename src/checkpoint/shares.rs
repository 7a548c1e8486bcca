//! The parts of a manifest that ranks exchange: update counts, the entry of each rank's shard, and
//! each inventory.

use super::manifest::{Manifest, OtherInventory};
use super::places::ShardEntry;
use crate::coord::{Communicator, Group, agree, gather_all};
use crate::error::{Error, Result};
use crate::partition::Cut;
use crate::plan::Plan;
use crate::state::{Codec, Inventory, Parameter, StateTensor};
use crate::step::SwappedOptimizer;
use crate::units::ParamIndex;

/// Collective: the manifest of this rank's inventory, without shards yet.
pub(super) fn manifest_of(
    optimizer: &SwappedOptimizer,
    job: &str,
    generation: String,
) -> Result<Manifest> {
    let inventory = optimizer.plan().inventory();
    let pieces = optimizer.partition().pieces().iter();
    let counts = pieces.map(|piece| (piece.param, optimizer.update_count(piece.param)));
    let sharing = &**optimizer.shard_group().communicator();
    let counts = gather_all(sharing, &counts.collect::<Vec<_>>())?;
    let counts = join_update_counts(inventory, counts.concat());
    Ok(Manifest {
        job: job.to_owned(),
        generation,
        attempts: optimizer.attempts(),
        parameters: inventory.parameters().to_vec(),
        update_counts: agree(&**optimizer.communicator(), counts)?,
        tensors: optimizer.plan().tensors().iter().map(in_manifest).collect(),
        groups: optimizer.param_groups().to_vec(),
        loss_scale: optimizer.loss_scale(),
        loss_scaler: Some(optimizer.loss_scaler().state()),
        saved_by: None,
        user_blobs_differ: false,
        user_blob: None,
        shards: Vec::new(),
        others: Vec::new(),
    })
}

/// The update count of every parameter, from what the ranks that hold a part of it have counted.
///
/// # Errors
/// Internal, naming the parameter, if ranks have counted differently.
fn join_update_counts(inventory: &Inventory, counted: Vec<(ParamIndex, u64)>) -> Result<Vec<u64>> {
    let mut counts = vec![None; inventory.parameters().len()];
    for (param, count) in counted {
        let known = *counts[param.index()].get_or_insert(count);
        if known != count {
            return Err(Error::internal("ranks disagree about the updates of a parameter")
                .with("parameter", &inventory.parameter(param).name)
                .with("updates", format!("{known} and {count}"))
                .hint("hand its gradient over on all ranks that hold a part, or on none"));
        }
    }
    Ok(counts.into_iter().map(Option::unwrap_or_default).collect())
}

/// A state tensor as a manifest names it.
fn in_manifest(tensor: &StateTensor) -> (String, Codec) {
    (tensor.name.clone().into_owned(), tensor.codec)
}

/// The shard's pieces as ranges of the flat space; none with the default cut.
pub(super) fn flat_pieces(plan: &Plan) -> Vec<[u64; 2]> {
    let (inventory, pieces) = (plan.inventory(), plan.partition().pieces().iter());
    match plan.allotment().cut {
        Cut::Contiguous { .. } => Vec::new(),
        Cut::Own(_) => pieces
            .map(|piece| [inventory.flat_of(piece.param, piece.param_offset), piece.elems])
            .collect(),
    }
}

/// An entry as ranks exchange it. A [`ShardEntry`] leaves out empty fields, which the encoding of
/// messages does not allow.
type Sent = (String, u64, u64, u64, Vec<[u64; 2]>);

fn sent(entry: ShardEntry) -> Sent {
    (entry.file, entry.flat_start, entry.elems, entry.bytes, entry.pieces)
}

fn received((file, flat_start, elems, bytes, pieces): Sent) -> ShardEntry {
    ShardEntry { file, flat_start, elems, bytes, pieces }
}

/// Collective: the entries of all ranks.
pub(super) fn gather_entries(
    comm: &dyn Communicator,
    entry: ShardEntry,
) -> Result<Vec<ShardEntry>> {
    Ok(gather_all(comm, &sent(entry))?.into_iter().map(received).collect())
}

type SentInventory = (u32, Vec<Parameter>, Vec<u64>, Vec<Sent>);

/// Collective: turns a manifest of this rank's own inventory into one of all inventories.
pub(super) fn with_others(
    mut manifest: Manifest,
    group: &Group,
    world: &dyn Communicator,
) -> Result<Manifest> {
    if group.count() == 1 {
        return Ok(manifest);
    }
    let mine = (group.communicator().rank().0 == 0).then(|| {
        let shards: Vec<Sent> = manifest.shards.iter().cloned().map(sent).collect();
        (group.number(), manifest.parameters.clone(), manifest.update_counts.clone(), shards)
    });
    let all: Vec<Option<SentInventory>> = gather_all(world, &mine)?;
    let mut all: Vec<SentInventory> = all.into_iter().flatten().collect();
    all.sort_by_key(|(number, ..)| *number);
    let mut inventories = all.into_iter().map(|(_, parameters, update_counts, shards)| {
        let shards = shards.into_iter().map(received).collect();
        OtherInventory { parameters, update_counts, shards }
    });
    if let Some(first) = inventories.next() {
        manifest.parameters = first.parameters;
        manifest.update_counts = first.update_counts;
        manifest.shards = first.shards;
    }
    manifest.others = inventories.collect();
    Ok(manifest)
}
