//! Commits: what makes a step survive the process. The protocol is in [`crate::storage::commit`].

use super::checksums::Checksums;
use super::optimizer::SwappedOptimizer;
use super::plan::Plan;
use crate::coord::{Communicator, agree, gather_all};
use crate::error::{Error, ErrorKind, Result};
use crate::optim::{ParamElem, split_halves};
use crate::state::{LossScaleRule, LossScaler, LossScalerState};
use crate::storage::commit::{Places, Stamp, Verdict, judge, place_beside, place_of};
use crate::storage::{
    MovedUnits, Placement, Record, RecordFiles, ShardFiles, Slots, boot_id, stamps,
};

/// A durable job's records: the last agreed one, and where the next one goes.
pub(super) struct Durable {
    files: RecordFiles,
    agreed: Record,
    /// The place that holds `agreed`.
    place: usize,
    /// Whether anything has been agreed.
    is_committed: bool,
}

/// What a commit makes permanent.
pub(super) struct Progress<'a> {
    pub attempts: u64,
    pub update_counts: Vec<u64>,
    pub checksums: &'a Checksums,
    pub loss_scaler: LossScalerState,
    pub user_blob: &'a [u8],
}

impl Durable {
    /// Of a new job: nothing is committed, and epoch 0 comes next.
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
        Self { files, agreed, place: 1, is_committed: false }
    }

    /// The last agreed record.
    pub fn agreed(&self) -> &Record {
        &self.agreed
    }

    /// Writes the next record beside the agreed one. It counts when all ranks have written theirs;
    /// then [`Self::agree_on`] takes it.
    pub fn write(
        &self,
        slots: &Slots,
        placement: &Placement,
        progress: Progress<'_>,
        shard: &ShardFiles,
        sync: bool,
    ) -> Result<Record> {
        let mut slots = slots.clone();
        slots.commit();
        let epoch = if self.is_committed { self.agreed.stamp.epoch + 1 } else { 0 };
        let record = Record {
            stamp: Stamp { epoch, ..self.agreed.stamp },
            job_id: self.agreed.job_id.clone(),
            attempts: progress.attempts,
            update_counts: progress.update_counts,
            slots: slots.committed().to_vec(),
            moved: placement.moved_units(&slots.committed_extents()),
            shares: placement.shares(),
            checksums: progress.checksums.table().to_vec(),
            loss_scaler: progress.loss_scaler,
            user_blob: progress.user_blob.to_vec(),
            boot_id: self.agreed.boot_id.clone(),
            is_synced: sync,
        };
        if sync {
            shard.sync()?;
        }
        self.files.write(place_beside(self.place), &record, sync)?;
        Ok(record)
    }

    /// All ranks have written this record.
    pub fn agree_on(&mut self, record: Record) {
        self.agreed = record;
        self.place = place_beside(self.place);
        self.is_committed = true;
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
    /// What was handed to the step that it committed, by this shard's rank.
    pub user_blob: Vec<u8>,
    /// Why it is this commit, in words.
    pub why: String,
}

/// A record to go on from.
pub(super) struct Chosen {
    pub record: Record,
    place: usize,
    incarnation: u64,
    why: String,
}

/// Collective: which record each shard goes on from; none if no step was ever committed.
///
/// # Errors
/// I/O, agreed, if a record that had been agreed is gone.
pub(super) fn choose_record(
    comm: &dyn Communicator,
    job_id: &str,
    records: Result<[Option<Record>; 2]>,
) -> Result<Option<Chosen>> {
    let records = agree(comm, records)?;
    let records = records.map(|record| record.filter(|record| record.job_id == job_id));
    let places = stamps(&records);
    let all = gather_all(comm, &places)?;
    match judge(&all) {
        Verdict::Fresh => Ok(None),
        Verdict::Broken { shard, newest } => {
            let missing = Error::new(ErrorKind::StateLost, "a shard has lost its records")
                .with("rank", shard)
                .with("its records", describe_places(&all[shard]))
                .with("newest record of any rank", newest)
                .hint("the state of that shard cannot be trusted: load a checkpoint");
            agree(comm, Err(missing))
        }
        Verdict::Resume { stamp, incarnation } => {
            let place = place_of(&places, stamp).unwrap_or(0);
            let [first, second] = records;
            let record = if place == 0 { first } else { second };
            let record = record.ok_or_else(|| Error::internal("the agreed record is not here"))?;
            let newer = all.iter().filter(|places| places.iter().flatten().any(|s| *s > stamp));
            let why = match newer.count() {
                0 => "the newest that any rank has".to_owned(),
                some => format!("{some} of {} ranks have a newer one, not all", all.len()),
            };
            Ok(Some(Chosen { record, place, incarnation, why }))
        }
    }
}

