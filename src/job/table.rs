//! A table of the world while the job runs: after a SIGUSR2 to any rank, rank 0 prints it after the
//! next step.

use super::complain;
use super::signals::take_table_request;
use crate::error::Result;
use crate::step::{StepOutcome, SwappedOptimizer};

/// Whether this rank has been asked for a table since the last call. Always false where
/// [`super::run_main`] has not installed handlers.
pub fn table_request() -> bool {
    take_table_request()
}

/// Collective, after every step: prints the table to stderr if some rank has been asked for it.
///
/// # Errors
/// Peer, not agreed, if another rank does not come in time.
pub fn answer_table_request(optimizer: &SwappedOptimizer, outcome: &StepOutcome) -> Result<()> {
    if !outcome.wants_table {
        return Ok(());
    }
    let report = optimizer.world_report()?;
    if optimizer.communicator().rank().0 == 0 {
        complain(format_args!("after step {}: {report}", outcome.attempt));
    }
    Ok(())
}
