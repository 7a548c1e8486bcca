//! Every way in which ranks can crash around commits and resumes, walked over the functions that
//! decide: `judge`, `place_of`, `place_beside`, `Slots` and `Placement`.
//!
//! The model. A rank's drives are the stripe units of two slots of one chunk, with as many free
//! ones, and two places for records; while one of them is written it is torn, and a unit that is
//! given up is empty at once. A life of the job is one list of actions that every rank goes
//! through at its own pace; nobody passes a collective before all have come to it. A crash may find
//! the ranks at any combination of places in that list, and leaves only the drives. A slot's value
//! says by which step, and in which life, it was computed, so a step that is done again gives other
//! bytes. A record's checksum is the value that it promises.
//!
//! One life's crashes are the next one's beginnings: breadth first, every different set of drives
//! once (ranks are alike, so their order does not count). After each crash the job must go on from
//! one commit that all ranks have, whole, which is the last agreed one or one that the last life
//! added; never from bytes of two attempts; never is it taken for lost or new.
//!
//! Bounds, each searched whole. 2 ranks, 4 commits after the initial one, 4 crashes; 3 ranks, 3
//! commits, 4 crashes (so also: one in a step, one in the resume, one in the step that is done
//! again, one more in its resume); 3 ranks, 3 commits at every second of 6 steps, 3 crashes. With
//! chunks without a gradient, so that a rank may leave out the write of any step: 2 ranks, 3
//! commits, 3 crashes; 3 ranks, 2 commits, 2 crashes. With drives whose weights change before every
//! second step, so that chunks move: 2 ranks, 4 commits, 3 crashes, and commits at every second of
//! 6 steps; 3 ranks, 3 commits, 3 crashes. With a power loss without `durability.sync`, which may
//! undo the last write of any slot and place: 2 ranks, 3 commits, 2 crashes, one of them
//! a power loss. Then a job may be refused, as its records or checksums do not fit, but not go on
//! from a mixture. Before each step a commit that changes nothing and fails, of which only one rank
//! has written the record: 2 ranks, 3 commits, 3 crashes; 3 ranks, 2 commits, 2 crashes. A signal
//! that ends a life with any step, which is a commit then: 2 ranks, 5 steps, 3 crashes. One rank
//! that commits half as often, as with a stale configuration that no start allows any more: 2
//! ranks, 6 steps, 3 crashes; then a job may be refused too. A rank of the last life that was
//! stopped and goes on holds its locks, so the next life does not begin before it has ended, which
//! is a crash at a later moment; without locks (a mutation) the walk finds what it does. (With
//! `sync`, a power loss leaves what the death of all ranks leaves: a torn write or a whole one.)

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

#[path = "support/commit_drives.rs"]
mod commit_drives;
#[path = "support/commit_rank.rs"]
mod commit_rank;

use std::cmp::Ordering;
use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::time::Instant;

use commit_drives::{Content, Drives, Made, Record, Slot, unit_of};
use commit_rank::{Circumstances, Late, Life, Model, Mutation, Start};
use optswap::internals::storage::commit::{
    Held, Places, Stamp, Verdict, judge, place_of, steps_of,
};

/// What a crash leaves, and what is known about it from outside.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct World {
    ranks: Vec<Drives>,
    /// Epoch and origin of the newest commit that all ranks have agreed on.
    agreed: Option<(u8, Made)>,
    /// Writes may have been undone: the job may be refused, but not go on from something wrong.
    lost_power: bool,
    /// Who was stopped in the last life, and goes on in the next.
    late: Option<Late>,
}

impl World {
    fn sorted(mut self, model: &Model) -> Self {
        if !model.knows_ranks() {
            self.ranks.sort_unstable();
        }
        self
    }
}

const USUAL: Model = Model {
    ranks: 2,
    steps: 3,
    commit_every: 1,
    may_leave_out: false,
    moves: false,
    may_lose_power: false,
    fails: false,
    may_stop: false,
    drifts: false,
    crashes: 3,
    mutation: Mutation::None,
};