fn describe_places(places: &Places) -> String {
    let known: Vec<String> = places.iter().flatten().map(ToString::to_string).collect();
    if known.is_empty() { "none".to_owned() } else { known.join(" and ") }
}

impl SwappedOptimizer {
    /// The commit that this optimizer came back with, if it did.
    pub fn resumed(&self) -> Option<&Resumed> {
        self.resumed.as_ref()
    }

    /// The number of the last commit; `None` for a scratch job, or before the first.
    pub fn epoch(&self) -> Option<u64> {
        let durable = self.durable.as_ref().filter(|durable| durable.is_committed);
        durable.map(|durable| durable.agreed().stamp.epoch)
    }

    /// What was handed to the last step that was taken.
    pub fn user_blob(&self) -> &[u8] {
        &self.user_blob
    }

    /// Steps attempted up to the last commit.
    pub(super) fn committed_attempts(&self) -> Option<u64> {
        let durable = self.durable.as_ref().filter(|durable| durable.is_committed);
        durable.map(|durable| durable.agreed.attempts)
    }

    /// Steps attempted so far, over all incarnations of the job.
    pub fn attempts(&self) -> u64 {
        self.attempts
    }

    /// Collective: after an agreed error, goes back to the last commit. The parameters of the shard
    /// are emitted again, in shard order, and the caller goes on from [`Self::attempts`] and the
    /// blob that it gets back.
    ///
    /// # Errors
    /// Usage for a scratch job or before the first commit; agreed errors of the drives.
    pub fn recover<P: ParamElem>(&mut self, params: &mut [P]) -> Result<Vec<u8>> {
        let possible = match &self.durable {
            Some(durable) if durable.is_committed => Ok(()),
            Some(_) => Err(Error::usage("nothing is committed yet that could be gone back to")),
            None => Err(Error::usage("a scratch job cannot go back: nothing is committed")
                .hint("set durability.mode = \"step\"")),
        };
        agree(&*self.comm, possible)?;
        self.forget_pass();
        self.swapper.recover();
        self.go_back_to_commit()?;
        self.emit_parameters(params)?;
        Ok(self
            .durable
            .as_ref()
            .map(|durable| durable.agreed.user_blob.clone())
            .unwrap_or_default())
    }

    /// Collective: takes the state of the newest record that all ranks have, and writes that record
    /// again under a new incarnation before any slot is written.
    pub(super) fn go_back_to_commit(&mut self) -> Result<()> {
        let Some(durable) = &self.durable else { return Ok(()) };
        let chosen = choose_record(&*self.comm, &durable.agreed.job_id, durable.files.read())?;
        let Some(Chosen { record, place, incarnation, why }) = chosen else {
            return Err(Error::internal("there is no commit to go back to"));
        };
        let fits = check_fit(&self.plan, &record);
        agree(&*self.comm, fits.and_then(|()| place_as_recorded(&self.plan, &record)))?;
        self.begin_balance();
        self.slots = Slots::from_committed(record.slots.clone());
        self.checksums.restore(&record.checksums);
        self.attempts = record.attempts;
        self.user_blob.clone_from(&record.user_blob);
        self.loss_scaler.restore(record.loss_scaler);
        self.discard_gradients();
        self.snapshot = None;
        restore_counts(&self.plan, &record.update_counts, &mut self.update_counts);
        // Without a flush, what was written before the machine went down may not be on the drives.
        let is_trusted = record.is_synced || record.boot_id == boot_id();
        let trusted = if is_trusted { Ok(()) } else { self.read_all(&[], |_, _, _| Ok(())) };
        agree(&*self.comm, trusted)?;
        let (stamp, attempt) = (record.stamp, record.attempts);
        let user_blob = record.user_blob.clone();
        let sync = self.plan.config().durability.sync;
        let reasserted = self.durable.as_mut().map_or(Ok(()), |durable| {
            (durable.agreed, durable.place) = (record, place);
            durable.reassert(incarnation, sync)
        });
        agree(&*self.comm, reasserted)?;
        self.files.keep(true);
        self.unusable = None;
        self.resumed = Some(Resumed { stamp, attempt, user_blob, why });
        Ok(())
    }

