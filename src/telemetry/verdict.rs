//! The verdict: one line that says what the steps were bound by, and which rank the others waited
//! for.

use serde::{Deserialize, Serialize};

use super::drive_use::{DriveUse, drive_uses, ratio};
use super::records::RankRecord;
use super::stats::median;
use crate::timers::{Section, Timer};

/// A late rank is only named if others waited for it for at least this share of the time.
const LATE_SHARE_MIN: f64 = 0.02;

/// What the steps were bound by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    /// Nothing was recorded.
    Nothing,
    /// Reading.
    Reads,
    /// Writing.
    Writes,
    /// Both at the same time.
    Drives,
    /// The update and what belongs to it.
    Computing,
    /// Waiting for other ranks.
    Ranks,
    /// Commits.
    Commits,
}

/// The rank that the others waited for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LateRank {
    /// Its number.
    pub rank: u32,
    /// The host that it runs on.
    pub host: String,
    /// How much longer than the median rank it took, in seconds, all steps together.
    pub late_s: f64,
    /// The step in which it was the latest.
    pub worst_step: u64,
    /// How late it was in that step, in seconds.
    pub worst_step_late_s: f64,
    /// The rank that waited the most.
    pub waiting_rank: u32,
    /// The share of the time in which that rank waited.
    pub waiting_share: f64,
}

/// The verdict over a world.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// What the steps were bound by.
    pub bound: Bound,
    /// The busiest drive.
    pub drive: Option<DriveUse>,
    /// The rank that the others waited for, if they waited long enough.
    pub late: Option<LateRank>,
    /// The verdict in words.
    pub words: String,
}

/// The rank that the others waited for, in the steps that all ranks have a record of.
pub(super) fn late_rank(records: &[RankRecord]) -> Option<LateRank> {
    let steps = records.iter().map(|record| record.series.len()).min()?;
    if records.len() < 2 || steps == 0 {
        return None;
    }
    let mut late_s = vec![0.0; records.len()];
    let mut worst = vec![(0.0, 0); records.len()];
    for index in 0..steps {
        let of = |record: &RankRecord| {
            let series = &record.series;
            series.late_ns(series.len() - steps + index) as f64 / 1e9
        };
        let took: Vec<f64> = records.iter().map(of).collect();
        // A rank of two is compared with the other one, a rank of many with their median.
        let usual = if took.len() == 2 { took[0].min(took[1]) } else { median(&took) };
        for (rank, took) in took.iter().enumerate() {
            let late = (took - usual).max(0.0);
            late_s[rank] += late;
            if late > worst[rank].0 {
                let series = &records[rank].series;
                worst[rank] = (late, series.step[series.len() - steps + index]);
            }
        }
    }
    let (latest, late_s) = late_s.into_iter().enumerate().max_by(|a, b| a.1.total_cmp(&b.1))?;
    let share = |record: &RankRecord| {
        let series = &record.series;
        let last = series.len() - steps..series.len();
        let waiting: u64 = last.clone().map(|index| series.waiting_ns[index]).sum();
        let wall: u64 = last.map(|index| series.wall_ns(index)).sum();
        ratio(waiting as f64, wall as f64)
    };
    let others = records.iter().filter(|record| record.rank != records[latest].rank);
    let waiting = others.max_by(|a, b| share(a).total_cmp(&share(b)))?;
    let wall = |record: &RankRecord| -> u64 {
        let series = &record.series;
        (series.len() - steps..series.len()).map(|index| series.wall_ns(index)).sum()
    };
    let wall_s = records.iter().map(wall).max().unwrap_or(0) as f64 / 1e9;
    let is_worth_a_word =
        ratio(late_s, wall_s) >= LATE_SHARE_MIN && share(waiting) >= LATE_SHARE_MIN;
    is_worth_a_word.then(|| LateRank {
        rank: records[latest].rank,
        host: records[latest].host.clone(),
        late_s,
        worst_step: worst[latest].1,
        worst_step_late_s: worst[latest].0,
        waiting_rank: waiting.rank,
        waiting_share: share(waiting),
    })
}

impl Verdict {
    /// The verdict that follows from the records of all ranks.
    pub fn of(records: &[RankRecord]) -> Self {
        let steps = records.iter().map(|record| record.steps).max().unwrap_or(0);
        let step_s: f64 = records.iter().map(|record| record.seconds(Timer::Step)).sum();
        if steps == 0 || step_s <= 0.0 {
            let words = "no steps, no verdict".to_owned();
            return Self { bound: Bound::Nothing, drive: None, late: None, words };
        }
        let mut uses = drive_uses(records);
        uses.sort_by(|a, b| {
            nearness(a).total_cmp(&nearness(b)).then(a.busy_s.total_cmp(&b.busy_s))
        });
        let busiest = uses.pop();
        let (bound, mut words) = bound_in_words(records, step_s, busiest.as_ref());
        let late = late_rank(records);
        match &late {
            Some(late) => words.push_str(&format!("; {}", late.words())),
            None if records.len() > 1 => words.push_str("; no rank holds up the others"),
            None => {}
        }
        Self { bound, drive: busiest, late, words }
    }
}

