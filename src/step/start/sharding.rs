//! How parameters are dealt to ranks: what the caller asks for, and how the ranks compare that
//! before anything is created.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::super::co_owned::CoOwned;
use crate::config::Config;
use crate::coord::{Communicator, Group, agree, gather_all};
use crate::error::{Error, Result};
use crate::partition::{Allotment, Cut, Piece, check_cover, check_pieces};
use crate::state::{Codec, Inventory, Parameter, Rounding};
use crate::units::{ParamIndex, Rank};
use crate::wire;

/// Which elements of its inventory a rank owns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Shards {
    /// The default cut: one contiguous range for each rank, at multiples of 4,096 elements of all
    /// parameters end to end.
    #[default]
    Contiguous,
    /// A slice of every parameter for each rank, in the order of ranks, as FSDP and ZeRO-3 have it:
    /// each of the parameter's elements divided by the number of ranks, rounded up; the last ranks
    /// may have fewer or none.
    Slices,
    /// These pieces, in this order. Together, the ranks that share an inventory have every element
    /// once, or at least once if its parameter is replicated.
    Own(Vec<Piece>),
}

/// How parameters are dealt to ranks. The default: all ranks share one inventory, and each has a
/// contiguous range of it.
#[derive(Clone, Default)]
pub struct Sharding {
    /// This rank's part of its inventory.
    pub shards: Shards,
    /// The communicator of the ranks that share this rank's inventory; all ranks share one if
    /// `None`.
    pub shared: Option<Arc<dyn Communicator>>,
}

impl Sharding {
    /// A slice of every parameter for each rank: [`Shards::Slices`].
    pub fn slices() -> Self {
        Self { shards: Shards::Slices, shared: None }
    }

    /// These pieces for this rank: [`Shards::Own`].
    pub fn own(pieces: Vec<Piece>) -> Self {
        Self { shards: Shards::Own(pieces), shared: None }
    }

    /// The same sharding of an inventory that only the ranks of this communicator share.
    /// [`Communicator::split`] of the communicator of all ranks makes one.
    #[must_use]
    pub fn among(self, shared: Arc<dyn Communicator>) -> Self {
        Self { shared: Some(shared), ..self }
    }
}

/// What the ranks have found out about each other.
#[derive(Clone)]
pub(super) struct Dealt {
    pub group: Group,
    pub cut: Cut,
    pub uncounted: Vec<Piece>,
    /// Where ranks bring pieces of their own: the parameters that other ranks have parts of too.
    pub co_owned: CoOwned,
    /// What every rank of the world brings, to be compared with what lies on the drives.
    pub expected: Vec<Expected>,
}

/// The group, inventory and cut of one rank.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Expected {
    pub group: u32,
    /// Digest of its inventory.
    pub inventory: String,
    /// [`Cut::fingerprint`]
    pub cut: u64,
}

impl Dealt {
    /// The allotment of a rank, where rank r takes the shard with number `shards[r]`.
    pub fn allot(&self, shards: &[u32], rank: Rank) -> Allotment {
        let ranks = self.group.ranks();
        let part_of = |shard: u32| ranks.iter().position(|rank| rank.0 == shard).unwrap_or(0);
        let parts: Vec<u32> =
            ranks.iter().map(|rank| part_of(shards[rank.index()]) as u32).collect();
        let shard = shards[rank.index()];
        let (cut, parts) = match &self.cut {
            Cut::Contiguous { parts: count, .. } => {
                (Cut::Contiguous { part: part_of(shard) as u32, parts: *count }, parts)
            }
            own @ Cut::Own(_) => (own.clone(), Vec::new()),
        };
        Allotment {
            shard,
            shards: shards.len() as u32,
            group: self.group.number(),
            groups: self.group.count(),
            cut,
            parts,
            uncounted: self.uncounted.clone(),
        }
    }
}

