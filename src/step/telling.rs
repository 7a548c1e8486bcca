//! What an optimizer tells about its steps: records to whoever asks, and the files of `[report]`.

use std::path::PathBuf;

use super::optimizer::SwappedOptimizer;
use super::plan::Plan;
use super::records::Recorder;
use super::run::StepOutcome;
use crate::config::Config;
use crate::coord::{Communicator, Waits, gather_all};
use crate::error::Result;
use crate::telemetry::{Outlet, RankRecord, world_report};

/// Collective: opens the files of `[report]`, if any are wanted.
pub(super) fn open(
    config: &Config,
    comm: &dyn Communicator,
    plan: &Plan,
    recorder: &Recorder,
) -> Result<Option<Outlet>> {
    let roots: Vec<PathBuf> = plan.config().drives.paths.clone();
    Outlet::open(config, comm, plan.partition().elems(), &roots, recorder.spans())
}

impl SwappedOptimizer {
    /// Collective: what every rank has recorded since the last [`Self::reset_records`].
    ///
    /// # Errors
    /// As every collective.
    pub fn gather_records(&self) -> Result<Vec<RankRecord>> {
        let partition = self.plan.partition();
        gather_all(&*self.comm, &self.recorder.record(&*self.comm, partition.elems()))
    }

    /// Forgets timers and counters, so that warm-up can be left out. Files of `[report]` go on.
    /// What is on its way then counts later; [`Self::flush`] before makes counts exact.
    pub fn reset_records(&mut self) {
        self.record_moved();
        self.recorder.reset();
    }

    /// Collective: tables of the world and a verdict, over the steps since the last
    /// [`Self::reset_records`], for people. Every rank gets the same text.
    ///
    /// # Errors
    /// As every collective.
    pub fn world_report(&self) -> Result<String> {
        let endurance = self.plan.config().report.drive_endurance;
        Ok(world_report(&self.gather_records()?, endurance))
    }

    /// Collective: writes what `[report]` wants at the end of a job: the trace, if that has not
    /// been written, tables and results, which name the command that started this process. Does
    /// nothing where no report is wanted.
    ///
    /// # Errors
    /// As every collective. A file that cannot be written is a warning.
    pub fn finish_report(&mut self, command: Vec<String>) -> Result<()> {
        if self.outlet.is_none() {
            return Ok(());
        }
        if self.unusable.is_none() {
            self.flush()?;
        }
        let records = self.gather_records()?;
        match &mut self.outlet {
            Some(outlet) => outlet.finish(&*self.comm, self.recorder.spans(), command, records),
            None => Ok(()),
        }
    }

    /// Collective in the step that follows the last traced one.
    pub(super) fn write_due_trace(&mut self) -> Result<()> {
        let step = self.attempts + 1;
        match &mut self.outlet {
            Some(outlet) => outlet.write_due_trace(step, &*self.comm, self.recorder.spans()),
            None => Ok(()),
        }
    }

    /// How long this rank has waited in collectives so far.
    pub(super) fn waits(&self) -> Waits {
        self.comm.presence().map(|presence| presence.waits()).unwrap_or_default()
    }

    /// Counts what has been moved for steps since the last call.
    pub(super) fn record_moved(&mut self) {
        let kernel = self.process_io.since_last();
        self.tell_moved();
        self.recorder.add_kernel(kernel);
    }

    fn tell_moved(&mut self) {
        let moved = self.swapper.take_moved();
        self.recorder.add_moved(&moved);
        if let Some(outlet) = &mut self.outlet {
            outlet.add_moved(&moved.drives);
        }
    }

    /// A step has ended.
    pub(super) fn tell_step(&mut self, outcome: &StepOutcome) {
        let kernel = self.process_io.since_last();
        self.tell_moved();
        let waits = self.waits();
        let step = (outcome.attempt, outcome.skipped);
        let sample = self.recorder.end_step(step, kernel, outcome.duration, waits);
        if let Some(outlet) = &mut self.outlet {
            outlet.step(&sample, self.recorder.samples());
        }
        self.recorder.clear_samples();
    }

    /// The files of `[report]` end here.
    pub(super) fn end_telling(&mut self) {
        if let Some(outlet) = &mut self.outlet {
            outlet.close(self.recorder.samples());
        }
    }
}