/// Whether reads, writes or both keep a drive busy: writes, if nothing was read for a longer part
/// of the time than nothing was written.
fn bound_of(it: &DriveUse) -> Bound {
    let difference = it.writes_alone_s - it.reads_alone_s;
    if difference.abs() < 0.05 * it.busy_s {
        Bound::Drives
    } else if difference > 0.0 {
        Bound::Writes
    } else {
        Bound::Reads
    }
}

/// How near a drive was to its limit, for the choice of the drive that is named.
fn nearness(it: &DriveUse) -> f64 {
    it.share_of_limit().unwrap_or(0.0)
}

/// What the steps were bound by, which took `step_s` seconds over all ranks: the largest share of
/// the time decides.
fn bound_in_words(
    records: &[RankRecord],
    step_s: f64,
    busiest: Option<&DriveUse>,
) -> (Bound, String) {
    let share = |sections: &[Section]| -> f64 {
        let seconds = |record: &RankRecord| -> f64 {
            sections.iter().map(|section| record.section_seconds(*section)).sum()
        };
        records.iter().map(seconds).sum::<f64>() / step_s
    };
    let drives = share(&[Section::Read, Section::Write]);
    let computing = share(&[Section::Compute, Section::Gradient, Section::Checksum]);
    let (ranks, commits) = (share(&[Section::Collective]), share(&[Section::Commit]));
    let most = [drives, computing, ranks, commits].into_iter().fold(0.0, f64::max);
    let percent = |share: f64| format!("{:.0} %", share * 100.0);
    if drives >= most {
        let bound = busiest.map_or(Bound::Drives, bound_of);
        let direction = match bound {
            Bound::Reads => "reads",
            Bound::Writes => "writes",
            _ => "reads and writes",
        };
        let on = busiest.map_or_else(String::new, |it| describe(it, records));
        (bound, format!("bound by {direction}{on}"))
    } else if computing >= most {
        let on_drives = percent(drives);
        let said = format!("bound by computing: {} of a step", percent(computing));
        (Bound::Computing, format!("{said}, and {on_drives} waiting for drives"))
    } else if ranks >= most {
        let said = percent(ranks);
        (Bound::Ranks, format!("bound by waiting for other ranks: {said} of a step"))
    } else {
        (Bound::Commits, format!("bound by commits: {} of a step", percent(commits)))
    }
}

fn describe(it: &DriveUse, records: &[RankRecord]) -> String {
    let is_one_node = records.iter().all(|record| record.host == records[0].host);
    let node = if is_one_node { String::new() } else { format!(" of {}", it.host) };
    let rate = it.bytes_per_s() / 1e9;
    let near = match (it.share_of_limit(), it.share_of_best()) {
        (Some(share), _) => format!("{:.0} % of limit", share * 100.0),
        (None, Some(share)) => {
            format!("{rate:.2} GB/s, {:.0} % of its best step", share * 100.0)
        }
        (None, None) => format!("{rate:.2} GB/s"),
    };
    format!(" on {}{node}: {near}", it.drive)
}

