//! Committing, and going back to a commit.

use super::super::optimizer::SwappedOptimizer;
use super::super::parameters::ParameterSink;
use super::commit::{Resumed, check_fit, choose_record, place_as_recorded};
use crate::coord::agree;
use crate::error::{Error, Result};
use crate::storage::{Record, Slots, boot_id};

impl SwappedOptimizer {
    /// The commit that this optimizer has gone on from; `None` for a new job.
    pub fn resumed(&self) -> Option<&Resumed> {
        self.resumed.as_ref()
    }

    /// The number of the last commit; `None` for a scratch job, or before the first.
    pub fn epoch(&self) -> Option<u64> {
        let durable = self.durable.as_ref().filter(|durable| durable.is_committed());
        durable.map(|durable| durable.agreed().stamp.epoch)
    }

    /// Steps attempted up to the last commit.
    pub(in crate::step) fn committed_attempts(&self) -> Option<u64> {
        let durable = self.durable.as_ref().filter(|durable| durable.is_committed());
        durable.map(|durable| durable.agreed().attempts)
    }

    /// Collective: after an agreed error, goes back to the last commit. The parameters of the shard
    /// are emitted again, in shard order, into `params`. Returns the user blob of that commit;
    /// training goes on after step [`Self::attempts`].
    ///
    /// # Errors
    /// Agreed. Usage for a scratch job, before the first commit, or if `params` does not fit the
    /// shard; errors of the drives.
    pub fn recover<S: ParameterSink + ?Sized>(&mut self, params: &mut S) -> Result<Vec<u8>> {
        let _call = self.enter("recover");
        let possible = match &self.durable {
            Some(durable) if durable.is_committed() => Ok(()),
            Some(_) => Err(Error::usage("nothing is committed yet that could be gone back to")),
            None => Err(Error::usage("a scratch job cannot go back: nothing is committed")
                .hint("set durability.mode = \"step\"")),
        };
        agree(&*self.comm, possible)?;
        self.forget_pass();
        self.shard.swapper.recover();
        self.go_back_to_commit()?;
        self.emit_parameters(params)?;
        Ok(self.progress.user_blob.clone())
    }

    /// Collective: takes the state of the newest record that all ranks have, and writes that record
    /// again under a new incarnation before any slot is written.
    pub(in crate::step) fn go_back_to_commit(&mut self) -> Result<()> {
        let Some(durable) = &self.durable else { return Ok(()) };
        let chosen = choose_record(&*self.comm, &durable.agreed().job_id, durable.read())?;
        let chosen = chosen.ok_or_else(|| Error::internal("there is no commit to go back to"))?;
        let (plan, record) = (&self.shard.plan, &chosen.record);
        let fits = check_fit(plan, record);
        agree(&*self.comm, fits.and_then(|()| place_as_recorded(plan, record)))?;
        self.take_state_of(record);
        // Without a flush at the commit, what was written may be lost if the machine has been
        // restarted since. Then everything is read and compared.
        let is_trusted = record.is_synced || record.boot_id == boot_id();
        let trusted = if is_trusted { Ok(()) } else { self.read_all(&[], |_, _, _| Ok(())) };
        agree(&*self.comm, trusted)?;
        let resumed = Resumed {
            stamp: chosen.record.stamp,
            attempt: chosen.record.attempts,
            user_blob: chosen.record.user_blob.clone(),
            why: chosen.why.clone(),
        };
        let sync = self.shard.plan.config().durability.sync;
        let reasserted =
            self.durable.as_mut().map_or(Ok(()), |durable| durable.go_back_to(chosen, sync));
        agree(&*self.comm, reasserted)?;
        self.shard.files.keep(true);
        self.progress.unusable = None;
        self.resumed = Some(resumed);
        Ok(())
    }

    /// Sets everything that is kept in memory back to this commit.
    fn take_state_of(&mut self, record: &Record) {
        let shard = &mut self.shard;
        self.watch.balance.begin(&shard.plan);
        shard.slots = Slots::from_committed(record.slots.clone());
        shard.checksums.restore(&record.checksums);
        self.progress.restore(&shard.plan, record);
        self.snapshot = None;
        self.discard_gradients();
    }

    /// Whether the step that has just been taken is one to commit.
    pub(in crate::step) fn is_commit_due(&self) -> bool {
        let every = self.shard.plan.config().durability.commit_every;
        self.progress.attempts.is_multiple_of(every)
    }

    /// Writes the chunks that are newer in memory to the drives, and then the record of what lies
    /// there. Does nothing for a scratch job. Not agreed.
    pub(in crate::step) fn write_record(&mut self) -> Result<Option<Record>> {
        let Some(durable) = &self.durable else { return Ok(None) };
        self.shard.swapper.flush()?;
        durable.write(&self.shard, &self.progress).map(Some)
    }

    /// Collective: commits outside of a step, as after the initialisation. The optimizer can be
    /// used afterwards, and not after an error.
    pub(in crate::step) fn commit(&mut self) -> Result<()> {
        self.progress.unusable = Some("a commit failed");
        let record = self.write_record();
        let record = self.agree_on_record(record)?;
        record.into_iter().for_each(|record| self.take_commit(record));
        self.progress.unusable = None;
        Ok(())
    }

    /// Collective: agrees on the record that this rank has written, if any. If any rank has failed,
    /// the number of the commit is not used again.
    pub(in crate::step) fn agree_on_record(
        &mut self,
        written: Result<Option<Record>>,
    ) -> Result<Option<Record>> {
        agree(&*self.comm, written).inspect_err(|_| {
            if let Some(durable) = &mut self.durable {
                durable.give_up();
            }
        })
    }

    /// Takes a record that all ranks have written as the last commit.
    pub(in crate::step) fn take_commit(&mut self, record: Record) {
        if let Some(durable) = &mut self.durable {
            durable.agree_on(record);
            self.shard.slots.commit();
            self.shard.files.keep(true);
        }
    }
}
