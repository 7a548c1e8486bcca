//! The records of commits, which make steps survive the process, and which of them a job goes on
//! from. The protocol is in [`crate::storage::commit`].

use super::super::progress::Progress;
use super::super::shard::Shard;
use crate::coord::{Communicator, agree, gather_all};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::Plan;
use crate::state::{LossScaleRule, LossScaler};
use crate::storage::commit::{
    Epochs, Held, Places, Stamp, Verdict, judge, place_beside, place_of, places_of, steps_of,
};
use crate::storage::{MovedUnits, Record, RecordFiles, Slots, boot_id, held};

/// A durable job's records: the last agreed one, and where the next one goes.
pub(in crate::step) struct Durable {
    files: RecordFiles,
    agreed: Record,
    /// The place that holds `agreed`.
    place: usize,
    epochs: Epochs,
}

impl Durable {
    /// The records of a new job: nothing is committed, and epoch 0 comes next.
    pub fn new(files: RecordFiles, job_id: String) -> Self {
        let agreed = Record {
            stamp: Stamp { epoch: 0, incarnation: 0 },
            job_id,
            attempts: 0,
            update_counts: Vec::new(),
            slots: Vec::new(),
            moved: MovedUnits::default(),
            shares: Vec::new(),
            checksums: Vec::new(),
            loss_scaler: LossScaler::new(LossScaleRule::OFF).state(),
            user_blob: Vec::new(),
            boot_id: boot_id(),
            is_synced: false,
        };
        // Place 0 is written first.
        Self { files, agreed, place: 1, epochs: Epochs::default() }
    }

    /// The last agreed record.
    pub fn agreed(&self) -> &Record {
        &self.agreed
    }

    /// Writes the next record beside the agreed one. It counts when all ranks have written theirs;
    /// then it is handed to [`Self::agree_on`].
    ///
    /// # Errors
    /// I/O: a drive cannot be flushed, or the record not be written.
    pub fn write(&self, shard: &Shard, progress: &Progress) -> Result<Record> {
        let mut slots = shard.slots.clone();
        slots.commit();
        let sync = shard.plan.config().durability.sync;
        let epoch = self.epochs.next();
        let record = Record {
            stamp: Stamp { epoch, ..self.agreed.stamp },
            job_id: self.agreed.job_id.clone(),
            attempts: progress.attempts,
            update_counts: progress.counts_of_pieces(&shard.plan),
            slots: slots.committed().to_vec(),
            moved: shard.plan.placement().moved_units(&slots.committed_extents()),
            shares: shard.plan.placement().shares(),
            checksums: shard.checksums.table().to_vec(),
            loss_scaler: progress.loss_scaler.state(),
            user_blob: progress.user_blob.clone(),
            boot_id: self.agreed.boot_id.clone(),
            is_synced: sync,
        };
        if sync {
            shard.files.sync()?;
        }
        self.files.write(place_beside(self.place), &record, sync)?;
        Ok(record)
    }

    /// Takes a record that all ranks have written as the agreed one.
    pub fn agree_on(&mut self, record: Record) {
        self.epochs = Epochs::after(record.stamp.epoch);
        self.agreed = record;
        self.place = place_beside(self.place);
    }

    /// Notes that a commit has failed, on all ranks: some may have written its record.
    pub fn give_up(&mut self) {
        self.epochs.spend();
    }

    /// Whether anything has been committed.
    pub fn is_committed(&self) -> bool {
        self.epochs.agreed().is_some()
    }

    /// Reads both records.
    ///
    /// # Errors
    /// I/O.
    pub fn read(&self) -> Result<[Option<Record>; 2]> {
        self.files.read()
    }

    /// Takes the chosen record as the agreed one, and writes it again under a new incarnation, over
    /// whatever is newer.
    ///
    /// # Errors
    /// I/O: it cannot be written.
    pub fn go_back_to(&mut self, chosen: Chosen, sync: bool) -> Result<()> {
        (self.agreed, self.place) = (chosen.record, chosen.place);
        self.reassert(chosen.incarnation, sync)
    }

    /// Writes the agreed record again under a new incarnation, over whatever is newer.
    fn reassert(&mut self, incarnation: u64, sync: bool) -> Result<()> {
        let stamp = Stamp { incarnation, ..self.agreed.stamp };
        let record = Record { stamp, boot_id: boot_id(), ..self.agreed.clone() };
        self.files.write(place_beside(self.place), &record, sync)?;
        self.agree_on(record);
        Ok(())
    }
}

