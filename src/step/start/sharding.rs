//! How parameters are dealt to ranks: what the caller asks for, and how the ranks compare that
//! before anything is created.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::super::co_owned::CoOwned;
use crate::config::Config;
use crate::coord::{
    Communicator, Group, OfRanks, agree, gather_alike, gather_to_first, scatter_from_first,
};
use crate::error::{Error, Result};
use crate::partition::{Allotment, Cut, Piece, check_cover, check_pieces, slice_of};
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
pub struct Dealt {
    /// The ranks that share this rank's inventory.
    pub group: Group,
    /// This rank's part of the inventory.
    pub cut: Cut,
    /// Elements of it that count in the norm as another rank's.
    pub uncounted: Vec<Piece>,
    /// Where ranks bring pieces of their own: the parameters that other ranks have parts of too.
    pub(in crate::step) co_owned: CoOwned,
    /// What every rank of the world brings, to be compared with what lies on the drives.
    pub expected: OfRanks<Expected>,
}

/// The group, inventory and cut of one rank.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expected {
    /// The number of its group.
    pub group: u32,
    /// Fingerprint of its inventory.
    pub inventory: u128,
    /// [`Cut::fingerprint`]
    pub cut: u64,
}

impl Dealt {
    /// The allotment of a rank, where rank r takes the shard with number `shards[r]`.
    pub fn allot(&self, shards: &[u32], rank: Rank) -> Allotment {
        let ranks = self.group.ranks();
        let mut part_of = vec![0; shards.len()];
        ranks.iter().enumerate().for_each(|(part, rank)| part_of[rank.index()] = part as u32);
        let part_of = |shard: u32| part_of.get(shard as usize).copied().unwrap_or(0);
        let parts: Vec<u32> = ranks.iter().map(|rank| part_of(shards[rank.index()])).collect();
        let shard = shards[rank.index()];
        let (cut, parts) = match &self.cut {
            Cut::Contiguous { parts: count, .. } => {
                (Cut::Contiguous { part: part_of(shard), parts: *count }, parts)
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
    let compared = compare_inventories(inventory, &sharding.shards, &group)?;
    let have_own = agree(&**comm, compared)?;
    let dealt = match &sharding.shards {
        Shards::Contiguous => Ok((contiguous(&group), Vec::new(), CoOwned::default())),
        // Slices of one inventory fit each other.
        Shards::Slices if !have_own => {
            let co_owned = CoOwned::of_slices(inventory, &group);
            Ok((Cut::Own(slices(inventory, &group)), Vec::new(), co_owned))
        }
        Shards::Slices => own_cut(inventory, &slices(inventory, &group), &group)?,
        Shards::Own(pieces) => own_cut(inventory, pieces, &group)?,
    };
    let (cut, mut uncounted, co_owned) = agree(&**comm, dealt)?;
    let elsewhere = agree(&**comm, copies_elsewhere(inventory, &group, &**comm)?)?;
    uncounted.extend(elsewhere);
    let (number, inventory) = (group.number(), inventory.fingerprint());
    let mine = Expected { group: number, inventory, cut: cut.fingerprint() };
    let expected = gather_alike(&**comm, &mine)?;
    Ok(Dealt { group, cut, uncounted, co_owned, expected })
}

/// Collective within the group: the cut of these pieces, those of its elements that count in the
/// norm as another rank's, and the parameters that other ranks have parts of. The first rank
/// compares the pieces of all. The outer result is of communication.
fn own_cut(
    inventory: &Inventory,
    pieces: &[Piece],
    group: &Group,
) -> Result<Result<(Cut, Vec<Piece>, CoOwned)>> {
    let pieces = check_pieces(inventory, pieces);
    let comm = &**group.communicator();
    let all = gather_to_first(comm, &pieces.as_ref().ok().cloned())?;
    let compared = all.map(|all: Vec<Option<Vec<Piece>>>| {
        let ranks = all.len();
        match all.into_iter().collect::<Option<Vec<Vec<Piece>>>>() {
            Some(all) => {
                let co_owned = CoOwned::of_pieces(&all, group.number());
                let copies = check_cover(inventory, group.ranks(), &all)?;
                Ok(copies.into_iter().zip(co_owned).collect::<Vec<_>>())
            }
            // Another rank's pieces are wrong, and its error is the one that all ranks get.
            None => Ok(vec![Default::default(); ranks]),
        }
    });
    let (found, wrong) = match compared {
        Some(Ok(found)) => (Some(found), None),
        Some(Err(error)) => (Some(vec![Default::default(); comm.size()]), Some(error)),
        None => (None, None),
    };
    let (copies, co_owned) = scatter_from_first(comm, found.as_deref())?;
    Ok(pieces.and_then(|pieces| match wrong {
        Some(error) => Err(error),
        None => Ok((Cut::Own(pieces), copies, co_owned)),
    }))
}

/// This rank's slice of every parameter.
fn slices(inventory: &Inventory, group: &Group) -> Vec<Piece> {
    let comm = group.communicator();
    let params = (0..inventory.parameters().len()).map(ParamIndex::from_index);
    let slice = |param| {
        let slice = slice_of(inventory.elems(param), comm.rank().index(), comm.size());
        Piece::new(param, slice.start, slice.end - slice.start)
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

/// Kinds of shards, as ranks tell each other.
const CONTIGUOUS: u8 = 0;
const SLICES: u8 = 1;
const OWN: u8 = 2;

/// Collective within the group: whether all have the same inventory, and the same kind of shards.
/// Returns whether any rank brings pieces of its own, so that they must be compared. The outer
/// result is of communication.
fn compare_inventories(
    inventory: &Inventory,
    shards: &Shards,
    group: &Group,
) -> Result<Result<bool>> {
    let comm = &**group.communicator();
    let kind = match shards {
        Shards::Contiguous => CONTIGUOUS,
        Shards::Slices => SLICES,
        Shards::Own(_) => OWN,
    };
    let mine = (xxh3_64(&wire::encode(&inventory.parameters().to_vec())?), kind);
    let all: OfRanks<(u64, u8)> = gather_alike(comm, &mine)?;
    if all.values().iter().any(|(digest, _)| *digest != all.values()[0].0) {
        let inventories = gather_alike(comm, &inventory.parameters().to_vec())?;
        return Ok(Err(first_difference(&inventories, group.ranks())));
    }
    let brings = |kind: u8| all.values().iter().any(|(_, theirs)| *theirs == kind);
    if brings(CONTIGUOUS) && all.values().len() > 1 {
        let owners = ranks_where(group.ranks(), &all, |(_, kind)| *kind != CONTIGUOUS);
        let message = "only some of the ranks that share an inventory bring pieces";
        return Ok(Err(Error::usage(message)
            .with("ranks that do", owners)
            .hint("a rank without elements brings an empty list of pieces")));
    }
    Ok(Ok(brings(OWN)))
}

/// Which parameter is the first that differs between ranks, and who has what there.
fn first_difference(inventories: &OfRanks<Vec<Parameter>>, ranks: &[Rank]) -> Error {
    let (kinds, one) = (inventories.values(), &inventories.values()[0]);
    let longest = kinds.iter().map(Vec::len).max().unwrap_or(0);
    let differs = |at: &usize| kinds.iter().any(|it| it.get(*at) != one.get(*at));
    let first = (0..longest).find(differs).unwrap_or(0);
    let describe_in = |inventory: &Vec<Parameter>| {
        inventory.get(first).map_or("no such parameter".to_owned(), describe)
    };
    let mut seen: Vec<String> = Vec::new();
    for what in kinds.iter().map(describe_in) {
        if !seen.contains(&what) {
            seen.push(what);
        }
    }
    let error = Error::usage("ranks that should share an inventory have different ones")
        .with("first difference", format!("parameter {first}"));
    let error = seen.into_iter().fold(error, |error, what| {
        let who = ranks_where(ranks, inventories, |theirs| describe_in(theirs) == what);
        error.with(if who.contains(',') { "ranks" } else { "rank" }, format!("{who}: {what}"))
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

/// The ranks of a group with such a value, as ranks of the world.
fn ranks_where<T>(ranks: &[Rank], all: &OfRanks<T>, holds: impl Fn(&T) -> bool) -> String {
    let chosen = ranks.iter().zip(all.iter()).filter(|(_, value)| holds(value));
    chosen.map(|(rank, _)| rank.0.to_string()).collect::<Vec<_>>().join(", ")
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
    let mine: Vec<(String, Vec<usize>)> =
        replicated.map(|it| (it.name.clone(), it.shape.clone())).collect();
    // Many inventories have the same copies, so their names are sent once.
    let all: OfRanks<Vec<(String, Vec<usize>)>> = gather_alike(comm, &mine)?;
    let mut numbers = vec![u32::MAX; all.values().len()];
    for (number, place) in group.of_ranks().into_iter().zip(all.places()) {
        numbers[place] = numbers[place].min(number);
    }
    let mut first: BTreeMap<&str, (u32, &[usize])> = BTreeMap::new();
    for (number, copies) in numbers.into_iter().zip(all.values()) {
        for (name, shape) in copies {
            let known = first.entry(name).or_insert((number, shape));
            if number < known.0 {
                *known = (number, shape);
            }
        }
    }
    let copies = inventory.parameters().iter().enumerate().filter_map(|(index, parameter)| {
        let (number, shape) = first.get(parameter.name.as_str())?;
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
