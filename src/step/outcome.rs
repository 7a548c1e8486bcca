//! What a step is given beside gradients and parameters, and what it did.

use std::time::{Duration, Instant};

use crate::coord::Activity;
use crate::error::{Error, Result};
use crate::units::{Bytes, ParamIndex};

impl StepOptions<'_> {
    /// The most bytes of its own that a rank may have committed with a step or saved with a
    /// checkpoint: 64 MiB.
    pub const USER_BLOB_BYTES_MAX: usize = 64 << 20;
}

/// Checks that a rank's own bytes are not too many.
///
/// # Errors
/// Usage.
pub(crate) fn check_user_blob(user_blob: &[u8]) -> Result<()> {
    let most = StepOptions::USER_BLOB_BYTES_MAX;
    if user_blob.len() <= most {
        return Ok(());
    }
    Err(Error::usage("the user's own bytes are too many to be kept with every step")
        .with("given", Bytes(user_blob.len() as u64).human())
        .with("at most", Bytes(most as u64).human())
        .hint("write them to a file of your own, and give its name"))
}

/// What a step may be given beside gradients and parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepOptions<'a> {
    /// What the loss was multiplied by, in addition to the scale of `[loss_scale]`; gradients are
    /// divided by both. Default: 1.
    pub loss_scale: f32,
    /// Bytes that are committed with the step, and returned when the job goes on from it: the
    /// position in the training data, for instance; at most [`Self::USER_BLOB_BYTES_MAX`] of them.
    /// Every shard keeps those that its rank gave. Default: none.
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
    /// Yes, and there is no time for a step: the job ends with its last commit.
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
    /// Whether the step was taken.
    pub result: StepResult,
    /// Number of steps attempted so far, including this one unless it was out of time.
    pub attempt: u64,
    /// Norm of the unscaled gradients of all ranks, before clipping; infinite if the step was
    /// skipped.
    pub grad_norm: f64,
    /// What every gradient was multiplied by: loss scale and clipping together.
    pub grad_scale: f32,
    /// The number of the commit with this step, if the step was committed.
    pub epoch: Option<u64>,
    /// Whether a rank has been asked to stop. If so, the step was committed, provided that the job
    /// is durable and there was time.
    pub stop: bool,
    /// Whether a rank has been asked for a table of the world.
    pub(crate) wants_table: bool,
    /// Time from the call until all updates were made and agreed, and the writes that the step
    /// waits for were done: all of them for a commit, none where writes go on behind the step.
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
    /// The parameters with a gradient; none if the step is not taken.
    pub updated: Vec<ParamIndex>,
}
