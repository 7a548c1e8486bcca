//! Agreement: an error of one rank is an error of all, before anybody goes on.

use super::{Communicator, gather_all, share};
use crate::error::{Error, ErrorKind, Result};
use crate::units::{Rank, counted};

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
    // All ranks may have failed, and an error is long: so only the kinds go to everybody, and the
    // worst one in words.
    let kinds: Vec<Option<u64>> = gather_all(comm, &error.as_ref().map(|it| it.kind().wire()))?;
    let failures = kinds.into_iter().enumerate();
    let failures = failures.filter_map(|(rank, kind)| Some((rank, ErrorKind::from_wire(kind?))));
    let failures: Vec<(usize, ErrorKind)> = failures.collect();
    // `max_by_key` keeps the last of equals, so the ranks are walked from the end.
    let worst = failures.iter().rev().max_by_key(|(_, kind)| kind.exit_code());
    let Some((rank, kind)) = worst else {
        return Err(Error::internal("ranks disagree about whether one has failed"));
    };
    let mine = error.map(|error| (error.to_string(), comm.host().to_owned()));
    let (message, host): (String, String) = share(comm, Rank::from_index(*rank), mine.as_ref())?;
    let others = match failures.len() - 1 {
        0 => String::new(),
        more => format!("\n  {} failed as well", counted(more as u64, "other rank")),
    };
    let message = if comm.size() == 1 {
        message
    } else {
        format!("rank {rank} of {} on {host}: {message}{others}", comm.size())
    };
    Err(Error::new(*kind, message).agreed())
}
