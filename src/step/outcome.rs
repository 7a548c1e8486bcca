//! What a step is given beside gradients and parameters, and what it did.

use std::time::{Duration, Instant};

use crate::coord::Activity;

/// What a step may be given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepOptions<'a> {
    /// What the loss was multiplied by, beside the scale of `[loss_scale]`; gradients are divided by
    /// both. Default 1.
    pub loss_scale: f32,
    /// Bytes that are committed with the step, and handed back when the job goes on from it: where
    /// the caller is in its data, for instance. Default: none.
    pub user_blob: &'a [u8],
}

impl Default for StepOptions<'_> {
    fn default() -> Self {
        Self { loss_scale: 1.0, user_blob: &[] }
    }
}

/// Whether this rank has been asked to stop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// No.
    #[default]
    No,
    /// Yes, and there is time for one more step.
    AfterThisStep,
    /// Yes, and a step would take too long: what counts is the last commit.
    Now,
}

/// What this rank has been asked for since its last step; one rank is enough, all learn of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Requests {
    pub stop: Stop,
    pub wants_table: bool,
}

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepResult {
    /// Parameters with a gradient were updated.
    Taken,
    /// A gradient of some rank was infinite or NaN. Nothing has changed on any drive, nor in the
    /// caller's parameters.
    Skipped,
    /// A rank had no time left for the step. Nothing has changed.
    OutOfTime,
}

/// What a step did; the same on every rank but for `duration`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepOutcome {
    /// Whether it was taken.
    pub result: StepResult,
    /// Steps attempted so far, this one included unless it was out of time.
    pub attempt: u64,
    /// Global norm of the unscaled gradients, before clipping; infinite if the step was skipped.
    pub grad_norm: f64,
    /// What every gradient was multiplied by: loss scale and clipping together.
    pub grad_scale: f32,
    /// The number of the commit that this step became, if it did.
    pub epoch: Option<u64>,
    /// Whether a rank has been asked to stop. The step was committed then, if the job is durable
    /// and there was time.
    pub stop: bool,
    /// Whether a rank has been asked for a table of the world.
    pub(crate) wants_table: bool,
    /// From the call until all updates were made and agreed, and what had to be on the drives was
    /// there: everything for a commit, nothing where writes go on behind the step.
    pub duration: Duration,
}

impl StepOutcome {
    /// Whether parameters with a gradient were updated.
    pub fn is_taken(&self) -> bool {
        self.result == StepResult::Taken
    }

    /// Whether a gradient was infinite or NaN.
    pub fn is_skipped(&self) -> bool {
        self.result == StepResult::Skipped
    }
}

/// A step of which everything is decided, and nothing has changed.
pub(super) struct Begun {
    pub start: Instant,
    pub activity: Activity,
    pub outcome: StepOutcome,
}
