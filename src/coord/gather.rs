//! Small values between ranks: to all, to the first, from one to all; and names that all ranks have
//! in common.
//!
//! What goes to all ranks costs every rank memory and time for each of the others, so only little
//! does. Larger values go to the first rank, which decides and tells the others; and values that
//! many ranks have alike are told once.

use serde::Serialize;
use serde::de::DeserializeOwned;
use xxhash_rust::xxh3::xxh3_128;

use super::{Communicator, agree};
use crate::error::{Error, ErrorKind, Result};
use crate::units::Rank;
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
    let counts = lengths(comm, mine.len())?;
    let mut all = vec![0; counts.iter().sum()];
    comm.all_gather_bytes(&mine, &counts, &mut all)?;
    decode_each(&all, &counts)
}

/// Collective: gives the first rank the values of all ranks, in rank order, and the others `None`.
///
/// # Errors
/// Peer, not agreed, if another rank does not come in time. Internal if a value cannot be encoded,
/// or what came cannot be decoded.
pub fn gather_to_first<T: Serialize + DeserializeOwned>(
    comm: &dyn Communicator,
    mine: &T,
) -> Result<Option<Vec<T>>> {
    let mine = wire::encode(mine)?;
    let counts = lengths(comm, mine.len())?;
    let Some(all) = send_to_first(comm, &mine, &counts)? else { return Ok(None) };
    decode_each(&all, &counts).map(Some)
}

/// Collective: gives every rank the value of rank `from`, which must bring one.
///
/// # Errors
/// Peer, not agreed, if another rank does not come in time. Internal if the value cannot be
/// encoded, or what came cannot be decoded.
pub fn share<T: Serialize + DeserializeOwned>(
    comm: &dyn Communicator,
    from: Rank,
    value: Option<&T>,
) -> Result<T> {
    let value = value.filter(|_| comm.rank() == from);
    let mine = value.map_or(Ok(Vec::new()), wire::encode)?;
    let mut length = [mine.len() as u64];
    comm.all_reduce_sum(&mut length)?;
    let mut counts = vec![0; comm.size()];
    counts[from.index()] = length[0] as usize;
    let mut shared = vec![0; counts[from.index()]];
    comm.all_gather_bytes(&mine, &counts, &mut shared)?;
    wire::decode(&shared)
}

/// Collective: gives every rank its own of the values that the first rank brings, one for each.
///
/// # Errors
/// Peer, not agreed, if another rank does not come in time. Internal if a value cannot be encoded,
/// or what came cannot be decoded.
pub fn scatter_from_first<T: Serialize + DeserializeOwned>(
    comm: &dyn Communicator,
    values: Option<&[T]>,
) -> Result<T> {
    let (mut bytes, mut counts) = (Vec::new(), Vec::new());
    for value in values.into_iter().flatten() {
        let value = wire::encode(value)?;
        counts.push(value.len());
        bytes.extend(value);
    }
    let counts: Vec<usize> = share(comm, Rank(0), Some(&counts))?;
    if counts.len() != comm.size() {
        return Err(Error::internal("the first rank has not a value for every rank"));
    }
    let is_first = comm.rank().0 == 0;
    let nothing = vec![0; comm.size()];
    // Not every MPI survives an all-to-all in which a rank sends nothing at all.
    let (sent, send_counts) = if is_first { (bytes, counts.clone()) } else { one_byte(&nothing) };
    let (mut received, recv_counts) = if is_first {
        let mut from_all = vec![1; comm.size()];
        from_all[0] = counts[0];
        (vec![0; from_all.iter().sum()], from_all)
    } else {
        let mut from_first = nothing;
        from_first[0] = counts[comm.rank().index()];
        (vec![0; from_first[0]], from_first)
    };
    comm.all_to_all_bytes(&sent, &send_counts, &mut received, &recv_counts)?;
    wire::decode(&received[..recv_counts[0]])
}

/// A byte for the first rank, and how much goes to each.
fn one_byte(nothing: &[usize]) -> (Vec<u8>, Vec<usize>) {
    let mut counts = nothing.to_vec();
    counts[0] = 1;
    (vec![0], counts)
}

