//! What an optimizer reports about its steps: records on request, and the files of `[report]`.

use super::optimizer::SwappedOptimizer;
use crate::coord::{gather_all, gather_to_first, share};
use crate::error::Result;
use crate::telemetry::{RankRecord, world_report};
use crate::units::Rank;

impl SwappedOptimizer {
    /// Collective: what every rank has recorded since its optimizer was created, or since the last
    /// [`Self::reset_records`]; one record for each rank, in rank order. Every rank gets all of
    /// them, some kilobytes for each rank; [`Self::world_report`] is for many ranks.
    ///
    /// # Errors
    /// Peer, not agreed, if another rank does not come in time.
    pub fn gather_records(&self) -> Result<Vec<RankRecord>> {
        let _call = self.enter("gather_records");
        gather_all(&*self.comm, &self.record())
    }

    fn record(&self) -> RankRecord {
        self.watch.recorder.record(&*self.comm, self.partition().elems())
    }

    /// Sets timers and counters back to zero, so that warm-up can be left out. The files of
    /// `[report]` go on. Reads and writes that are on their way now are counted when they end; call
    /// [`Self::flush`] first for exact counts.
    pub fn reset_records(&mut self) {
        self.record_moved();
        self.watch.record_handed_over(&mut self.gradients.hold());
        self.watch.recorder.reset();
    }

    /// Collective: tables of the world and a verdict, over the steps since the last
    /// [`Self::reset_records`], for people. Every rank gets the same text.
    ///
    /// # Errors
    /// Peer, not agreed, if another rank does not come in time.
    pub fn world_report(&self) -> Result<String> {
        let _call = self.enter("world_report");
        let endurance = self.shard.plan.config().report.drive_endurance;
        let records = gather_to_first(&*self.comm, &self.record())?;
        let text = records.map(|records| world_report(&records, endurance));
        share(&*self.comm, Rank(0), text.as_ref())
    }

    /// Collective: writes the reports that `[report]` asks for at the end of a job: the trace,
    /// unless it has been written, tables, and results, which include `command`, the arguments that
    /// started this process. Does nothing where no report is asked for.
    ///
    /// # Errors
    /// Peer, not agreed, if another rank does not come in time. Agreed errors of writes that were
    /// still on their way. A report that cannot be written is a warning.
    pub fn finish_report(&mut self, command: Vec<String>) -> Result<()> {
        let _call = self.enter("finish_report");
        if self.watch.outlet.is_none() {
            return Ok(());
        }
        if self.progress.unusable.is_none() {
            self.flush()?;
        }
        let records = gather_to_first(&*self.comm, &self.record())?.unwrap_or_default();
        match &mut self.watch.outlet {
            Some(outlet) => {
                outlet.finish(&*self.comm, self.watch.recorder.spans(), command, records)
            }
            None => Ok(()),
        }
    }
}