impl Model {
    /// Whether ranks are not alike, so that their order counts.
    fn knows_ranks(&self) -> bool {
        self.fails || self.drifts || self.mutation == Mutation::NoLocks
    }

    /// What a start finds, as `step::resume` and `choose_record` go about it; and whether
    /// it is right.
    fn resume(&self, world: &World) -> Result<Start, String> {
        let of = |drives: &Drives| drives.now.places;
        let job = world.ranks.iter().flat_map(of).flatten().map(|record| record.job).max();
        let records = world.ranks.iter().map(of);
        let records = records.map(|places| places.map(|it| it.filter(|it| Some(it.job) == job)));
        let records: Vec<[Option<Record>; 2]> = records.collect();
        let stamp_of = |record: Record| match self.mutation {
            Mutation::IncarnationIgnored => Stamp { incarnation: 0, ..record.stamp() },
            _ => record.stamp(),
        };
        let all: Vec<Places> =
            records.iter().map(|places| places.map(|it| it.map(stamp_of))).collect();
        let (stamp, incarnation) = match judge(&all) {
            Verdict::Resume { stamp, incarnation } => (stamp, incarnation),
            Verdict::Fresh if world.agreed.is_none() => return Ok(Start::Fresh),
            Verdict::Fresh => return Err("taken for new".into()),
            Verdict::Broken { .. } if world.lost_power || self.drifts => return Ok(Start::Refused),
            Verdict::Broken { .. } => return Err("taken for lost".into()),
        };
        let held = |places: &[Option<Record>; 2]| {
            places.map(|it| it.map(|record| (stamp_of(record), u64::from(record.steps))))
        };
        let all_held: Vec<Held> = records.iter().map(held).collect();
        if self.mutation != Mutation::StepsIgnored && steps_of(&all_held, stamp).is_err() {
            let mixed = || "records of one stamp are of different steps".to_owned();
            return if self.drifts { Ok(Start::Refused) } else { Err(mixed()) };
        }
        let mut chosen = Vec::new();
        for (places, records) in all.iter().zip(&records) {
            let place = place_of(places, stamp).ok_or("a rank has no such record")?;
            chosen.push((records[place].ok_or("a rank has no such record")?, place));
        }
        let is_whole = |(drives, (record, _)): (&Drives, &(Record, usize))| {
            drives.now.units[unit_of(record)] == Slot::Whole(record.value)
        };
        if !world.ranks.iter().zip(&chosen).all(is_whole) {
            // After another boot, the checksums of all chunks are compared first; otherwise when
            // each is read.
            let is_told = world.lost_power || self.drifts;
            let refused = if is_told { Ok(Start::Refused) } else { Err(()) };
            return refused
                .map_err(|()| "a committed slot has not what its record promises".into());
        }
        let first = chosen[0].0;
        if chosen.iter().any(|(it, _)| it.commit != first.commit || it.epoch != first.epoch) {
            return Err("ranks resume different commits".into());
        }
        let values = chosen.iter().map(|(record, _)| record.value);
        if !self.may_leave_out && values.into_iter().any(|value| value != first.commit) {
            return Err("bytes of different attempts".into());
        }
        match world.agreed {
            Some((epoch, _)) if first.epoch < epoch => Err("an agreed commit is lost".into()),
            Some((epoch, commit)) if first.epoch == epoch && first.commit != commit => {
                Err("an agreed commit has become another".into())
            }
            _ => Ok(Start::Resume { records: chosen, incarnation }),
        }
    }