/// Collective: compares inventories and pieces where they are shared, and replicated parameters
/// everywhere. Touches nothing.
///
/// # Errors
/// Usage, agreed: inventories that differ where they should not, with the first difference; pieces
/// that are wrong, overlap or leave gaps; replicas that do not agree.
pub(super) fn deal(
    inventory: &Inventory,
    sharding: &Sharding,
    comm: &Arc<dyn Communicator>,
) -> Result<Dealt> {
    let group = Group::discover(comm, sharding.shared.clone())?;
    agree(&**comm, compare_inventories(inventory, &sharding.shards, &group)?)?;
    let (cut, mut uncounted, co_owned) = match &sharding.shards {
        Shards::Contiguous => {
            (agree(&**comm, Ok(contiguous(&group)))?, Vec::new(), CoOwned::default())
        }
        Shards::Slices => agree(&**comm, own_cut(inventory, &slices(inventory, &group), &group)?)?,
        Shards::Own(pieces) => agree(&**comm, own_cut(inventory, pieces, &group)?)?,
    };
    let elsewhere = agree(&**comm, copies_elsewhere(inventory, &group, &**comm)?)?;
    uncounted.extend(elsewhere);
    let mine =
        Expected { group: group.number(), inventory: inventory.digest(), cut: cut.fingerprint() };
    let expected = gather_all(&**comm, &mine)?;
    Ok(Dealt { group, cut, uncounted, co_owned, expected })
}

/// Collective within the group: the cut of these pieces, those of its elements that count in the
/// norm as another rank's, and the parameters that other ranks have parts of. The outer result is
/// of communication.
fn own_cut(
    inventory: &Inventory,
    pieces: &[Piece],
    group: &Group,
) -> Result<Result<(Cut, Vec<Piece>, CoOwned)>> {
    let pieces = check_pieces(inventory, pieces);
    let comm = &**group.communicator();
    let all = gather_all(comm, &pieces.as_ref().ok().cloned())?;
    let all: Option<Vec<Vec<Piece>>> = all.into_iter().collect();
    Ok(pieces.and_then(|pieces| {
        // Without all, another rank's pieces are wrong, and its error is the one that all get.
        let Some(all) = &all else { return Ok((Cut::Own(pieces), Vec::new(), CoOwned::default())) };
        let me = comm.rank().index();
        let copies = check_cover(inventory, group.ranks(), all)?.swap_remove(me);
        Ok((Cut::Own(pieces), copies, CoOwned::of_pieces(all, me, group.number())))
    }))
}

/// This rank's slice of every parameter.
fn slices(inventory: &Inventory, group: &Group) -> Vec<Piece> {
    let comm = group.communicator();
    let (rank, ranks) = (u64::from(comm.rank().0), comm.size() as u64);
    let params = (0..inventory.parameters().len()).map(ParamIndex::from_index);
    let slice = |param| {
        let elems = inventory.elems(param);
        let share = elems.div_ceil(ranks);
        let (start, end) = (elems.min(share * rank), elems.min(share * (rank + 1)));
        Piece::new(param, start, end - start)
    };
    params.map(slice).filter(|piece| piece.elems > 0).collect()
}

fn contiguous(group: &Group) -> Cut {
    let comm = group.communicator();
    Cut::Contiguous { part: comm.rank().0, parts: comm.size() as u32 }
}

/// Warns in the log that with lossy codecs copies of a parameter in different inventories drift
/// apart, since their neighbours differ.
pub(super) fn warn_of_drift(config: &Config, inventory: &Inventory, group: &Group) {
    let rounds_at_random = config.codecs.rounding == Rounding::Stochastic;
    let differs = |codec| codec == Codec::Int8 || (codec == Codec::Bf16 && rounds_at_random);
    let is_lossy = config.state_tensors().iter().any(|tensor| differs(tensor.codec));
    let has_copies = inventory.parameters().iter().any(|parameter| parameter.replicated);
    if group.count() > 1 && has_copies && is_lossy {
        tracing::warn!(
            "copies of replicated parameters in different inventories will differ in their last \
             bits: int8 shares a scale with neighbours, and random rounding differs between shards"
        );
    }
}

/// Collective within the group: whether all have the same inventory, and the same kind of shards.
/// The outer result is of communication.
fn compare_inventories(
    inventory: &Inventory,
    shards: &Shards,
    group: &Group,
) -> Result<Result<()>> {
    let comm = &**group.communicator();
    let is_own = !matches!(shards, Shards::Contiguous);
    let mine = (xxh3_64(&wire::encode(&inventory.parameters().to_vec())?), is_own);
    let all: Vec<(u64, bool)> = gather_all(comm, &mine)?;
    if all.iter().any(|(digest, _)| *digest != all[0].0) {
        let inventories: Vec<Vec<Parameter>> = gather_all(comm, &inventory.parameters().to_vec())?;
        return Ok(Err(first_difference(&inventories, group.ranks())));
    }
    let owners = ranks_where(group.ranks(), |index| all[index].1);
    if all.iter().all(|(_, is_own)| *is_own == all[0].1) {
        return Ok(Ok(()));
    }
    Ok(Err(Error::usage("only some of the ranks that share an inventory bring pieces")
        .with("ranks that do", owners)
        .hint("a rank without elements brings an empty list of pieces")))
}

