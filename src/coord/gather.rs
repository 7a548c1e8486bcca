//! Small values between ranks, and names that all ranks have in common.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Communicator, agree};
use crate::error::{Error, ErrorKind, Result};
use crate::wire;

/// Collective: gives every rank the values of all ranks: one for each, in rank order. Meant for
/// small values; the values may differ in size.
///
/// # Errors
/// Peer, not agreed, if another rank does not come in time. Internal if a value cannot be encoded,
/// or what came cannot be decoded.
pub fn gather_all<T: Serialize + DeserializeOwned>(
    comm: &dyn Communicator,
    mine: &T,
) -> Result<Vec<T>> {
    let mine = wire::encode(mine)?;
    let mut lengths = vec![0; comm.size()];
    lengths[comm.rank().index()] = mine.len() as u64;
    comm.all_reduce_sum(&mut lengths)?;
    let counts: Vec<usize> = lengths.iter().map(|len| *len as usize).collect();
    let mut all = vec![0; counts.iter().sum()];
    comm.all_gather_bytes(&mine, &counts, &mut all)?;
    let mut rest = all.as_slice();
    let mut values = Vec::with_capacity(comm.size());
    for len in counts {
        let (bytes, after) = rest.split_at(len);
        rest = after;
        values.push(wire::decode(bytes)?);
    }
    Ok(values)
}

/// Collective: 128 random bits, drawn by rank 0, as 32 hexadecimal digits. No two draws are the
/// same, whatever the clocks of their hosts say.
///
/// # Errors
/// Agreed: unavailable if the kernel gives no random bits. Peer, not agreed, if another rank does
/// not come in time.
pub fn draw_id(comm: &dyn Communicator) -> Result<String> {
    let drawn = if comm.rank().0 == 0 { random_bits() } else { Ok([0; 2]) };
    let mut halves = agree(comm, drawn)?;
    comm.all_reduce_sum(&mut halves)?;
    Ok(format!("{:016x}{:016x}", halves[0], halves[1]))
}

fn random_bits() -> Result<[u64; 2]> {
    let mut halves = [[0; 8]; 2];
    for half in &mut halves {
        // So few bytes come at once or not at all.
        rustix::rand::getrandom(half, rustix::rand::GetRandomFlags::empty()).map_err(|errno| {
            Error::new(ErrorKind::Unavailable, "the kernel gives no random bits").because(errno)
        })?;
    }
    Ok(halves.map(u64::from_ne_bytes))
}