impl LateRank {
    /// The late rank in words.
    pub fn words(&self) -> String {
        let Self { rank, host, waiting_rank, worst_step, .. } = self;
        format!(
            "rank {waiting_rank} waits {:.0} % for rank {rank} on {host} (late by {:.2} s in all, \
             the most in step {worst_step}: {:.2} s)",
            self.waiting_share * 100.0,
            self.late_s,
            self.worst_step_late_s
        )
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::io::DriveTotals;
    use crate::telemetry::{DriveLimit, DriveRecord, DriveSeries, Series, TimerRecord};
    use crate::timers::Total;

    /// A rank that took 4 steps of 1 s each, of which its own part was `own_ms`, on one drive.
    pub(in crate::telemetry) fn record(rank: u32, host: &str, own_ms: u64) -> RankRecord {
        let ms = 1_000_000;
        let (own_ns, waiting_ns) = (own_ms * ms, 1000 * ms - own_ms * ms);
        let timer = |timer: Timer, per_step_ns: u64| TimerRecord {
            name: timer.name().to_owned(),
            total: Total { total_ns: 4 * per_step_ns, count: 4 },
        };
        let mut totals = DriveTotals {
            read_bytes: 4_000_000_000,
            written_bytes: 4_000_000_000,
            reads: 40,
            writes: 40,
            read_busy_ns: 4 * 500 * ms,
            write_busy_ns: 4 * 900 * ms,
            busy_ns: 4 * 950 * ms,
            depth_max: 7,
            ..DriveTotals::default()
        };
        totals.write_latency.record(Duration::from_millis(8));
        RankRecord {
            rank,
            host: host.to_owned(),
            elems: 1000,
            steps: 4,
            drives: vec![DriveRecord {
                path: format!("/nvme{}/optswap/job/shard-00000/state", rank % 8).into(),
                totals,
                limit: None,
            }],
            timers: vec![
                timer(Timer::Step, 1000 * ms),
                timer(Timer::StepOwn, own_ns),
                timer(Timer::SwapInState, own_ns / 4),
                timer(Timer::SwapOutState, own_ns / 4),
                timer(Timer::OptimizerStep, own_ns / 8),
                timer(Timer::Agreement, waiting_ns),
            ],
            counters: Vec::new(),
            kernel_read_bytes: 4_000_000_000,
            kernel_written_bytes: 4_000_000_000,
            series: Series {
                step: vec![1, 2, 3, 4],
                step_ns: vec![1000 * ms; 4],
                between_ns: vec![0; 4],
                own_ns: vec![own_ns; 4],
                waiting_ns: vec![waiting_ns; 4],
                drives: vec![DriveSeries {
                    read_bytes: vec![1_000_000_000; 4],
                    written_bytes: vec![1_000_000_000; 4],
                    busy_ns: vec![950 * ms; 4],
                }],
            },
            picture: Vec::new(),
        }
    }

    fn with_limit(mut record: RankRecord, mixed_bytes_per_s: f64) -> RankRecord {
        let (read_bytes_per_s, write_bytes_per_s) = (3e9, 2e9);
        record.drives[0].limit =
            Some(DriveLimit { read_bytes_per_s, write_bytes_per_s, mixed_bytes_per_s });
        record
    }

    #[test]
    fn drives_are_named_with_their_share_of_the_limit() {
        let records = [
            with_limit(record(0, "node06", 990), 4e9),
            with_limit(record(2, "node07", 990), 2.17e9),
            with_limit(record(1, "node07", 990), 4e9),
        ];
        let verdict = Verdict::of(&records);
        assert_eq!(verdict.bound, Bound::Writes);
        assert_eq!(
            verdict.words,
            "bound by writes on /nvme2 of node07: 92 % of limit; no rank holds up the others"
        );
        assert_eq!(drive_uses(&records)[0].share_of_limit(), Some(0.5));
    }

    #[test]
    fn ranks_that_share_a_drive_share_its_limit() {
        let (mut first, mut second) = (record(0, "a", 990), record(8, "a", 990));
        (first, second) = (with_limit(first, 5e9), with_limit(second, 5e9));
        let uses = drive_uses(&[first, second]);
        assert_eq!((uses.len(), uses[0].read_bytes), (1, 8_000_000_000));
        assert_eq!(uses[0].share_of_limit(), Some(0.8));
        assert_eq!(uses[0].best_bytes_per_s, 4e9);
    }

    #[test]
    fn the_rank_that_others_wait_for_is_named() {
        let mut late = record(5, "node03", 980);
        late.series.own_ns[2] = 3_000_000_000;
        let records = [record(0, "node01", 900), late, record(13, "node02", 900)];
        let verdict = Verdict::of(&records);
        let found = verdict.late.unwrap();
        assert_eq!((found.rank, found.waiting_rank, found.worst_step), (5, 13, 3));
        assert!((found.late_s - 2.34).abs() < 1e-9, "{found:?}");
        let words = "rank 13 waits 10 % for rank 5 on node03 (late by 2.34 s in all, the most in \
                     step 3: 2.10 s)";
        assert!(verdict.words.ends_with(words), "{}", verdict.words);
        // Alike, nobody is late.
        let records = [record(0, "a", 900), record(1, "a", 901)];
        assert_eq!(Verdict::of(&records).late, None);
    }

    #[test]
    fn nothing_recorded_gives_no_verdict() {
        assert_eq!(Verdict::of(&[]).bound, Bound::Nothing);
        let mut computing = record(0, "a", 1000);
        computing.timers[4].total.total_ns = 4_000_000_000;
        assert_eq!(Verdict::of(&[computing]).bound, Bound::Computing);
        let waiting = [record(0, "a", 100), record(1, "a", 900)].map(|mut it| {
            it.timers[5].total.total_ns = 3_600_000_000;
            it
        });
        assert_eq!(Verdict::of(&waiting).bound, Bound::Ranks);
    }
}
