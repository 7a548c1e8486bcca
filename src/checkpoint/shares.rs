//! The parts of a manifest that ranks exchange: the entry of each rank's shard, and each inventory.

use super::manifest::{Manifest, OtherInventory};
use super::places::ShardEntry;
use crate::coord::{Communicator, Group, gather_all};
use crate::error::Result;
use crate::partition::Cut;
use crate::plan::Plan;
use crate::state::Parameter;

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
