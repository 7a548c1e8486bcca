//! Which ranks are late, and the messages that say so: pure functions of what ranks publish.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::page::Record;
use super::presence::{Collective, Phase};
use crate::units::Rank;

/// The most ranks that a message describes one by one.
const DESCRIBED_MAX: usize = 8;

/// How long a rank waits before it warns, and before it gives up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Waiting this long is worth a warning.
    pub warning_ms: u64,
    /// No progress for this long is an error.
    pub peer_ms: u64,
}

impl Limits {
    pub fn new(stall_warning: Duration, peer_timeout: Duration) -> Self {
        let whole = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
        Self { warning_ms: whole(stall_warning), peer_ms: whole(peer_timeout) }
    }

    /// A rank that waits reads the page this often, and publishes that it is alive.
    pub fn look_every_ms(self) -> u64 {
        (self.warning_ms.min(self.peer_ms) / 10).clamp(10, 1000)
    }

    /// A waiting rank that has not published anything for this long is taken to hang; a late one
    /// whose record has not changed for this long is taken to make no progress.
    pub fn silence_ms(self) -> u64 {
        (self.warning_ms.min(self.peer_ms) / 2).max(2 * self.look_every_ms())
    }

    /// Of the time between two looks, that in which this rank did not run: it was stopped, or had
    /// no processor for far longer than a look takes.
    pub fn not_running_ms(self, looked_ms: u64, now_ms: u64) -> u64 {
        let (gap_ms, every_ms) = (now_ms.saturating_sub(looked_ms), self.look_every_ms());
        if gap_ms > 4 * every_ms { gap_ms - every_ms } else { 0 }
    }

    /// A rank that cannot name a late one gives up this much later, so that ranks that can do so
    /// come first.
    pub fn patience_ms(self) -> u64 {
        (self.peer_ms / 4).min(5000)
    }
}

/// What is known at one moment about a rank that others wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LateRank {
    pub rank: u32,
    phase: Phase,
    collective: Option<Collective>,
    completed_ops: u64,
    /// Time since its record last changed: its phase, a collective, a completed operation.
    pub unchanged_ms: u64,
    /// Time since it last published anything.
    silent_ms: u64,
}

/// The ranks of a node, from the point of view of one that waits in collective `number`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct NodeView {
    /// The ranks that wait in the same collective.
    pub waiting: Vec<u32>,
    pub late: Vec<LateRank>,
    /// When late ranks, on this node or elsewhere, last made progress, as far as a rank of this
    /// node knows.
    pub progress_ms: u64,
}

impl NodeView {
    pub fn of(records: &[(Rank, Record)], number: u64, now_ms: u64, silence_ms: u64) -> Self {
        let mut view = Self::default();
        for (rank, record) in records {
            let silent_ms = now_ms.saturating_sub(record.alive_ms);
            // A rank that has entered may have been stopped since, and then holds up the others.
            let hangs = record.collective != 0 && silent_ms > silence_ms;
            if record.entered > number || (record.entered == number && !hangs) {
                view.waiting.push(rank.0);
                view.progress_ms = view.progress_ms.max(record.elsewhere_ms);
            } else {
                view.late.push(LateRank {
                    rank: rank.0,
                    phase: Phase::from_number(record.phase),
                    collective: Collective::from_number(record.collective),
                    completed_ops: record.completed_ops,
                    unchanged_ms: now_ms.saturating_sub(record.changed_ms),
                    silent_ms,
                });
                view.progress_ms = view.progress_ms.max(record.changed_ms);
            }
        }
        view
    }

    /// The rank that sends messages to other nodes: the lowest that waits.
    pub fn speaker(&self) -> Option<u32> {
        self.waiting.iter().min().copied()
    }
}