    /// What a crash leaves, for every combination of moments that the collectives allow.
    fn crashes(&self, world: &World, lives: &[Life]) -> Vec<World> {
        let collectives = &lives[0].collectives;
        let last = lives[0].moments.len() - 1;
        let mut crashes = Vec::new();
        for slowest in 0..=last {
            let passed = collectives.iter().filter(|(at, _)| *at <= slowest);
            let newest = passed.filter_map(|(_, agreed)| *agreed).next_back();
            // Nobody is beyond the first collective that the slowest has not come to.
            let next = collectives.iter().map(|(at, _)| *at).find(|at| *at > slowest);
            let fastest = next.unwrap_or(last);
            let versions =
                |rank: usize, moments: RangeInclusive<usize>| lives[rank].moments[moments].concat();
            for first_slow in 0..lives.len() {
                let choices = (0..lives.len()).map(|rank| match rank.cmp(&first_slow) {
                    Ordering::Less => versions(rank, slowest + 1..=fastest),
                    Ordering::Equal => versions(rank, slowest..=slowest),
                    Ordering::Greater => versions(rank, slowest..=fastest),
                });
                crashes.extend(every_choice(choices).into_iter().map(|ranks| World {
                    ranks,
                    agreed: newest.or(world.agreed),
                    lost_power: world.lost_power && newest.is_none(),
                    late: None,
                }));
            }
        }
        crashes
    }

    /// The steps with which a life may end; `None`: the last of all.
    fn last_steps(&self) -> Vec<Option<u8>> {
        let stops = (1..self.steps).map(Some).filter(|_| self.may_stop);
        stops.chain([None]).collect()
    }

    /// Walks everything; gives the number of states seen, or the first thing that is wrong.
    fn explore(&self) -> Result<usize, String> {
        let empty = World { ranks: vec![Drives::default(); self.ranks], ..World::default() };
        let mut worlds = HashSet::from([empty]);
        let mut states = 0;
        for life in 0..self.crashes {
            let mut next = HashSet::new();
            for world in &worlds {
                let start = self.resume(world).map_err(|wrong| format!("{wrong}: {world:?}"))?;
                if matches!(start, Start::Refused) {
                    continue;
                }
                for stops_after in self.last_steps() {
                    let (start, late) = (&start, world.late);
                    let around = Circumstances { start, life, stops_after, late };
                    let ranks = world.ranks.iter().enumerate();
                    let lives = ranks.map(|(rank, drives)| self.live(&around, rank, *drives));
                    let lives: Vec<Life> = lives.collect::<Result<_, _>>()?;
                    for crashed in self.crashes(world, &lives) {
                        states += 1;
                        if self.may_lose_power && !world.lost_power {
                            next.extend(power_losses(&crashed));
                        }
                        if self.mutation == Mutation::NoLocks {
                            next.extend(late_ranks(&crashed, &lives));
                        }
                        next.insert(crashed.sorted(self));
                    }
                }
            }
            worlds = next;
        }
        states += worlds.len();
        worlds.iter().try_for_each(|world| {
            self.resume(world).map(drop).map_err(|wrong| format!("{wrong}: {world:?}"))
        })?;
        Ok(states)
    }
}

/// Every combination of what each rank may have.
fn every_choice(choices: impl Iterator<Item = Vec<Drives>>) -> Vec<Vec<Drives>> {
    choices.fold(vec![Vec::new()], |ranks, versions| {
        let longer = |ranks: &Vec<Drives>| {
            let ranks = ranks.clone();
            versions.iter().map(move |drives| [ranks.as_slice(), &[*drives]].concat())
        };
        ranks.iter().flat_map(longer).collect()
    })
}

/// Every world in which some of the last writes are undone.
fn power_losses(crashed: &World) -> impl Iterator<Item = World> {
    let versions = |drives: &Drives| {
        let mut versions = vec![drives.now];
        let mut undo = |undone: &dyn Fn(&mut Content)| {
            let mut other = versions.clone();
            other.iter_mut().for_each(undone);
            other.retain(|it| !versions.contains(it));
            versions.extend(other);
        };
        for unit in 0..4 {
            undo(&|now| now.units[unit] = drives.before.units[unit]);
        }
        for place in 0..2 {
            undo(&|now| now.places[place] = drives.before.places[place]);
        }
        versions.into_iter().map(|now| Drives { now, before: now }).collect()
    };
    let worlds = every_choice(crashed.ranks.iter().map(versions)).into_iter();
    worlds.map(|ranks| {
        let mut ranks = ranks;
        ranks.sort_unstable();
        World { ranks, agreed: None, lost_power: true, late: None }
    })
}

