//! What an optimizer records about its steps, and the reports that it writes from it.

use super::balance::Balance;
use super::outcome::{StepOutcome, StepResult};
use super::records::Recorder;
use crate::config::Config;
use crate::coord::{Communicator, Waits};
use crate::error::Result;
use crate::gradients::HeldGradients;
use crate::plan::Plan;
use crate::swap::Swapper;
use crate::telemetry::{Outlet, ProcessIo};

/// Records, the kernel's counters, the files of `[report]`, and whether drives do what their
/// weights say.
pub(super) struct Watch {
    pub recorder: Recorder,
    pub process_io: ProcessIo,
    /// `None` unless the configuration names a place for reports.
    pub outlet: Option<Outlet>,
    pub balance: Balance,
}

impl Watch {
    /// Collective: opens the files of `[report]`, if any are wanted.
    ///
    /// # Errors
    /// Peer, not agreed, if another rank does not come in time.
    pub fn open(
        config: &Config,
        comm: &dyn Communicator,
        plan: &Plan,
        recorder: Recorder,
        balance: Balance,
    ) -> Result<Self> {
        let roots = plan.config().drives.paths.clone();
        let elems = plan.partition().elems();
        let outlet = Outlet::open(config, comm, elems, &roots, recorder.spans())?;
        Ok(Self { recorder, process_io: ProcessIo::open(), outlet, balance })
    }

    /// Collective in the step that follows the last traced one.
    ///
    /// # Errors
    /// Peer, not agreed, if another rank does not come in time.
    pub fn write_due_trace(&mut self, step: u64, comm: &dyn Communicator) -> Result<()> {
        match &mut self.outlet {
            Some(outlet) => outlet.write_due_trace(step, comm, self.recorder.spans()),
            None => Ok(()),
        }
    }

    /// Takes over the times of gradients that were handed over.
    pub fn record_handed_over(&mut self, held: &mut HeldGradients<'_>) {
        held.drain_timers(&mut self.recorder.timers);
    }

    /// Counts what has been moved to and from the drives since the last call.
    pub fn record_moved(&mut self, swapper: &mut Swapper) {
        let kernel = self.process_io.since_last();
        self.count_moved(swapper);
        self.recorder.add_kernel(kernel);
    }

    fn count_moved(&mut self, swapper: &mut Swapper) {
        let moved = swapper.take_moved();
        self.recorder.add_moved(&moved);
        if let Some(outlet) = &mut self.outlet {
            outlet.add_moved(&moved.drives);
        }
    }

    /// Leaves out what the kernel has counted since the last call: it belongs to no step.
    pub fn forget_kernel(&mut self) {
        self.process_io.since_last();
    }

    /// Records the end of a step.
    pub fn end_step(&mut self, outcome: &StepOutcome, swapper: &mut Swapper, waits: Waits) {
        self.balance.end_step(outcome.duration);
        let kernel = self.process_io.since_last();
        self.count_moved(swapper);
        let step = (outcome.attempt, outcome.result == StepResult::Skipped);
        let sample = self.recorder.end_step(step, kernel, outcome.duration, waits);
        if let Some(outlet) = &mut self.outlet {
            outlet.step(&sample, self.recorder.samples());
        }
        self.recorder.clear_samples();
    }

    /// Ends the files of `[report]`.
    pub fn close(&mut self) {
        if let Some(outlet) = &mut self.outlet {
            outlet.close(self.recorder.samples());
        }
    }
}

/// How long this rank has waited in collectives so far.
pub(super) fn waits_of(comm: &dyn Communicator) -> Waits {
    comm.presence().map(|presence| presence.waits()).unwrap_or_default()
}