impl LateRank {
    /// This rank now, if the notice about it came `ago_ms` ago. Progress that it made then is taken
    /// to go on until the next notice is due. If it made none, it has made none since.
    pub fn aged(self, ago_ms: u64, limits: Limits) -> Self {
        let overdue_ms = ago_ms.saturating_sub(limits.warning_ms);
        let since = |ms: u64| ms + if ms > limits.silence_ms() { ago_ms } else { overdue_ms };
        Self { unchanged_ms: since(self.unchanged_ms), silent_ms: since(self.silent_ms), ..self }
    }

    /// Whether this rank is waiting itself, in an earlier collective.
    fn is_waiting(&self, silence_ms: u64) -> bool {
        self.collective.is_some() && self.silent_ms <= silence_ms
    }

    fn describe(&self, host: &str, silence_ms: u64) -> String {
        let whom = format!("rank {} on {host}", self.rank);
        let phase = self.phase.name();
        if let Some(collective) = self.collective {
            let sign = if self.is_waiting(silence_ms) {
                "waiting as well".to_owned()
            } else {
                format!("no sign of life for {}", seconds(self.silent_ms))
            };
            return format!("{whom}, {phase}, in {}, {sign}", collective.name());
        }
        let progress = if self.unchanged_ms > silence_ms {
            format!("no progress for {}", seconds(self.unchanged_ms))
        } else {
            "making progress".to_owned()
        };
        match self.completed_ops {
            0 => format!("{whom}, {phase}, {progress}"),
            ops => format!("{whom}, {phase}, {progress}, {ops} I/O operations so far"),
        }
    }
}

/// A message that names the ranks that are late, and those of which nothing is known. Ranks that
/// wait themselves are named only if all late ones do.
pub(super) fn describe<'a>(
    late: &[LateRank],
    unknown: &[u32],
    host_of: impl Fn(Rank) -> Option<&'a str>,
    silence_ms: u64,
) -> String {
    let host = |rank: u32| host_of(Rank(rank)).unwrap_or("an unknown host");
    let (held_up, to_blame): (Vec<LateRank>, Vec<LateRank>) =
        late.iter().partition(|late| late.is_waiting(silence_ms));
    let named = if to_blame.is_empty() { held_up } else { to_blame };
    let described = named.iter().take(DESCRIBED_MAX);
    let mut said: Vec<String> =
        described.map(|late| late.describe(host(late.rank), silence_ms)).collect();
    if named.len() > DESCRIBED_MAX {
        said.push(format!("{} more late ranks", named.len() - DESCRIBED_MAX));
    }
    let together = |a: &u32, b: &u32| *b == *a + 1 && host(*a) == host(*b);
    for run in unknown.chunk_by(together).take(DESCRIBED_MAX) {
        let (first, last) = (run[0], run[run.len() - 1]);
        let whom =
            if first == last { format!("rank {first}") } else { format!("ranks {first}-{last}") };
        said.push(format!("no word from {whom} on {}", host(first)));
    }
    said.join("; ")
}