/// Every world in which one rank has not died but was stopped, and goes on with its next action
/// when the next life has begun.
fn late_ranks(crashed: &World, lives: &[Life]) -> Vec<World> {
    let mut worlds = Vec::new();
    for (rank, (drives, life)) in crashed.ranks.iter().zip(lives).enumerate() {
        for pair in life.moments.windows(2) {
            for after in pair[1].iter().filter(|_| pair[0].contains(drives)) {
                let late = Late { rank, before: drives.now, after: after.now };
                worlds.push(World { late: Some(late), ..crashed.clone() });
            }
        }
    }
    worlds
}

fn models() -> [(&'static str, Model); 14] {
    let three = Model { ranks: 3, ..USUAL };
    [
        ("2 ranks", Model { steps: 4, crashes: 4, ..USUAL }),
        ("3 ranks", Model { crashes: 4, ..three }),
        ("3 ranks, a commit every 2 steps", Model { steps: 6, commit_every: 2, ..three }),
        ("2 ranks that leave out writes", Model { may_leave_out: true, ..USUAL }),
        (
            "3 ranks that leave out writes",
            Model { steps: 2, crashes: 2, may_leave_out: true, ..three },
        ),
        ("2 ranks, moving", Model { moves: true, steps: 4, ..USUAL }),
        (
            "2 ranks, moving, a commit every 2 steps",
            Model { moves: true, steps: 6, commit_every: 2, ..USUAL },
        ),
        ("3 ranks, moving", Model { moves: true, ..three }),
        (
            "2 ranks, moving, that leave out writes",
            Model { moves: true, may_leave_out: true, ..USUAL },
        ),
        ("2 ranks, power loss", Model { may_lose_power: true, crashes: 2, ..USUAL }),
        ("2 ranks, commits that fail", Model { fails: true, ..USUAL }),
        ("3 ranks, commits that fail", Model { fails: true, steps: 2, crashes: 2, ..three }),
        (
            "2 ranks that are asked to stop, a commit every 2 steps",
            Model { may_stop: true, steps: 5, commit_every: 2, ..USUAL },
        ),
        ("2 ranks, one with a stale configuration", Model { drifts: true, steps: 6, ..USUAL }),
    ]
}

#[test]
fn every_crash_is_survived() {
    for (name, model) in models() {
        let start = Instant::now();
        let states = model.explore().unwrap_or_else(|wrong| panic!("{name}: {wrong}"));
        println!("{name}: {states} states in {:.1} s", start.elapsed().as_secs_f64());
        assert!(states > 10_000, "{name}: only {states} states");
    }
}

#[test]
fn every_mutation_is_found() {
    for mutation in [
        Mutation::ResumeWritesNothing,
        Mutation::ResumeIsNotAgreed,
        Mutation::RecordOverAgreed,
        Mutation::StepsWriteCommitted,
    ] {
        let wrong = Model { mutation, ..USUAL }.explore().expect_err("it is not found");
        println!("{mutation:?}: {wrong}");
    }
    for mutation in [Mutation::FreedByTheWrite, Mutation::ResumeForgetsPlacement] {
        let model = Model { mutation, moves: true, ..USUAL };
        println!("{mutation:?}: {}", model.explore().expect_err("it is not found"));
    }
    for (mutation, model) in [
        (Mutation::NumberUsedAgain, Model { fails: true, ..USUAL }),
        (Mutation::StepsIgnored, Model { drifts: true, steps: 6, ..USUAL }),
        (Mutation::NoLocks, Model { steps: 2, crashes: 2, ..USUAL }),
    ] {
        let wrong = Model { mutation, ..model }.explore().expect_err("it is not found");
        println!("{mutation:?}: {wrong}");
    }
    let mutation = Mutation::IncarnationIgnored;
    Model { mutation, ..USUAL }.explore().expect("harmless while writes stay written");
    let model = Model { steps: 2, may_lose_power: true, crashes: 2, mutation, ..USUAL };
    println!("{mutation:?}: {}", model.explore().expect_err("it is not found"));
}
