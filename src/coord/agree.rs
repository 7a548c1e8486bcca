//! Agreement: an error of one rank is an error of all, before anybody goes on.

use super::{Communicator, gather_all};
use crate::error::{Error, ErrorKind, Result};
use crate::units::counted;

/// Collective: every rank gets its own value if all succeeded, otherwise every rank gets the same
/// error: the worst one (highest exit code), of the lowest rank that has it.
///
/// # Errors
/// The agreed error of the ranks. Peer, not agreed, if another rank does not come in time: then the
/// job must end.
pub fn agree<T>(comm: &dyn Communicator, result: Result<T>) -> Result<T> {
    match result {
        Ok(value) => agree_on_error(comm, None).map(|()| value),
        Err(error) => {
            agree_on_error(comm, Some(error))?;
            Err(Error::internal("ranks disagree about whether one has failed"))
        }
    }
}

/// The same for any value, so that it is compiled once.
fn agree_on_error(comm: &dyn Communicator, error: Option<Error>) -> Result<()> {
    let mut failed = [u64::from(error.is_some())];
    comm.all_reduce_sum(&mut failed)?;
    if failed[0] == 0 {
        return Ok(());
    }
    let mine = error.map(|error| (error.kind().wire(), error.to_string(), comm.host().to_owned()));
    let all: Vec<Option<(u64, String, String)>> = gather_all(comm, &mine)?;
    let failures = all.into_iter().enumerate().filter_map(|(rank, failure)| {
        failure.map(|(kind, message, host)| (rank, ErrorKind::from_wire(kind), message, host))
    });
    // `max_by_key` keeps the last of equals, so the ranks are walked from the end.
    let failures: Vec<_> = failures.collect();
    let worst = failures.iter().rev().max_by_key(|(_, kind, ..)| kind.exit_code());
    let Some((rank, kind, message, host)) = worst else {
        return Err(Error::internal("ranks disagree about whether one has failed"));
    };
    let others = match failures.len() - 1 {
        0 => String::new(),
        more => format!("\n  {} failed as well", counted(more as u64, "other rank")),
    };
    let message = if comm.size() == 1 {
        message.clone()
    } else {
        format!("rank {rank} of {} on {host}: {message}{others}", comm.size())
    };
    Err(Error::new(*kind, message).agreed())
}
