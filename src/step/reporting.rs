//! What an optimizer says of its steps: records to whoever asks, and the files of `[report]`.

use super::optimizer::SwappedOptimizer;
use crate::coord::gather_all;
use crate::error::Result;
use crate::telemetry::{RankRecord, world_report};

impl SwappedOptimizer {
    /// Collective: what every rank has recorded since the last [`Self::reset_records`].
    ///
    /// # Errors
    /// As every collective.
    pub fn gather_records(&self) -> Result<Vec<RankRecord>> {
        let elems = self.partition().elems();
        gather_all(&*self.comm, &self.watch.recorder.record(&*self.comm, elems))
    }

    /// Forgets timers and counters, so that warm-up can be left out. Files of `[report]` go on.
    /// What is on its way then counts later; [`Self::flush`] before makes counts exact.
    pub fn reset_records(&mut self) {
        self.record_moved();
        self.watch.record_handed_over(&mut self.gradients.hold());
        self.watch.recorder.reset();
    }

    /// Collective: tables of the world and a verdict, over the steps since the last
    /// [`Self::reset_records`], for people. Every rank gets the same text.
    ///
    /// # Errors
    /// As every collective.
    pub fn world_report(&self) -> Result<String> {
        let endurance = self.shard.plan.config().report.drive_endurance;
        Ok(world_report(&self.gather_records()?, endurance))
    }

    /// Collective: writes what `[report]` wants at the end of a job: the trace, if that has not
    /// been written, tables and results, which name the command that started this process. Does
    /// nothing where no report is wanted.
    ///
    /// # Errors
    /// As every collective. A file that cannot be written is a warning.
    pub fn finish_report(&mut self, command: Vec<String>) -> Result<()> {
        if self.watch.outlet.is_none() {
            return Ok(());
        }
        if self.progress.unusable.is_none() {
            self.flush()?;
        }
        let records = self.gather_records()?;
        match &mut self.watch.outlet {
            Some(outlet) => {
                outlet.finish(&*self.comm, self.watch.recorder.spans(), command, records)
            }
            None => Ok(()),
        }
    }
}