/// Which parameter is the first that differs between ranks, and who has what there.
fn first_difference(inventories: &[Vec<Parameter>], ranks: &[Rank]) -> Error {
    let longest = inventories.iter().map(Vec::len).max().unwrap_or(0);
    let differs = |at: &usize| inventories.iter().any(|it| it.get(*at) != inventories[0].get(*at));
    let first = (0..longest).find(differs).unwrap_or(0);
    let mut seen: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (index, inventory) in inventories.iter().enumerate() {
        let what = inventory.get(first).map_or("no such parameter".to_owned(), describe);
        seen.entry(what).or_default().push(index);
    }
    let mut seen: Vec<(Vec<usize>, String)> = seen.into_iter().map(|(a, b)| (b, a)).collect();
    seen.sort();
    let error = Error::usage("ranks that should share an inventory have different ones")
        .with("first difference", format!("parameter {first}"));
    let error = seen.into_iter().fold(error, |error, (indices, what)| {
        let who = ranks_where(ranks, |index| indices.contains(&index));
        error.with(if indices.len() == 1 { "rank" } else { "ranks" }, format!("{who}: {what}"))
    });
    error.hint("build it alike on all of them, or name those who share one: Sharding::among")
}

fn describe(parameter: &Parameter) -> String {
    let mut text = format!("{} {:?}", parameter.name, parameter.shape);
    if parameter.group > 0 {
        text += &format!(", group {}", parameter.group);
    }
    if parameter.replicated {
        text += ", replicated";
    }
    text
}

fn ranks_where(ranks: &[Rank], holds: impl Fn(usize) -> bool) -> String {
    let chosen = ranks.iter().enumerate().filter(|(index, _)| holds(*index));
    chosen.map(|(_, rank)| rank.0.to_string()).collect::<Vec<_>>().join(", ")
}

/// Collective: the parameters of this inventory that count in the norm as those of another, whole.
/// The outer result is of communication.
fn copies_elsewhere(
    inventory: &Inventory,
    group: &Group,
    comm: &dyn Communicator,
) -> Result<Result<Vec<Piece>>> {
    if group.count() == 1 {
        return Ok(Ok(Vec::new()));
    }
    let leads = group.communicator().rank().0 == 0;
    let replicated = inventory.parameters().iter().filter(|it| it.replicated && leads);
    let mine: Vec<(u32, String, Vec<usize>)> =
        replicated.map(|it| (group.number(), it.name.clone(), it.shape.clone())).collect();
    let all: Vec<Vec<(u32, String, Vec<usize>)>> = gather_all(comm, &mine)?;
    let mut first: BTreeMap<String, (u32, Vec<usize>)> = BTreeMap::new();
    for (number, name, shape) in all.into_iter().flatten() {
        let known = first.entry(name).or_insert((number, shape.clone()));
        if number < known.0 {
            *known = (number, shape);
        }
    }
    let copies = inventory.parameters().iter().enumerate().filter_map(|(index, parameter)| {
        let (number, shape) = first.get(&parameter.name)?;
        if *number == group.number() {
            return None;
        }
        let param = ParamIndex::from_index(index);
        if parameter.replicated && *shape == parameter.shape {
            Some(Ok(Piece::new(param, 0, inventory.elems(param))))
        } else {
            Some(Err(disagreeing(parameter, group.number(), shape, *number)))
        }
    });
    Ok(copies.collect())
}

fn disagreeing(parameter: &Parameter, group: u32, shape: &[usize], other: u32) -> Error {
    let theirs = Parameter::new(parameter.name.clone(), shape).replicated();
    let ours = Parameter { group: 0, ..parameter.clone() };
    Error::usage("copies of a replicated parameter do not agree")
        .with("parameter", &parameter.name)
        .with("inventory", format!("{other}: {}", describe(&theirs)))
        .with("inventory", format!("{group}: {}", describe(&ours)))
        .hint("declare it as replicated, with one shape, in every inventory that has it")
}
