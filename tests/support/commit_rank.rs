//! One rank's part of the model of commits: what lies on its drives, and its way through one life
//! of the job. See `tests/commit_protocol.rs`.

use optswap::ChunkIndex;
use optswap::internals::storage::commit::{Stamp, place_beside};
use optswap::internals::storage::{MovedUnits, Placement, Slots};
use optswap::internals::units::ExtentIndex;

/// The only chunk: its extent has the number of its slot.
const CHUNK: ChunkIndex = ChunkIndex(0);
const UNIT: u64 = 4096;
const SHARES: [f64; 2] = [0.5, 0.5];

/// Two slots of one unit, and one free unit, on each of two drives.
pub fn placement() -> Placement {
    Placement::weighted(&[UNIT, UNIT], UNIT, &SHARES, 0, 1.0)
}

/// Which of all units an extent lies in.
fn unit_at(segments: &[optswap::internals::storage::Segment]) -> usize {
    2 * segments[0].drive.index() + (segments[0].file_offset / UNIT) as usize
}

/// Which of all units a record's slot lies in.
pub fn unit_of(record: &Record) -> usize {
    let placement = placement();
    record.place_in(&placement);
    unit_at(&placement.segments(ExtentIndex(record.slot.into())))
}

/// By which step, in which life of the job, something was computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Made {
    pub step: u8,
    pub life: u8,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Slot {
    #[default]
    Empty,
    Torn,
    Whole(Made),
}

/// What counts of `optswap::internals::storage::Record`; numbers are small here, so that worlds are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Record {
    /// The life in which the job was created, for the job's id.
    pub job: u8,
    pub epoch: u8,
    pub incarnation: u8,
    pub slot: u8,
    /// Where the slot lies, if it has moved.
    pub moved: Option<u8>,
    /// The checksum: what the slot holds if it is whole.
    pub value: Made,
    /// Which commit it is really; the protocol cannot see this.
    pub commit: Made,
}

impl Record {
    pub fn stamp(&self) -> Stamp {
        Stamp { epoch: self.epoch.into(), incarnation: self.incarnation.into() }
    }

    fn place_in(&self, placement: &Placement) {
        let moved = self.moved.map_or_else(MovedUnits::default, |unit| MovedUnits {
            extents: vec![0],
            units: vec![unit.into()],
        });
        placement.restore(&[ExtentIndex(self.slot.into())], &moved, &SHARES).unwrap();
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Content {
    pub units: [Slot; 4],
    /// `None`: no record, or a torn one.
    pub places: [Option<Record>; 2],
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Drives {
    pub now: Content,
    /// What each of them was before its last write; kept only where power may be lost.
    pub before: Content,
}

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

/// One rank in one life.
struct Rank<'a> {
    model: &'a Model,
    drives: Drives,
    slots: Slots,
    placement: Placement,
    place: usize,
    agreed: Option<Record>,
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
        (self.agreed, self.place) = (Some(record), place);
    }

    /// Nobody goes on before all have come here.
    fn meet(&mut self, agreed: Option<Record>) {
        let agreed = agreed.map(|record| (record.epoch, record.commit));
        self.collectives.push((self.moments.len() - 1, agreed));
    }

    /// Writes the next record and agrees on it.
    fn commit(&mut self, commit: Made) -> Result<(), String> {
        let mut slots = self.slots.clone();
        slots.commit();
        let moved = self.placement.moved_units(&slots.committed_extents());
        let record = Record {
            job: self.job,
            epoch: self.agreed.map_or(0, |agreed| agreed.epoch + 1),
            incarnation: self.agreed.map_or(0, |agreed| agreed.incarnation),
            slot: slots.committed()[0],
            moved: moved.units.first().map(|unit| *unit as u8),
            value: self.value.ok_or("a commit of nothing")?,
            commit,
        };
        self.write_record(record);
        self.meet(Some(record));
        // In memory alone, so when each rank does it does not matter.
        self.slots.commit();
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
        self.value = Some(record.value);
        if self.model.mutation != Mutation::ResumeWritesNothing {
            self.write_record(Record { incarnation: *incarnation as u8, ..record });
        }
        if self.model.mutation != Mutation::ResumeIsNotAgreed {
            self.meet(Some(record));
        }
        Ok(())
    }

    fn train(&mut self, life: u8, left_out: u32) -> Result<(), String> {
        let every = self.model.commit_every;
        let first = self.agreed.map_or(0, |agreed| agreed.epoch * every) + 1;
        for step in first..=self.model.steps {
            let made = Made { step, life };
            self.write_slot(made, left_out & 1 << step != 0)?;
            match step.is_multiple_of(every) {
                true => self.commit(made)?,
                false => self.meet(None),
            }
        }
        Ok(())
    }
}

impl Model {
    /// The life of one rank, with all its choices.
    pub fn live(
        &self,
        start: &Start,
        rank: usize,
        drives: Drives,
        life: u8,
    ) -> Result<Life, String> {
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
                value: None,
                job: 0,
                moments: Vec::new(),
                collectives: Vec::new(),
            };
            rank_now.begin(start, rank, life)?;
            rank_now.train(life, left_out)?;
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
