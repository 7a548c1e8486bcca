//! Bulk collectives: a reduce-scatter that adds in rank order, and an all-gather. Both work in
//! rounds of bounded size, so memory and the 32-bit counts of MPI do not limit the model.

use std::ops::Range;

use bytemuck::Pod;

use super::Communicator;
use crate::error::Result;

/// Bytes that one rank sends to one other in a round, and to all others together, at most.
const ROUND_BYTES: usize = 4 << 20;
const ROUND_BYTES_OF_ALL: usize = 256 << 20;

/// Elements that one rank sends to one other in a round: at least one.
fn elems_per_round<T>(size: usize) -> usize {
    (ROUND_BYTES.min(ROUND_BYTES_OF_ALL / size) / size_of::<T>()).max(1)
}

/// Number of rounds for the longest range.
fn rounds(ranges: &[Range<usize>], round_elems: usize) -> usize {
    ranges.iter().map(|range| range.len().div_ceil(round_elems)).max().unwrap_or(0)
}

/// The part of a range that moves in one round.
fn part(range: &Range<usize>, round: usize, round_elems: usize) -> Range<usize> {
    let start = range.end.min(range.start + round * round_elems);
    start..range.end.min(start + round_elems)
}

/// Collective: adds `full` over all ranks and leaves rank r the elements `ranges[r]` of the sum, in
/// `mine`. Ranks are added in rank order, starting with rank 0's values, so the result does not
/// depend on timing or on the communicator.
///
/// # Errors
/// As every collective.
pub fn reduce_scatter(
    comm: &dyn Communicator,
    full: &[f32],
    ranges: &[Range<usize>],
    mine: &mut [f32],
) -> Result<()> {
    let (rank, size) = (comm.rank().index(), comm.size());
    let round_elems = elems_per_round::<f32>(size);
    let mut send: Vec<f32> = Vec::new();
    let mut recv: Vec<f32> = Vec::new();
    for round in 0..rounds(ranges, round_elems) {
        send.clear();
        let mut send_counts = Vec::with_capacity(size);
        for range in ranges {
            let part = &full[part(range, round, round_elems)];
            send.extend_from_slice(part);
            send_counts.push(size_of_val(part));
        }
        let wanted = part(&ranges[rank], round, round_elems);
        recv.resize(wanted.len() * size, 0.0);
        let recv_counts = vec![wanted.len() * size_of::<f32>(); size];
        comm.all_to_all_bytes(
            bytemuck::cast_slice(&send),
            &send_counts,
            bytemuck::cast_slice_mut(&mut recv),
            &recv_counts,
        )?;
        let offset = wanted.start - ranges[rank].start;
        let sum = &mut mine[offset..offset + wanted.len()];
        let (first, others) = recv.split_at(wanted.len());
        sum.copy_from_slice(first);
        for theirs in others.chunks_exact(wanted.len().max(1)) {
            sum.iter_mut().zip(theirs).for_each(|(sum, value)| *sum += value);
        }
    }
    Ok(())
}

/// Collective: every rank gives the elements `ranges[rank]` as `mine`; every rank gets all in
/// `full`.
///
/// # Errors
/// As every collective.
pub fn all_gather<T: Pod>(
    comm: &dyn Communicator,
    mine: &[T],
    ranges: &[Range<usize>],
    full: &mut [T],
) -> Result<()> {
    let rank = comm.rank().index();
    let round_elems = elems_per_round::<T>(comm.size());
    let mut recv: Vec<T> = Vec::new();
    for round in 0..rounds(ranges, round_elems) {
        let parts = ranges.iter().map(|range| part(range, round, round_elems));
        let parts: Vec<Range<usize>> = parts.collect();
        let counts: Vec<usize> = parts.iter().map(|part| part.len() * size_of::<T>()).collect();
        recv.resize(parts.iter().map(ExactSizeIterator::len).sum(), T::zeroed());
        let offset = parts[rank].start - ranges[rank].start;
        let give = &mine[offset..offset + parts[rank].len()];
        let all = bytemuck::cast_slice_mut(&mut recv);
        comm.all_gather_bytes(bytemuck::cast_slice(give), &counts, all)?;
        let mut rest = recv.as_slice();
        for part in parts {
            let (theirs, after) = rest.split_at(part.len());
            full[part].copy_from_slice(theirs);
            rest = after;
        }
    }
    Ok(())
}
