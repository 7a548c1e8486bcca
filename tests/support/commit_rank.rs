//! One rank's part of the model of commits: what lies on its drives, and its way through one life
//! of the job. See `tests/commit_protocol.rs`.

use optswap::internals::storage::commit::{Epochs, place_beside};
use optswap::internals::storage::{Placement, Slots};
use optswap::internals::units::ExtentIndex;

use super::commit_drives::{CHUNK, Content, Drives, Made, Record, Slot, placement, unit_at};

/// What is done wrong on purpose, to see that it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    None,
    /// A resume does not write its record again under a new incarnation.
    ResumeWritesNothing,
    /// Steps begin before all ranks have written the record that they resume again.
    ResumeIsNotAgreed,
    RecordOverAgreed,
    StepsWriteCommitted,
    /// A committed slot's unit is free when its replacement is written, not when it is committed.
    FreedByTheWrite,
    /// A resume takes every slot for where it was dealt at first.
    ResumeForgetsPlacement,
    /// The number of a commit that has failed is used again.
    NumberUsedAgain,
    /// A start does not compare the steps of the records.
    StepsIgnored,
    /// A start does not wait for a rank of the last life that was stopped and goes on: it takes no
    /// locks.
    NoLocks,
    /// As long as writes stay written this is harmless: a resume has overwritten every newer record
    /// before a slot is written, so one epoch never exists in two versions afterwards. Only a power
    /// loss brings back the old version, on some ranks; the incarnation is there for this.
    IncarnationIgnored,
}

/// How a life begins.
pub enum Start {
    Fresh,
    /// Every rank's record and its place.
    Resume {
        records: Vec<(Record, usize)>,
        incarnation: u64,
    },
    /// An error, after a power loss.
    Refused,
}

#[derive(Clone, Copy)]
pub struct Model {
    pub ranks: usize,
    pub steps: u8,
    pub commit_every: u8,
    pub may_leave_out: bool,
    /// The weights of the drives change, so that a slot is not written where it was.
    pub moves: bool,
    pub may_lose_power: bool,
    /// Before each step all ranks try one that changes nothing and fails on all but rank 0, which
    /// has written its record by then; and go on.
    pub fails: bool,
    /// A life may end with any step, which is a commit then.
    pub may_stop: bool,
    /// Rank 1 commits half as often as the others, as with a stale configuration.
    pub drifts: bool,
    pub crashes: u8,
    pub mutation: Mutation,
}

/// The moment at which a rank comes to a collective, and the commit that is agreed on there.
pub type Collective = (usize, Option<(u8, Made)>);

/// One rank's drives after so many actions, in several versions where the rank had a choice.
#[derive(Default)]
pub struct Life {
    pub moments: Vec<Vec<Drives>>,
    pub collectives: Vec<Collective>,
}

/// Whether a step writes to the second drive, where steps change drives.
fn made_on_second(made: Made) -> bool {
    !(made.step / 2).is_multiple_of(2)
}

/// Added to the number of a step that fails.
const FAILED: u8 = 100;

/// The next action of a rank that was stopped, and goes on in the next life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Late {
    pub rank: usize,
    pub before: Content,
    pub after: Content,
}

/// One life: how it begins, its number, with which step it ends early, and who comes back in it.
pub struct Circumstances<'a> {
    pub start: &'a Start,
    pub life: u8,
    pub stops_after: Option<u8>,
    pub late: Option<Late>,
}

/// One rank in one life.
struct Rank<'a> {
    model: &'a Model,
    drives: Drives,
    slots: Slots,
    placement: Placement,
    place: usize,
    agreed: Option<Record>,
    epochs: Epochs,
    /// The last step of this life, which is a commit.
    stops_after: Option<u8>,
    commit_every: u8,
    /// What the newest slot holds.
    value: Option<Made>,
    job: u8,
    moments: Vec<Drives>,
    collectives: Vec<Collective>,
}

