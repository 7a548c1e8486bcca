//! Small values between ranks.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Communicator;
use crate::error::Result;
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
