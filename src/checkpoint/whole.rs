//! Whether a checkpoint is whole: every rank compares a part of its bytes, however few shards it
//! has.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::catalog::{Checkpoints, open_part};
use crate::coord::{Call, Group, Pulse, agree};
use crate::error::Result;
use crate::state::Inventory;

impl Checkpoints {
    /// Collective: the newest checkpoint of this job that is whole and of this model, with the
    /// number of steps attempted up to it. Every chunk is compared with its checksums, so it may
    /// take the place of state on the drives. Others are passed over with a warning.
    ///
    /// # Errors
    /// Agreed: cannot create, if the directory of checkpoints cannot be read. Peer, not agreed, if
    /// another rank does not come in time.
    pub fn newest_whole(
        &self,
        inventory: &Inventory,
        group: &Group,
    ) -> Result<Option<(u64, PathBuf)>> {
        let _call = Call::enter(&**self.communicator(), "Checkpoints::newest_whole", String::new);
        for (attempts, directory) in self.all()?.into_iter().rev() {
            let compared = check_share(&directory, inventory, group, &self.pulse());
            match agree(&**self.communicator(), compared) {
                Ok(()) => return Ok(Some((attempts, directory))),
                Err(error) if error.is_agreed() => {
                    tracing::warn!("a checkpoint is passed over: {error}");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

/// Compares this rank's share of a checkpoint's bytes, and reads its share of the indexes.
fn check_share(
    directory: &Path,
    inventory: &Inventory,
    group: &Group,
    pulse: &Pulse,
) -> Result<()> {
    let mut reader = open_part(directory, group)?;
    reader.check_model(inventory)?;
    let (ranks, rank) = (group.ranks().len(), group.communicator().rank().index());
    let sizes: Vec<u64> = reader.manifest().shards.iter().map(|shard| shard.bytes).collect();
    let share = share_of(sizes.iter().map(|bytes| u128::from(*bytes)).sum(), rank, ranks);
    let mut start = 0u128;
    for (shard, bytes) in sizes.into_iter().enumerate() {
        let end = start + u128::from(bytes);
        let has_some = start < share.end && share.start < end;
        if has_some || shard % ranks == rank {
            for (chunk, offset) in reader.chunk_offsets(shard)?.into_iter().enumerate() {
                // Where a damaged index puts a chunk elsewhere, somebody still reads it.
                let at = start + u128::from(offset.min(bytes.saturating_sub(1)));
                if share.contains(&at) {
                    reader.check_chunk(shard, chunk)?;
                    pulse.beat();
                }
            }
        }
        start = end;
    }
    Ok(())
}

/// The bytes of this rank, when so many are dealt to all ranks in equal parts.
fn share_of(bytes: u128, rank: usize, ranks: usize) -> Range<u128> {
    let until = |rank: usize| bytes * rank as u128 / ranks as u128;
    until(rank)..until(rank + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_equal_and_cover_all() {
        for (bytes, ranks) in [(10, 3), (840_000_000_000, 7), (2, 5), (0, 4)] {
            let shares: Vec<_> = (0..ranks).map(|rank| share_of(bytes, rank, ranks)).collect();
            assert_eq!((shares[0].start, shares[ranks - 1].end), (0, bytes));
            assert!(shares.windows(2).all(|pair| pair[0].end == pair[1].start), "{shares:?}");
            let most = bytes.div_ceil(ranks as u128);
            assert!(shares.iter().all(|it| it.end - it.start <= most), "{shares:?}");
        }
    }
}