impl Rank<'_> {
    fn done(&mut self) {
        self.moments.push(self.drives);
    }

    fn remove_record(&mut self, place: usize) {
        self.drives.before.places[place] = self.keep(self.drives.now.places[place]);
        self.drives.now.places[place] = None;
        self.done();
    }

    fn keep<T: Default>(&self, before: T) -> T {
        if self.model.may_lose_power { before } else { T::default() }
    }

    /// A step's swap-in, and its swap-out in two actions; or none, for a chunk without a gradient.
    fn write_slot(&mut self, value: Made, is_left_out: bool) -> Result<(), String> {
        let newest = self.slots.read_extent(CHUNK);
        let mut extent = self.slots.write_extent(CHUNK);
        if self.model.mutation == Mutation::StepsWriteCommitted && self.agreed.is_some() {
            extent = ExtentIndex(self.slots.committed()[0].into());
        }
        if let Some(value) = self.value
            && self.drives.now.units[unit_at(&self.placement.segments(newest))]
                != Slot::Whole(value)
        {
            return Err(format!("step {} reads wrong bytes", value.step));
        }
        if self.model.moves {
            let only = usize::from(made_on_second(value));
            self.placement.reweigh(&[[1.0, 0.0], [0.0, 1.0]][only]);
        }
        if self.model.mutation == Mutation::FreedByTheWrite && self.agreed.is_some() {
            self.move_extent(newest);
        }
        if is_left_out {
            self.done();
            self.done();
            return Ok(());
        }
        let given_up = unit_at(&self.placement.segments(extent));
        let unit = unit_at(&self.placement.begin_write(extent));
        self.write_unit(unit, Slot::Torn);
        self.done();
        self.drives.now.units[unit] = Slot::Whole(value);
        self.value = Some(value);
        self.slots.mark_written(CHUNK);
        self.placement.end_write(extent, true);
        if given_up != unit {
            // Nobody may need it any more.
            self.write_unit(given_up, Slot::Empty);
        }
        self.done();
        Ok(())
    }

    fn write_unit(&mut self, unit: usize, content: Slot) {
        self.drives.before.units[unit] = self.keep(self.drives.now.units[unit]);
        self.drives.now.units[unit] = content;
    }

    /// Deals an extent anew, with all that it holds.
    fn move_extent(&mut self, extent: ExtentIndex) {
        let from = unit_at(&self.placement.segments(extent));
        let to = unit_at(&self.placement.begin_write(extent));
        self.placement.end_write(extent, true);
        let content = self.drives.now.units[from];
        self.write_unit(from, Slot::Empty);
        self.write_unit(to, content);
    }

    fn write_record(&mut self, record: Record) {
        let place = match self.model.mutation {
            Mutation::RecordOverAgreed => self.place,
            _ => place_beside(self.place),
        };
        self.drives.before.places[place] = self.keep(self.drives.now.places[place]);
        self.drives.now.places[place] = None;
        self.done();
        self.drives.now.places[place] = Some(record);
        self.done();
    }

    fn agree_on(&mut self, record: Record) {
        self.agreed = Some(record);
        self.epochs = Epochs::after(record.epoch.into());
        if self.model.mutation != Mutation::RecordOverAgreed {
            self.place = place_beside(self.place);
        }
    }

    /// Nobody goes on before all have come here.
    fn meet(&mut self, agreed: Option<Record>) {
        let agreed = agreed.map(|record| (record.epoch, record.commit));
        self.collectives.push((self.moments.len() - 1, agreed));
    }

    /// The next record.
    fn record_of(&self, commit: Made) -> Result<Record, String> {
        let mut slots = self.slots.clone();
        slots.commit();
        let moved = self.placement.moved_units(&slots.committed_extents());
        Ok(Record {
            job: self.job,
            epoch: self.epochs.next() as u8,
            incarnation: self.agreed.map_or(0, |agreed| agreed.incarnation),
            steps: commit.step,
            slot: slots.committed()[0],
            moved: moved.units.first().map(|unit| *unit as u8),
            value: self.value.ok_or("a commit of nothing")?,
            commit,
        })
    }

    /// Writes the next record and agrees on it.
    fn commit(&mut self, commit: Made) -> Result<(), String> {
        let record = self.record_of(commit)?;
        self.write_record(record);
        self.agree_on(record);
        // With drifting ranks the collectives do not belong together.
        self.meet(Some(record).filter(|_| !self.model.drifts));
        // In memory alone, so when each rank does it does not matter.
        self.slots.commit();
        Ok(())
    }

    /// A step that changes nothing and fails on all ranks but rank 0, which has written its record.
    /// All agree that it has failed, and go on.
    fn fail(&mut self, step: u8, life: u8, rank: usize) -> Result<(), String> {
        if rank == 0 {
            let record = self.record_of(Made { step: FAILED + step, life })?;
            self.write_record(record);
        } else {
            self.done();
            self.done();
        }
        self.meet(None);
        if self.model.mutation != Mutation::NumberUsedAgain {
            self.epochs.spend();
        }
        Ok(())
    }

    fn begin(&mut self, start: &Start, rank: usize, life: u8) -> Result<(), String> {
        self.done();
        let Start::Resume { records, incarnation } = start else {
            self.job = life;
            self.remove_record(0);
            self.remove_record(1);
            self.meet(None);
            let made = Made { step: 0, life };
            self.write_slot(made, false)?;
            return self.commit(made);
        };
        let (record, place) = records[rank];
        self.slots = Slots::from_committed(vec![record.slot]);
        if self.model.mutation != Mutation::ResumeForgetsPlacement {
            record.place_in(&self.placement);
        }
        (self.agreed, self.place, self.job) = (Some(record), place, record.job);
        self.epochs = Epochs::after(record.epoch.into());
        self.value = Some(record.value);
        if self.model.mutation != Mutation::ResumeWritesNothing {
            let record = Record { incarnation: *incarnation as u8, ..record };
            self.write_record(record);
            self.agree_on(record);
        }
        if self.model.mutation != Mutation::ResumeIsNotAgreed {
            self.meet(Some(record));
        }
        Ok(())
    }

    fn train(&mut self, life: u8, left_out: u32, rank: usize) -> Result<(), String> {
        let first = self.agreed.map_or(0, |agreed| agreed.steps) + 1;
        for step in first..=self.model.steps {
            if self.model.fails {
                self.fail(step, life, rank)?;
            }
            let made = Made { step, life };
            self.write_slot(made, left_out & 1 << step != 0)?;
            let stops = self.stops_after == Some(step);
            match stops || step.is_multiple_of(self.commit_every) {
                true => self.commit(made)?,
                false => {
                    if step.is_multiple_of(self.model.commit_every) {
                        // The others write a record meanwhile.
                        self.done();
                        self.done();
                    }
                    self.meet(None);
                }
            }
            if stops {
                break;
            }
        }
        Ok(())
    }

    /// What a rank of the last life still does, which was stopped before its last write.
    fn suffer(&mut self, late: &Late) {
        fn lay_over<T: Copy + PartialEq>(now: &mut [T], before: &[T], after: &[T]) {
            for (now, (before, after)) in now.iter_mut().zip(before.iter().zip(after)) {
                if before != after {
                    *now = *after;
                }
            }
        }
        let Late { before, after, .. } = late;
        lay_over(&mut self.drives.now.units, &before.units, &after.units);
        lay_over(&mut self.drives.now.places, &before.places, &after.places);
        self.done();
    }
}