/// Collective: gives the first rank the bytes of all ranks, end to end, and the others `None`.
/// `counts` says how many bytes each rank has; only the first one's matter.
///
/// # Errors
/// Peer, not agreed, if another rank does not come in time.
pub fn send_to_first(
    comm: &dyn Communicator,
    mine: &[u8],
    counts: &[usize],
) -> Result<Option<Vec<u8>>> {
    let size = comm.size();
    let mut send = mine.to_vec();
    let (mut send_counts, mut recv_counts) = (vec![0; size], vec![0; size]);
    // A byte more in each direction: not every MPI survives an all-to-all in which a rank sends or
    // gets nothing at all.
    send.push(0);
    (send_counts[0], recv_counts[0]) = (send.len(), 1);
    let is_first = comm.rank().0 == 0;
    if is_first {
        send.resize(send.len() + size - 1, 0);
        send_counts[1..].fill(1);
        recv_counts.iter_mut().zip(counts).for_each(|(to_come, bytes)| *to_come = bytes + 1);
    }
    let mut received = vec![0; recv_counts.iter().sum()];
    comm.all_to_all_bytes(&send, &send_counts, &mut received, &recv_counts)?;
    if !is_first {
        return Ok(None);
    }
    let (mut all, mut rest) = (Vec::with_capacity(received.len() - size), received.as_slice());
    for count in recv_counts {
        let (bytes, after) = rest.split_at(count);
        all.extend_from_slice(&bytes[..count - 1]);
        rest = after;
    }
    Ok(Some(all))
}

/// A value of every rank, where many ranks have the same.
#[derive(Clone, Debug)]
pub struct OfRanks<T> {
    /// The values that there are, in the order of the first ranks that have them.
    values: Vec<T>,
    /// Which of them each rank has.
    of_rank: Vec<u32>,
}

impl<T> OfRanks<T> {
    /// A value for each rank, all of them different.
    #[cfg(test)]
    pub fn of_each(values: Vec<T>) -> Self {
        Self { of_rank: (0..values.len() as u32).collect(), values }
    }

    /// The values that there are, each once, in the order of the first ranks that have them.
    pub fn values(&self) -> &[T] {
        &self.values
    }

    /// For every rank, which of [`Self::values`] it has.
    pub fn places(&self) -> impl Iterator<Item = usize> {
        self.of_rank.iter().map(|place| *place as usize)
    }

    /// The value of a rank; `None` if there is no such rank.
    pub fn of(&self, rank: Rank) -> Option<&T> {
        self.of_rank.get(rank.index()).map(|place| &self.values[*place as usize])
    }

    /// The values of all ranks, in their order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &T> {
        self.of_rank.iter().map(|place| &self.values[*place as usize])
    }
}

/// Collective: gives every rank the values of all ranks, of which equal ones are sent once. Costs
/// 24 bytes for each rank, and the values that differ.
///
/// # Errors
/// Peer, not agreed, if another rank does not come in time. Internal if a value cannot be encoded,
/// or what came cannot be decoded.
pub fn gather_alike<T: Serialize + DeserializeOwned>(
    comm: &dyn Communicator,
    mine: &T,
) -> Result<OfRanks<T>> {
    const ENTRY: usize = 24;
    let mine = wire::encode(mine)?;
    let mut entry = xxh3_128(&mine).to_le_bytes().to_vec();
    entry.extend((mine.len() as u64).to_le_bytes());
    let mut entries = vec![0; ENTRY * comm.size()];
    comm.all_gather_bytes(&entry, &vec![ENTRY; comm.size()], &mut entries)?;
    let mut known = std::collections::HashMap::new();
    let (mut of_rank, mut lens) = (Vec::with_capacity(comm.size()), Vec::new());
    let mut counts = vec![0; comm.size()];
    for (rank, entry) in entries.as_chunks::<ENTRY>().0.iter().enumerate() {
        let next = known.len() as u32;
        let place = *known.entry(entry).or_insert(next);
        if place == next {
            counts[rank] = le_u64(&entry[16..]) as usize;
            lens.push(counts[rank]);
        }
        of_rank.push(place);
    }
    let mine = &mine[..counts[comm.rank().index()]];
    let mut all = vec![0; counts.iter().sum()];
    comm.all_gather_bytes(mine, &counts, &mut all)?;
    Ok(OfRanks { values: decode_each(&all, &lens)?, of_rank })
}

fn le_u64(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Collective: how many bytes each rank has.
fn lengths(comm: &dyn Communicator, mine: usize) -> Result<Vec<usize>> {
    Ok(gather_words(comm, mine as u64)?.into_iter().map(|len| len as usize).collect())
}

/// Collective: gives every rank the words of all ranks, in rank order, in one all-gather.
pub(super) fn gather_words(comm: &dyn Communicator, mine: u64) -> Result<Vec<u64>> {
    let mut all = vec![0; 8 * comm.size()];
    comm.all_gather_bytes(&mine.to_le_bytes(), &vec![8; comm.size()], &mut all)?;
    Ok(all.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect())
}

fn decode_each<T: DeserializeOwned>(all: &[u8], counts: &[usize]) -> Result<Vec<T>> {
    let mut rest = all;
    let decode = |len: &usize| {
        let (bytes, after) = rest.split_at(*len);
        rest = after;
        wire::decode(bytes)
    };
    counts.iter().map(decode).collect()
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
