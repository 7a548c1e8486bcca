//! Finding a durable job on the drives of its nodes, and which rank goes on with which shard.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::super::durable::choose_record;
use super::resources::{progress_of, state_files};
use super::sharding::{Dealt, Expected};
use crate::config::{Config, Durability};
use crate::coord::{Communicator, OfRanks, agree, gather_alike, share};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::Plan;
use crate::state::Inventory;
use crate::storage::commit::Stamp;
use crate::storage::{Drive, FoundShard, Owner, ShardDirectory, ShardFiles, ShardLayout};
use crate::units::{Bytes, Elems, Rank};

/// What a rank sees of one shard. Ranks that name the same drives see the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sight {
    /// The creation of the job that it is of.
    pub job_id: String,
    /// Its number.
    pub shard: u32,
    /// How many shards the job had.
    pub shards: u32,
    /// What the shard is of: group, inventory and cut.
    pub of: Expected,
    /// The newest commit of this shard and the steps attempted up to it.
    pub newest: Option<(Stamp, u64)>,
    /// Why this rank cannot go on with the shard, if it cannot.
    pub incomplete: Option<String>,
    /// The drive with the shard's records is missing, so it is not known what is committed.
    pub is_headless: bool,
}

/// What all ranks go on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The creation of the job.
    pub job_id: String,
    /// The shard of every rank.
    pub shards: Vec<u32>,
}

/// A job that lies on the drives.
struct Found {
    choice: Choice,
    /// The shard of this rank.
    shard: FoundShard,
}

/// Collective: opens the shards of this job as they lie on the drives, locked, if it has committed
/// anything; `None` if it has not, and may be created.
///
/// # Errors
/// Agreed: usage if what lies there is another model's, another number of ranks', or would be
/// overwritten by a scratch job; unavailable if a drive is missing; I/O if records are lost.
pub(super) fn reopen(
    config: &Config,
    inventory: &Inventory,
    dealt: &Dealt,
    drives: &[Drive],
    comm: &dyn Communicator,
) -> Result<Option<(Plan, ShardFiles, String)>> {
    let Some(found) = find(config, inventory, dealt, comm)? else { return Ok(None) };
    let opened = agree(comm, open(config, inventory, dealt, drives, comm, &found))?;
    let (plan, files) = opened;
    let records = files.records(false, 0).and_then(|records| records.read());
    match choose_record(comm, &found.choice.job_id, records)? {
        Some(_) => Ok(Some((plan, files, found.choice.job_id))),
        None => {
            tracing::info!("the job was created before, but has committed no step: it starts anew");
            Ok(None)
        }
    }
}

fn find(
    config: &Config,
    inventory: &Inventory,
    dealt: &Dealt,
    comm: &dyn Communicator,
) -> Result<Option<Found>> {
    let (mut seen, sights) = agree(comm, look(config, comm.rank()))?;
    let own = |job_id: &str| {
        let mut own = seen.iter().filter(|it| it.layout.job_id == job_id);
        let own = own.find(|it| it.layout.shard == comm.rank().0);
        own.and_then(|shard| difference(&shard.layout, inventory, dealt))
    };
    let Some(choice) = choose(config, &dealt.expected, comm, &sights, own)? else {
        return Ok(None);
    };
    let mine = choice.shards[comm.rank().index()];
    let is_mine =
        |shard: &FoundShard| shard.layout.shard == mine && shard.layout.job_id == *choice.job_id;
    let shard = seen.iter().position(is_mine).map(|at| seen.swap_remove(at));
    let shard = shard.ok_or_else(|| Error::internal("a rank has a shard that it does not see"));
    let shard = agree(comm, shard.and_then(FoundShard::with_layout))?;
    Ok(Some(Found { choice, shard }))
}