impl Model {
    /// The life of one rank, with all its choices.
    pub fn live(
        &self,
        circumstances: &Circumstances<'_>,
        rank: usize,
        drives: Drives,
    ) -> Result<Life, String> {
        let Circumstances { start, life, stops_after, late } = circumstances;
        let mut all = Life::default();
        let choices = if self.may_leave_out { 1 << (self.steps + 1) } else { 1 };
        for left_out in (0..choices).filter(|choice| choice & 1 == 0) {
            let mut rank_now = Rank {
                model: self,
                drives,
                slots: Slots::new(1, true),
                placement: placement(),
                // As in `Durable::new`: place 0 is written first.
                place: 1,
                agreed: None,
                epochs: Epochs::default(),
                stops_after: *stops_after,
                commit_every: self.commit_every << u8::from(self.drifts && rank == 1),
                value: None,
                job: 0,
                moments: Vec::new(),
                collectives: Vec::new(),
            };
            rank_now.begin(start, rank, *life)?;
            if let Some(late) = late {
                match late.rank == rank {
                    true => rank_now.suffer(late),
                    false => rank_now.done(),
                }
            }
            rank_now.train(*life, left_out, rank)?;
            all.moments.resize(rank_now.moments.len(), Vec::new());
            for (versions, moment) in all.moments.iter_mut().zip(rank_now.moments) {
                if !versions.contains(&moment) {
                    versions.push(moment);
                }
            }
            all.collectives = rank_now.collectives;
        }
        Ok(all)
    }
}
