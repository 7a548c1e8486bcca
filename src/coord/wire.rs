//! Small values between ranks: serde and bincode, with a limit on what is believed.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Communicator;
use crate::error::{Error, Result};

/// A record of one rank is small; a length beyond this is a damaged message.
const RECORD_BYTES_MAX: usize = 64 << 20;

const FORMAT: Configuration<LittleEndian, Fixint, Limit<RECORD_BYTES_MAX>> =
    bincode::config::standard().with_fixed_int_encoding().with_limit::<RECORD_BYTES_MAX>();

/// Collective: gives every rank the values of all, in rank order.
///
/// # Errors
/// As every collective; internal if a value cannot be sent or read.
pub fn gather_all<T: Serialize + DeserializeOwned>(
    comm: &dyn Communicator,
    mine: &T,
) -> Result<Vec<T>> {
    let mine = bincode::serde::encode_to_vec(mine, FORMAT)
        .map_err(|error| Error::internal("a record cannot be sent").because(error))?;
    let mut lengths = vec![0; comm.size()];
    lengths[comm.rank().index()] = mine.len() as u64;
    comm.all_reduce_sum(&mut lengths)?;
    let counts: Vec<usize> = lengths.iter().map(|len| *len as usize).collect();
    let mut all = vec![0; counts.iter().sum()];
    comm.all_gather_bytes(&mine, &counts, &mut all)?;
    let mut rest = all.as_slice();
    let decode = |len: &usize| {
        let (bytes, after) = rest.split_at(*len);
        rest = after;
        let decoded = bincode::serde::decode_from_slice(bytes, FORMAT);
        match decoded {
            Ok((value, used)) if used == bytes.len() => Ok(value),
            Ok(_) => Err(Error::internal("a record is longer than its value")),
            Err(error) => Err(Error::internal("a record cannot be read").because(error)),
        }
    };
    counts.iter().map(decode).collect()
}