/// The shards of the job that this rank sees. There may be one of every rank, and their layouts are
/// long, so only that of this rank's own number is kept.
fn look(config: &Config, rank: Rank) -> Result<(Vec<FoundShard>, Vec<Sight>)> {
    let mut of = BTreeMap::new();
    let seen = FoundShard::each_on(&config.drives.paths, Some(&config.job), |layout| {
        let parameters = layout.parameters.clone();
        let expected = Expected {
            group: layout.group,
            inventory: Inventory::new(parameters)?.fingerprint(),
            cut: layout.cut.fingerprint(),
        };
        of.insert((layout.job_id.clone(), layout.shard), expected);
        if layout.shard != rank.0 {
            layout.shorten();
        }
        Ok(())
    })?;
    let sight = |shard: &FoundShard| {
        let layout = &shard.layout;
        let of = of.get(&(layout.job_id.clone(), layout.shard)).cloned();
        let newest = shard.newest_record()?.map(|record| (record.stamp, record.attempts));
        Ok(Sight {
            job_id: layout.job_id.clone(),
            shard: layout.shard,
            shards: layout.shards,
            of: of.ok_or_else(|| Error::internal("a shard was not looked at"))?,
            newest,
            incomplete: shard.complete().err().map(|error| error.to_string()),
            is_headless: matches!(shard.directories.first(), Some(None)),
        })
    };
    let sights = seen.iter().map(sight).collect::<Result<Vec<Sight>>>()?;
    Ok((seen, sights))
}

/// Collective: the job to go on from, and the shard of every rank, from what each rank sees and
/// brings; `None` if there is none, or nothing would be lost with it. `difference` says in which
/// way a creation's shard of this rank's own number is not what the rank brings.
///
/// # Errors
/// Those of [`SwappedOptimizer::create`](crate::SwappedOptimizer::create).
pub fn choose(
    config: &Config,
    expected: &OfRanks<Expected>,
    comm: &dyn Communicator,
    sights: &Vec<Sight>,
    difference: impl Fn(&str) -> Option<(String, String)>,
) -> Result<Option<Choice>> {
    let all: OfRanks<Vec<Sight>> = gather_alike(comm, sights)?;
    let newest =
        all.values().iter().flatten().filter_map(|sight| {
            sight.newest.map(|(stamp, attempts)| (&sight.job_id, stamp, attempts))
        });
    // Ids begin with the number of the creation. The newest job counts, since a node that was away
    // may still have an older one.
    let Some((job_id, stamp, attempts)) = newest.max() else {
        return agree(comm, refuse_headless(all.values())).map(|()| None);
    };
    let decided = match decide(&all, job_id, config, expected) {
        Err(Refusal::OtherShard(shard)) => {
            // All ranks refuse it; the one with that number knows more.
            let rank = Rank(shard % comm.size() as u32);
            Err(other_shards(shard, share(comm, rank, Some(&difference(job_id)))?))
        }
        Err(Refusal::Error(error)) => Err(error),
        Ok(shards) => Ok(shards),
    };
    let decided = decided.map_err(|error| {
        let on_drives = format!("epoch {}, step {attempts}", stamp.epoch);
        error.with("job", &config.job).with("committed on the drives", on_drives)
    });
    let shards = agree(comm, decided)?;
    Ok(shards.map(|shards| Choice { job_id: job_id.clone(), shards }))
}

/// The first difference between a shard on the drives and what its rank brings now.
fn difference(
    layout: &ShardLayout,
    inventory: &Inventory,
    dealt: &Dealt,
) -> Option<(String, String)> {
    if let (Ok(theirs), true) = (
        Inventory::new(layout.parameters.clone()),
        layout.group == dealt.group.number() && layout.groups == dealt.group.count(),
    ) {
        let is_same = theirs.fingerprint() == inventory.fingerprint();
        return is_same.then(|| layout.cut.difference(&dealt.cut, inventory)).flatten();
    }
    let then = format!("inventory {} of {}", layout.group, layout.groups);
    let now = format!("inventory {} of {}", dealt.group.number(), dealt.group.count());
    Some((then, now))
}

/// An error if parts of a job are here without the drive that holds its records: that job must not
/// be overwritten as if it were new.
fn refuse_headless(views: &[Vec<Sight>]) -> Result<()> {
    let headless = views.iter().flatten().find(|sight| sight.is_headless);
    headless.map_or(Ok(()), |sight| {
        let message = "a shard is here without the drive that holds its records";
        Err(Error::new(ErrorKind::StateUnavailable, message)
            .because(sight.incomplete.clone().unwrap_or_default())
            .hint(
                "name that drive too; or go on from a checkpoint; or remove what is left with \
                 optswap clean --remove",
            ))
    })
}