    /// Collective: emits the parameters of the shard from the masters on the drives, in shard
    /// order.
    ///
    /// # Errors
    /// Usage if the slice has not the shard's length, or if the masters' upper halves are nowhere
    /// but in the parameters themselves; agreed errors of the drives.
    pub fn emit_parameters<P: ParamElem>(&mut self, params: &mut [P]) -> Result<()> {
        agree(&*self.comm, self.check_params(params))?;
        let is_halved = self.plan.is_halved();
        self.inspect(|view| {
            let out = &mut params[view.run.in_shard()];
            if is_halved {
                let halves = P::upper_halves_mut(out).iter_mut().zip(view.master);
                halves.for_each(|(upper, master)| *upper = split_halves(*master).0);
                return Ok(());
            }
            out.iter_mut().zip(view.master).for_each(|(param, master)| *param = P::emit(*master));
            Ok(())
        })
    }

    /// Whether the step that has just been taken is one to commit.
    pub(super) fn is_commit_due(&self) -> bool {
        self.attempts.is_multiple_of(self.plan.config().durability.commit_every)
    }

    /// Brings what is newer in memory to the drives, and writes the record of what lies there then;
    /// nothing for a scratch job. Not agreed.
    pub(super) fn write_record(&mut self, user_blob: &[u8]) -> Result<Option<Record>> {
        if self.durable.is_some() {
            self.swapper.flush()?;
        }
        let Some(durable) = &self.durable else { return Ok(None) };
        let progress = Progress {
            attempts: self.attempts,
            update_counts: counts_of(&self.plan, &self.update_counts),
            checksums: &self.checksums,
            loss_scaler: self.loss_scaler.state(),
            user_blob,
        };
        let sync = self.plan.config().durability.sync;
        durable.write(&self.slots, self.plan.placement(), progress, &self.files, sync).map(Some)
    }

    /// Collective: commits outside of a step, as after the initialisation.
    pub(super) fn commit(&mut self, user_blob: &[u8]) -> Result<()> {
        let record = self.write_record(user_blob);
        let record = agree(&*self.comm, record)?;
        record.into_iter().for_each(|record| self.take_commit(record));
        Ok(())
    }

    /// All ranks have written this record.
    pub(super) fn take_commit(&mut self, record: Record) {
        if let Some(durable) = &mut self.durable {
            durable.agree_on(record);
            self.slots.commit();
            self.files.keep(true);
        }
    }
}

/// A record of another cut of the state, or of none, is damage that its checksum does not show.
fn check_fit(plan: &Plan, record: &Record) -> Result<()> {
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

/// From now on chunks are read where this record says that they lie.
pub(super) fn place_as_recorded(plan: &Plan, record: &Record) -> Result<()> {
    let extents = Slots::from_committed(record.slots.clone()).committed_extents();
    let placed = plan.placement().restore(&extents, &record.moved, &record.shares);
    placed.map_err(|why| {
        Error::new(ErrorKind::Io, "the placement in a record does not fit the shard's layout")
            .with("shard", plan.shard())
            .because(why)
            .hint("the state of that shard cannot be trusted: load a checkpoint")
    })
}

/// The update counts of a shard's pieces.
pub(super) fn counts_of(plan: &Plan, counts: &[u64]) -> Vec<u64> {
    plan.partition().pieces().iter().map(|piece| counts[piece.param.index()]).collect()
}

fn restore_counts(plan: &Plan, of_pieces: &[u64], counts: &mut [u64]) {
    for (piece, count) in plan.partition().pieces().iter().zip(of_pieces) {
        counts[piece.param.index()] = *count;
    }
}
