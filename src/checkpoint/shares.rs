//! The parts of a manifest that ranks exchange: update counts, the entry of each rank's shard, and
//! each inventory.

use super::manifest::{Manifest, OtherInventory};
use super::places::ShardEntry;
use crate::coord::{Communicator, Group, agree, gather_to_first};
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
    let counts = join_update_counts(sharing, inventory, &counts.collect::<Vec<_>>())?;
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

type SentInventory = (u32, Vec<Parameter>, Vec<u64>, Vec<Sent>);

/// Collective: the manifest with the entries of all ranks and all inventories, on rank 0, which
/// writes it. Each rank brings its own shard's entry and the manifest of its own inventory.
///
/// # Errors
/// Peer, not agreed, if another rank does not come in time.
pub fn complete_manifest(
    mut manifest: Manifest,
    entry: ShardEntry,
    group: &Group,
    world: &dyn Communicator,
) -> Result<Option<Manifest>> {
    let of_group = gather_to_first(&**group.communicator(), &sent(entry))?;
    let mine = of_group.map(|mut shards: Vec<Sent>| {
        if shards.iter().all(|(.., pieces)| pieces.is_empty()) {
            shards.sort_by_key(|(_, flat_start, elems, ..)| (*flat_start, *elems));
        }
        (group.number(), manifest.parameters.clone(), manifest.update_counts.clone(), shards)
    });
    let all: Option<Vec<Option<SentInventory>>> = gather_to_first(world, &mine)?;
    let Some(all) = all else { return Ok(None) };
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
    Ok(Some(manifest))
}

/// Collective within a group: the update count of every parameter, from what the ranks that hold a
/// part of it have counted. Costs 16 bytes for each parameter, however many ranks there are. The
/// outer result is of communication.
///
/// # Errors
/// Internal, naming the parameter, if this rank has counted otherwise than all do on average: if
/// ranks disagree, at least one of them has.
pub fn join_update_counts(
    comm: &dyn Communicator,
    inventory: &Inventory,
    counted: &[(ParamIndex, u64)],
) -> Result<Result<Vec<u64>>> {
    let params = inventory.parameters().len();
    // How many have counted, and the sum of what they have.
    let mut sums = vec![0; 2 * params];
    for (param, count) in counted {
        sums[param.index()] += 1;
        sums[params + param.index()] = count.wrapping_add(sums[params + param.index()]);
    }
    comm.all_reduce_sum(&mut sums)?;
    let (holders, sums) = sums.split_at(params);
    for (param, count) in counted {
        let (holders, sum) = (holders[param.index()], sums[param.index()]);
        if count.wrapping_mul(holders) != sum {
            return Ok(Err(Error::internal("ranks disagree about the updates of a parameter")
                .with("parameter", &inventory.parameter(*param).name)
                .with("updates", format!("{count} here, {sum} on {holders} together"))
                .hint("hand its gradient over on all ranks that hold a part, or on none")));
        }
    }
    let mean = |(holders, sum): (&u64, &u64)| sum.checked_div(*holders).unwrap_or(0);
    Ok(Ok(holders.iter().zip(sums).map(mean).collect()))
}