/// Why a job cannot be gone on with.
enum Refusal {
    /// This shard is not what a rank brings now.
    OtherShard(u32),
    Error(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// The number of the shard that each rank goes on with, from what all ranks see. `None` if the job
/// may start anew because nothing would be lost.
fn decide(
    all: &OfRanks<Vec<Sight>>,
    job_id: &str,
    config: &Config,
    expected: &OfRanks<Expected>,
) -> Result<Option<Vec<u32>>, Refusal> {
    let is_of_job = |sight: &&Sight| sight.job_id == job_id;
    let job: Vec<&Sight> = all.values().iter().flatten().filter(is_of_job).collect();
    // Shards of any creation of the job count here, since starting anew overwrites them all.
    let mut sights = all.values().iter().flatten();
    let has_trained = sights.any(|sight| sight.newest.is_some_and(|(_, steps)| steps > 0));
    if job.is_empty() {
        return Ok(None);
    }
    if !config.is_durable() {
        if !has_trained {
            return Ok(None);
        }
        return Err(Error::usage("a scratch job would overwrite committed steps of this name")
            .hint(
                "go on with --durability step, give this job another name with --job, or remove \
                 what is there with optswap clean --remove",
            )
            .into());
    }
    if let Err(other) = check_expected(&job, expected) {
        return if has_trained { Err(other) } else { Ok(None) };
    }
    // For each view, the shards that are whole in it.
    let whole = |view: &Vec<Sight>| -> BTreeSet<u32> {
        let whole = view.iter().filter(is_of_job).filter(|sight| sight.incomplete.is_none());
        whole.map(|sight| sight.shard).collect()
    };
    let views: Vec<BTreeSet<u32>> = all.values().iter().map(whole).collect();
    let [view_of, kind_of]: [Vec<usize>; 2] = [all.places().collect(), expected.places().collect()];
    let sees = |rank: usize, shard: usize| {
        kind_of[rank] == kind_of[shard] && views[view_of[rank]].contains(&(shard as u32))
    };
    match assign(view_of.len(), sees) {
        Ok(shards) => Ok(Some(shards)),
        Err(_) if !has_trained => Ok(None),
        Err(shard) => {
            let half = job.iter().find(|sight| sight.shard as usize == shard);
            let why = half.and_then(|sight| sight.incomplete.clone());
            let why = why.unwrap_or_else(|| "no rank that is left sees it on its drives".into());
            Err(Error::new(ErrorKind::StateUnavailable, "a shard of the job is missing")
                .with("shard", shard)
                .because(why)
                .hint("bring its node and drives back, or go on from a checkpoint")
                .into())
        }
    }
}

/// Checks that the shards of a job, as all ranks see them, are what the ranks bring now.
fn check_expected(job: &[&Sight], expected: &OfRanks<Expected>) -> Result<(), Refusal> {
    let ranks = expected.iter().len();
    for sight in job {
        if !expected.values().iter().any(|it| it.inventory == sight.of.inventory) {
            return Err(Error::usage("the steps on the drives are of another model")
                .hint("give this job another name with --job")
                .into());
        }
    }
    if let Some(any) = job.first()
        && any.shards as usize != ranks
    {
        return Err(Error::new(
            ErrorKind::StateUnavailable,
            "the steps on the drives are of another number of ranks",
        )
        .with("ranks then", any.shards)
        .with("ranks now", ranks)
        .hint(format!("start {} ranks, or go on from a checkpoint", any.shards))
        .into());
    }
    let is_other = |sight: &&&Sight| expected.of(Rank(sight.shard)) != Some(&sight.of);
    job.iter().find(is_other).map_or(Ok(()), |sight| Err(Refusal::OtherShard(sight.shard)))
}

fn other_shards(shard: u32, difference: Option<(String, String)>) -> Error {
    let error = Error::new(
        ErrorKind::StateUnavailable,
        "the steps on the drives are of other shards than the ranks bring now",
    )
    .with("shard", shard);
    let error = match difference {
        Some((then, now)) => error.with("on the drives", then).with("now", now),
        None => error,
    };
    error.hint("bring the same pieces and inventories, or go on from a checkpoint")
}

/// One shard for every rank such that each rank sees its own; rank r gets shard r where it can. On
/// failure, a shard that is left over. (Augmenting paths; Kuhn 1955.)
fn assign(ranks: usize, sees: impl Fn(usize, usize) -> bool) -> Result<Vec<u32>, usize> {
    fn place(
        shard: usize,
        ranks: usize,
        sees: &impl Fn(usize, usize) -> bool,
        owner: &mut [Option<usize>],
        tried: &mut [bool],
    ) -> bool {
        let own_first = std::iter::once(shard).chain((0..ranks).filter(|rank| *rank != shard));
        for rank in own_first {
            if !sees(rank, shard) || std::mem::replace(&mut tried[rank], true) {
                continue;
            }
            let is_free = owner[rank].is_none_or(|other| place(other, ranks, sees, owner, tried));
            if is_free {
                owner[rank] = Some(shard);
                return true;
            }
        }
        false
    }
    let own = |rank: usize| sees(rank, rank).then_some(rank);
    let mut owner: Vec<Option<usize>> = (0..ranks).map(own).collect();
    for shard in (0..ranks).filter(|shard| !sees(*shard, *shard)) {
        if !place(shard, ranks, &sees, &mut owner, &mut vec![false; ranks]) {
            return Err(shard);
        }
    }
    Ok(owner.into_iter().map(|shard| shard.unwrap_or(0) as u32).collect())
}

/// Resolves the plan as the drives have it, and opens and locks this rank's files.
fn open(
    config: &Config,
    inventory: &Inventory,
    dealt: &Dealt,
    drives: &[Drive],
    comm: &dyn Communicator,
    found: &Found,
) -> Result<(Plan, ShardFiles)> {
    let layout = &found.shard.layout;
    let directories = found.shard.complete()?;
    let config = as_it_lies(config, layout, &directories);
    let tensors = layout.tensors.iter().map(|(name, codec)| (name.as_str(), *codec));
    if !tensors.eq(config.state_tensors().iter().map(|tensor| (&*tensor.name, tensor.codec))) {
        let names: Vec<&str> = layout.tensors.iter().map(|(name, _)| name.as_str()).collect();
        let expected = config.state_tensors();
        let expected: Vec<&str> = expected.iter().map(|tensor| &*tensor.name).collect();
        return Err(Error::usage("the steps on the drives are of another optimizer")
            .with("state tensors", names.join(", "))
            .with("optimizer", config.optimizer.name())
            .with("its state tensors", expected.join(", "))
            .hint(
                "set optimizer.kind, or optimizer.own, to the one that was used, or give this job \
                 another name",
            ));
    }
    let allotment = dealt.allot(&found.choice.shards, comm.rank());
    let plan = Plan::resolve(&config, inventory.clone(), &allotment)?;
    let files = reopen_files(&plan, comm, directories, drives)?;
    Ok((plan, files))
}

/// The configuration with everything that decides where bytes lie taken from the drives.
pub(crate) fn as_it_lies(
    config: &Config,
    layout: &ShardLayout,
    directories: &[ShardDirectory],
) -> Config {
    let mut config = config.clone();
    config.job.clone_from(&layout.job);
    config.drives.paths = directories.iter().map(|it| it.drive().to_owned()).collect();
    config.drives.weights.clone_from(&layout.weights);
    config.drives.stripe_headroom = layout.stripe_headroom;
    config.drives.stripe_unit = Bytes(layout.stripe_unit_bytes);
    config.swap.chunk_elements = Elems(layout.chunk_elems);
    config.swap.sub_group_elements = Elems(layout.sub_group_elems);
    for (name, codec) in &layout.tensors {
        // Unknown names are found when the tensors are compared.
        config.set_codec(name, *codec);
    }
    config.durability.mode = Durability::Step;
    config
}

fn reopen_files(
    plan: &Plan,
    comm: &dyn Communicator,
    directories: Vec<ShardDirectory>,
    drives: &[Drive],
) -> Result<ShardFiles> {
    let config = plan.config();
    let (rank, ranks) = (comm.rank().0, comm.size() as u32);
    let owner = Owner::this_process(&config.job, rank, ranks, comm.host(), config.drives.exclusive);
    let wanted = state_files(&plan.placement().drive_bytes(), &directories, drives);
    let files = ShardFiles::reopen(directories, &wanted, &owner)?;
    files.extend(&plan.drive_bytes(), &progress_of(comm))?;
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_go_where_their_shards_lie() {
        assert_eq!(assign(3, |_, _| true), Ok(vec![0, 1, 2]), "one file system for all");
        // Two nodes of two ranks that have changed places.
        let mut swapped = assign(4, |rank, shard| rank / 2 != shard / 2).unwrap();
        assert!(swapped[..2].iter().all(|shard| *shard >= 2), "{swapped:?}");
        swapped.sort_unstable();
        assert_eq!(swapped, [0, 1, 2, 3]);
        // Rank 0 sees all, rank 1 only shard 0.
        assert_eq!(assign(2, |rank, shard| rank == 0 || shard == 0), Ok(vec![1, 0]));
        assert_eq!(assign(2, |_, shard| shard == 0), Err(1), "a drive is gone");
        assert_eq!(assign(2, |rank, _| rank == 0), Err(1), "two shards, one node, one rank");
    }
}
