//! Bulk collectives: a reduce-scatter that adds in rank order, and an all-gather. Both work in
//! rounds of bounded size, so memory and the 32-bit counts of MPI do not limit the model.

use std::ops::Range;

use bytemuck::Pod;

use super::Communicator;
use super::gather::gather_words;
use crate::error::Result;

/// Bytes that one rank sends to one other in a round, and to all others together, at most.
const ROUND_BYTES: usize = 4 << 20;
const ROUND_BYTES_OF_ALL: usize = 256 << 20;

/// Elements that one rank sends to one other in a round: at least one.
fn elems_per_round<T>(size: usize) -> usize {
    (ROUND_BYTES.min(ROUND_BYTES_OF_ALL / size) / size_of::<T>()).max(1)
}

fn elems_of(ranges: &[Range<usize>]) -> usize {
    ranges.iter().map(ExactSizeIterator::len).sum()
}

/// The ranges of elements that one rank owns, in the order of its shard.
pub type OwnedRanges<'a> = Box<dyn Iterator<Item = Range<usize>> + 'a>;

/// What moves in each round of one rank's ranges: walks through them, so many elements at a time.
struct Walk<'a> {
    ranges: OwnedRanges<'a>,
    /// What has not moved yet of the range under way.
    rest: Range<usize>,
}

impl<'a> Walk<'a> {
    fn all(owned: Vec<OwnedRanges<'a>>) -> Vec<Self> {
        owned.into_iter().map(|ranges| Self { ranges, rest: 0..0 }).collect()
    }

    /// The next elements, as few ranges; none at the end.
    fn next_round(&mut self, mut elems: usize) -> Vec<Range<usize>> {
        let mut parts = Vec::new();
        while elems > 0 {
            let take = self.rest.len().min(elems);
            if take > 0 {
                parts.push(self.rest.start..self.rest.start + take);
                self.rest.start += take;
                elems -= take;
            } else if let Some(next) = self.ranges.next() {
                self.rest = next;
            } else {
                break;
            }
        }
        parts
    }
}

/// Collective: adds `full` over all ranks and leaves rank r the elements `owned[r]` of the sum, end
/// to end in `mine`. Ranks are added in rank order, starting with rank 0's values, so the result
/// does not depend on timing or on the communicator.
///
/// # Errors
/// Peer, not agreed, if another rank does not come in time.
pub fn reduce_scatter_ranges(
    comm: &dyn Communicator,
    full: &[f32],
    owned: Vec<OwnedRanges<'_>>,
    mine: &mut [f32],
) -> Result<()> {
    let (rank, size) = (comm.rank().index(), comm.size());
    let round_elems = elems_per_round::<f32>(size);
    let mut walks = Walk::all(owned);
    let (mut send, mut recv): (Vec<f32>, Vec<f32>) = (Vec::new(), Vec::new());
    let mut offset = 0;
    loop {
        send.clear();
        let mut send_counts = Vec::with_capacity(size);
        for walk in &mut walks {
            let before = send.len();
            for part in walk.next_round(round_elems) {
                send.extend_from_slice(&full[part]);
            }
            send_counts.push((send.len() - before) * size_of::<f32>());
        }
        if send.is_empty() {
            return Ok(());
        }
        let wanted = send_counts[rank] / size_of::<f32>();
        recv.resize(wanted * size, 0.0);
        let recv_counts = vec![wanted * size_of::<f32>(); size];
        comm.all_to_all_bytes(
            bytemuck::cast_slice(&send),
            &send_counts,
            bytemuck::cast_slice_mut(&mut recv),
            &recv_counts,
        )?;
        let sum = &mut mine[offset..offset + wanted];
        offset += wanted;
        let (first, others) = recv.split_at(wanted);
        sum.copy_from_slice(first);
        for theirs in others.chunks_exact(wanted.max(1)) {
            sum.iter_mut().zip(theirs).for_each(|(sum, value)| *sum += value);
        }
    }
}

/// Collective: every rank gives the elements `owned[rank]`, end to end, as `mine`; every rank gets
/// all in `full`.
///
/// # Errors
/// Peer, not agreed, if another rank does not come in time.
pub fn all_gather_ranges<T: Pod>(
    comm: &dyn Communicator,
    mine: &[T],
    owned: Vec<OwnedRanges<'_>>,
    full: &mut [T],
) -> Result<()> {
    let rank = comm.rank().index();
    let round_elems = elems_per_round::<T>(comm.size());
    let mut walks = Walk::all(owned);
    let mut recv: Vec<T> = Vec::new();
    let mut offset = 0;
    loop {
        let parts: Vec<Vec<Range<usize>>> =
            walks.iter_mut().map(|walk| walk.next_round(round_elems)).collect();
        let elems: Vec<usize> = parts.iter().map(|part| elems_of(part)).collect();
        let counts: Vec<usize> = elems.iter().map(|elems| elems * size_of::<T>()).collect();
        if elems.iter().all(|elems| *elems == 0) {
            return Ok(());
        }
        recv.resize(elems.iter().sum(), T::zeroed());
        let give = &mine[offset..offset + elems[rank]];
        offset += give.len();
        let all = bytemuck::cast_slice_mut(&mut recv);
        comm.all_gather_bytes(bytemuck::cast_slice(give), &counts, all)?;
        let mut rest = recv.as_slice();
        for part in parts.into_iter().flatten() {
            let (theirs, after) = rest.split_at(part.len());
            full[part].copy_from_slice(theirs);
            rest = after;
        }
    }
}

/// Collective: the mean of a value over all ranks of `comm`, such as a loss. Values are added in
/// rank order, so every rank gets the same bits.
///
/// # Errors
/// Peer, not agreed, if another rank does not come in time.
pub fn mean_over_ranks(comm: &dyn Communicator, value: f64) -> Result<f64> {
    let values = gather_words(comm, value.to_bits())?;
    let sum: f64 = values.into_iter().map(f64::from_bits).sum();
    Ok(sum / comm.size() as f64)
}