/// How a durable job came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resumed {
    /// The commit that all ranks have.
    pub stamp: Stamp,
    /// Steps attempted up to it.
    pub attempt: u64,
    /// The user blob of the committed step, as the rank with this shard gave it.
    pub user_blob: Vec<u8>,
    /// Why it is this commit, as a phrase for the log.
    pub why: String,
}

/// A record to go on from.
pub struct Chosen {
    /// The record.
    pub record: Record,
    place: usize,
    incarnation: u64,
    /// Why it is this one, in words.
    pub why: String,
}

/// Collective: the record that this rank's shard goes on from; `None` if no step was ever
/// committed.
///
/// # Errors
/// I/O, agreed, if a record that had been agreed is gone.
pub fn choose_record(
    comm: &dyn Communicator,
    job_id: &str,
    records: Result<[Option<Record>; 2]>,
) -> Result<Option<Chosen>> {
    let records = agree(comm, records)?;
    let records = records.map(|record| record.filter(|record| record.job_id == job_id));
    let all: Vec<Held> = gather_all(comm, &held(&records))?;
    let all_places: Vec<Places> = all.iter().map(places_of).collect();
    match judge(&all_places) {
        Verdict::Fresh => Ok(None),
        Verdict::Broken { shard, newest } => {
            let missing = Error::new(ErrorKind::StateLost, "a shard has lost its records")
                .with("rank", shard)
                .with("its records", describe_places(&all_places[shard]))
                .with("newest record of any rank", newest)
                .hint("the state of that shard cannot be trusted: load a checkpoint");
            agree(comm, Err(missing))
        }
        Verdict::Resume { stamp, incarnation } => {
            agree(comm, check_steps(&all, stamp))?;
            let place = place_of(&all_places[comm.rank().index()], stamp).unwrap_or(0);
            let [first, second] = records;
            let record = if place == 0 { first } else { second };
            let record = record.ok_or_else(|| Error::internal("the agreed record is not here"))?;
            let newer =
                all_places.iter().filter(|places| places.iter().flatten().any(|s| *s > stamp));
            let why = match newer.count() {
                0 => "the newest that any rank has".to_owned(),
                some => format!("{some} of {} ranks have a newer one, not all", all.len()),
            };
            Ok(Some(Chosen { record, place, incarnation, why }))
        }
    }
}

/// Checks that all shards have a commit after the same number of steps. They have not if ranks ran
/// with different configurations, which no start allows any more.
///
/// # Errors
/// State lost, with ranks and numbers of steps.
pub(crate) fn check_steps(all: &[Held], stamp: Stamp) -> Result<()> {
    let Err(differing) = steps_of(all, stamp) else { return Ok(()) };
    let message = "the records of a commit are of different steps: it is none";
    let error = Error::new(ErrorKind::StateLost, message).with("commit", stamp);
    let named = differing.iter().take(8);
    let error = named.fold(error, |error, (rank, steps)| {
        error.with(format!("rank {rank}"), format!("step {steps}"))
    });
    Err(error.hint("the state of these shards cannot be trusted: load a checkpoint"))
}

fn describe_places(places: &Places) -> String {
    let known: Vec<String> = places.iter().flatten().map(ToString::to_string).collect();
    if known.is_empty() { "none".to_owned() } else { known.join(" and ") }
}

/// Checks that a record fits the layout of this shard. If it does not, it is damaged in a way that
/// its checksum does not show.
///
/// # Errors
/// I/O.
pub(in crate::step) fn check_fit(plan: &Plan, record: &Record) -> Result<()> {
    let chunks = plan.partition().chunks().len();
    let found = [record.slots.len(), record.checksums.len(), record.update_counts.len()];
    let expected = [chunks, chunks * plan.sums_per_chunk(), plan.partition().pieces().len()];
    if found == expected && record.slots.iter().all(|slot| *slot < 2) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Io, "the record of the last commit does not fit the shard's layout")
        .with("slots, checksums and pieces", format!("{found:?}"))
        .with("expected", format!("{expected:?}"))
        .hint("the state of that shard cannot be trusted: load a checkpoint"))
}

/// Takes over where the chunks lie from a record, so that they are read there from now on.
pub(crate) fn place_as_recorded(plan: &Plan, record: &Record) -> Result<()> {
    let extents = Slots::from_committed(record.slots.clone()).committed_extents();
    let placed = plan.placement().restore(&extents, &record.moved, &record.shares);
    placed.map_err(|why| {
        Error::new(ErrorKind::Io, "the placement in a record does not fit the shard's layout")
            .with("shard", plan.shard())
            .because(why)
            .hint("the state of that shard cannot be trusted: load a checkpoint")
    })
}
