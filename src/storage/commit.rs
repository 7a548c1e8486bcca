//! The decisions of the commit protocol, as pure functions of what all shards' records say.
//! `tests/commit_protocol.rs` walks every interleaving of two and three ranks over these functions.
//!
//! Each shard has two places for a record. A commit of epoch e + 1 writes, on every rank, the place
//! that does not hold the last agreed record, and is agreed when all ranks have written. So at any
//! moment every shard holds the last agreed record, and perhaps a newer one that not all shards
//! have.
//!
//! A resume takes the newest stamp that all shards have, and first writes it again under a new
//! incarnation, which overwrites any newer record: a step that is done again may give other bytes,
//! and a record of the step that was lost must never be taken for one of the step that replaced it.

use serde::{Deserialize, Serialize};

/// Which commit a record belongs to. All shards "have epoch e" only if they have it of the same
/// incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Stamp {
    /// The number of the commit; 0 is the initial state.
    pub epoch: u64,
    /// How many times the job had been resumed when it was written.
    pub incarnation: u64,
}

impl std::fmt::Display for Stamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "epoch {} of incarnation {}", self.epoch, self.incarnation)
    }
}

/// What the two places of one shard hold; `None` for no record, or one that was not written to its
/// end.
pub type Places = [Option<Stamp>; 2];

/// What all shards' records together allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No training step was ever committed.
    Fresh,
    /// All shards have this stamp. It must be written again under the new incarnation before any
    /// slot is written.
    Resume {
        /// The newest stamp that all shards have.
        stamp: Stamp,
        /// The new incarnation, higher than that of any record.
        incarnation: u64,
    },
    /// Steps were committed, but this shard has no record of a commit that the others have: one was
    /// damaged after it had been agreed.
    Broken {
        /// Index of the shard.
        shard: usize,
        /// The newest stamp of any shard.
        newest: Stamp,
    },
}

/// Decides how a job goes on from what its shards' places hold.
pub fn judge(shards: &[Places]) -> Verdict {
    let stamps = || shards.iter().flatten().flatten().copied();
    let Some(newest) = stamps().max() else { return Verdict::Fresh };
    let has = |places: &Places, stamp: Stamp| places.contains(&Some(stamp));
    let in_all = |stamp: &Stamp| shards.iter().all(|places| has(places, *stamp));
    if let Some(stamp) = stamps().filter(in_all).max() {
        let incarnation = stamps().map(|stamp| stamp.incarnation).max().unwrap_or(0) + 1;
        return Verdict::Resume { stamp, incarnation };
    }
    if newest.epoch == 0 {
        return Verdict::Fresh;
    }
    // The damaged shard is the one whose newest record is the oldest.
    let newest_of = |places: &Places| places.iter().flatten().max().copied();
    let oldest = (0..shards.len()).min_by_key(|shard| newest_of(&shards[*shard]));
    Verdict::Broken { shard: oldest.unwrap_or(0), newest }
}

/// What the two places of one shard hold, with the number of steps up to each commit.
pub type Held = [Option<(Stamp, u64)>; 2];

/// The places of a shard without the numbers of steps.
pub fn places_of(held: &Held) -> Places {
    held.map(|record| record.map(|(stamp, _)| stamp))
}

/// The number of steps up to a commit, according to each shard that has it, in shard order.
///
/// # Errors
/// The differing numbers, with their shards: then records with this stamp are of different steps,
/// and no state to go on from.
pub fn steps_of(shards: &[Held], stamp: Stamp) -> Result<Option<u64>, Vec<(usize, u64)>> {
    let of_shard = |(shard, held): (usize, &Held)| {
        let record = held.iter().flatten().find(|(theirs, _)| *theirs == stamp);
        record.map(|(_, steps)| (shard, *steps))
    };
    let steps: Vec<(usize, u64)> = shards.iter().enumerate().filter_map(of_shard).collect();
    match steps.iter().all(|(_, steps_then)| *steps_then == steps[0].1) {
        true => Ok(steps.first().map(|(_, steps)| *steps)),
        false => Err(steps),
    }
}

/// The numbers of commits. Some ranks may have written their record of a commit that was not agreed
/// on, and the job may go on all the same. So that records with one stamp are always of one commit,
/// a number is used once, whatever became of it. All ranks count alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Epochs {
    agreed: Option<u64>,
    spent: u64,
}

impl Epochs {
    /// After a commit of this number.
    pub fn after(agreed: u64) -> Self {
        Self { agreed: Some(agreed), spent: 0 }
    }

    /// The number of the last commit; `None` before the first.
    pub fn agreed(self) -> Option<u64> {
        self.agreed
    }

    /// The number of the next commit.
    pub fn next(self) -> u64 {
        self.agreed.map_or(0, |agreed| agreed + 1) + self.spent
    }

    /// Notes that the next commit has failed on some rank.
    pub fn spend(&mut self) {
        self.spent += 1;
    }
}

/// The place that holds a stamp.
pub fn place_of(places: &Places, stamp: Stamp) -> Option<usize> {
    places.iter().position(|held| *held == Some(stamp))
}

/// The place to write next, which is never that of the last agreed record.
pub fn place_beside(agreed: usize) -> usize {
    1 - agreed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(epoch: u64, incarnation: u64) -> Option<Stamp> {
        Some(Stamp { epoch, incarnation })
    }

    #[test]
    fn the_newest_stamp_that_all_have_wins() {
        let stamps = [[stamp(4, 0), stamp(5, 0)], [stamp(4, 0), None]];
        let expected =
            Verdict::Resume { stamp: Stamp { epoch: 4, incarnation: 0 }, incarnation: 1 };
        assert_eq!(judge(&stamps), expected);
        // The same epoch of another incarnation is another commit.
        let stamps = [[stamp(4, 1), stamp(5, 0)], [stamp(4, 1), stamp(5, 1)]];
        let expected =
            Verdict::Resume { stamp: Stamp { epoch: 4, incarnation: 1 }, incarnation: 2 };
        assert_eq!(judge(&stamps), expected);
    }

    #[test]
    fn a_job_that_never_committed_a_step_starts_anew() {
        assert_eq!(judge(&[[None, None], [None, None]]), Verdict::Fresh);
        assert_eq!(judge(&[[stamp(0, 0), None], [None, None]]), Verdict::Fresh);
    }

    #[test]
    fn a_number_is_used_once() {
        let mut epochs = Epochs::default();
        assert_eq!(epochs.next(), 0);
        epochs = Epochs::after(4);
        assert_eq!(epochs.next(), 5);
        epochs.spend();
        epochs.spend();
        assert_eq!((epochs.agreed(), epochs.next()), (Some(4), 7));
    }

    #[test]
    fn records_of_one_stamp_are_of_one_step() {
        let stamp = Stamp { epoch: 2, incarnation: 0 };
        let held = |steps| [Some((stamp, steps)), None];
        assert_eq!(steps_of(&[held(2), held(2)], stamp), Ok(Some(2)));
        assert_eq!(steps_of(&[held(2), [None; 2]], stamp), Ok(Some(2)));
        assert_eq!(steps_of(&[[None; 2]], stamp), Ok(None));
        assert_eq!(steps_of(&[held(1), held(2)], stamp), Err(vec![(0, 1), (1, 2)]));
    }

    #[test]
    fn a_lost_record_is_never_taken_for_a_new_job() {
        let stamps = [[stamp(4, 0), stamp(5, 0)], [None, None], [stamp(4, 0), None]];
        let newest = Stamp { epoch: 5, incarnation: 0 };
        assert_eq!(judge(&stamps), Verdict::Broken { shard: 1, newest });
    }
}