/// A time in seconds, with tenths if it is short.
pub(super) fn seconds(ms: u64) -> String {
    match ms % 1000 / 100 {
        tenths if ms < 10_000 && tenths > 0 => format!("{}.{tenths} s", ms / 1000),
        _ => format!("{} s", ms / 1000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { warning_ms: 1000, peer_ms: 3000 };

    fn record(entered: u64, collective: u64, phase: Phase, changed_ms: u64) -> Record {
        let mut record = Record { entered, collective, changed_ms, ..Record::default() };
        (record.phase, record.alive_ms) = (phase as u64, changed_ms);
        record
    }

    fn view(records: &[Record]) -> NodeView {
        let ranks = (0..).map(Rank).zip(records.iter().copied());
        NodeView::of(&ranks.collect::<Vec<_>>(), 7, 10_000, LIMITS.silence_ms())
    }

    #[test]
    fn late_is_who_has_not_entered_or_hangs_inside() {
        let alive = Record { alive_ms: 9_900, ..record(7, 2, Phase::Norm, 1_000) };
        let hanging = record(7, 2, Phase::Norm, 6_000);
        let working = record(6, 0, Phase::SwapAndUpdate, 9_950);
        let ahead = record(8, 2, Phase::Norm, 5_000);
        let done = record(7, 0, Phase::Commit, 5_000);
        let view = view(&[hanging, alive, working, ahead, done]);
        assert_eq!(view.waiting, [1, 3, 4]);
        assert_eq!(view.late.iter().map(|late| late.rank).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(view.progress_ms, 9_950);
        assert_eq!(view.speaker(), Some(1));
    }

    #[test]
    fn what_one_rank_knows_of_other_hosts_moves_its_neighbours_too() {
        let record = Record { elsewhere_ms: 9_000, ..record(7, 1, Phase::Norm, 9_999) };
        assert_eq!(view(&[record, record]).progress_ms, 9_000);
    }

    #[test]
    fn late_ranks_are_named_with_what_they_do() {
        let host = |rank: Rank| ["a", "a", "a", "a", "b", "b", "c"].get(rank.index()).copied();
        let hanging = record(7, 2, Phase::Norm, 6_000);
        let slow = Record { completed_ops: 12, ..record(6, 0, Phase::SwapAndUpdate, 9_950) };
        let stuck = record(6, 0, Phase::BetweenSteps, 7_000);
        let waiting = Record { alive_ms: 9_999, ..record(6, 1, Phase::Norm, 6_000) };
        let view = view(&[hanging, slow, stuck, waiting]);
        assert_eq!(
            describe(&view.late, &[4, 5, 6], host, LIMITS.silence_ms()),
            "rank 0 on a, in step: norm, in MPI_Iallreduce, no sign of life for 4 s; \
             rank 1 on a, in step: swapping and updating, making progress, \
             12 I/O operations so far; \
             rank 2 on a, computing between steps, no progress for 3 s; \
             no word from ranks 4-5 on b; no word from rank 6 on c"
        );
        assert_eq!(
            describe(&view.late[3..], &[], host, LIMITS.silence_ms()),
            "rank 3 on a, in step: norm, in MPI_Ibarrier, waiting as well"
        );
        let described = |index: usize, ago_ms| {
            view.late[index].aged(ago_ms, LIMITS).describe("a", LIMITS.silence_ms())
        };
        assert!(described(1, 900).contains("making progress"), "the next notice is not due");
        assert!(described(1, 2_500).contains("no progress for 1.5 s"), "{}", described(1, 2_500));
        assert!(described(2, 900).contains("no progress for 3.9 s"), "{}", described(2, 900));
    }

    #[test]
    fn numbers_of_the_page_are_read_back() {
        for phase in [Phase::Starting, Phase::SwapAndUpdate, Phase::Sweep] {
            assert_eq!(Phase::from_number(phase as u64), phase);
        }
        for collective in [Collective::Barrier, Collective::AllToAll] {
            assert_eq!(Collective::from_number(collective as u64 + 1), Some(collective));
        }
        assert_eq!(Collective::from_number(0), None);
        assert_eq!(Collective::from_number(u64::MAX), None);
    }

    #[test]
    fn time_in_which_a_rank_was_stopped_is_no_waiting() {
        assert_eq!(LIMITS.look_every_ms(), 100);
        assert_eq!(LIMITS.not_running_ms(5_000, 5_400), 0, "a busy machine");
        assert_eq!(LIMITS.not_running_ms(5_000, 65_000), 59_900, "a suspended job");
    }

    #[test]
    fn looks_are_frequent_enough_for_either_limit() {
        let looks = |warning_ms, peer_ms| {
            let limits = Limits { warning_ms, peer_ms };
            (limits.look_every_ms(), limits.silence_ms())
        };
        assert_eq!(looks(30_000, 600_000), (1000, 15_000));
        assert_eq!(looks(30_000, 500), (50, 250));
        assert_eq!(looks(1, 1), (10, 20));
    }
}
