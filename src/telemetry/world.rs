//! Tables of the world for people, legible for any number of ranks.

use super::drive_use::{DriveUse, drive_uses};
use super::records::RankRecord;
use super::stats::OverRanks;
use super::table::TextTable;
use super::verdict::Verdict;
use crate::timers::{Counter, Timer};
use crate::units::{Bytes, counted};

/// Up to this many ranks or drives have a line each; of more, the slowest and the fastest have one.
const LINES_MAX: usize = 16;
const SLOWEST: usize = 8;
const FASTEST: usize = 4;

/// Where the steps' time went: one line per timer, milliseconds per step over the ranks. Timers
/// that nothing used are left out.
pub fn milliseconds_table(records: &[RankRecord]) -> String {
    let mut table = TextTable::of_numbers([
        "timer (ms per step)",
        "min",
        "mean",
        "max",
        "slowest",
        "imbalance",
        "% of step",
    ]);
    let per_step = |timer: Timer| -> Vec<f64> {
        let ms = |record: &RankRecord| record.seconds(timer) * 1e3 / record.steps.max(1) as f64;
        records.iter().map(ms).collect()
    };
    let step = OverRanks::of(&per_step(Timer::Step)).map_or(0.0, |over| over.mean);
    for timer in Timer::ALL {
        let Some(over) = OverRanks::of(&per_step(*timer)) else { continue };
        if over.max == 0.0 {
            continue;
        }
        let share = if step > 0.0 { over.mean / step * 100.0 } else { 0.0 };
        let slowest = &records[over.max_rank];
        table.add_row([
            timer.name().to_owned(),
            format!("{:.2}", over.min),
            format!("{:.2}", over.mean),
            format!("{:.2}", over.max),
            format!("rank {} ({})", slowest.rank, slowest.host),
            format!("{:.1} %", over.imbalance * 100.0),
            format!("{share:.1}"),
        ]);
    }
    table.to_string()
}

/// The indices of the ranks or drives that have a line in a table, and how many have none: all of a
/// few, of many those that took longest and shortest. `seconds` is the time that each took.
pub fn rank_lines(seconds: &[f64]) -> (Vec<usize>, usize) {
    let mut order: Vec<usize> = (0..seconds.len()).collect();
    if seconds.len() <= LINES_MAX {
        return (order, 0);
    }
    order.sort_by(|a, b| seconds[*b].total_cmp(&seconds[*a]));
    let fastest = order.split_off(order.len() - FASTEST);
    let left_out = order.len() - SLOWEST;
    order.truncate(SLOWEST);
    order.extend(fastest);
    (order, left_out)
}

/// What the drives did: one line per drive and node, all of its ranks together.
pub fn drive_table(records: &[RankRecord]) -> String {
    let uses = drive_uses(records);
    let mut table = TextTable::of_numbers([
        "drive",
        "GB in",
        "GB out",
        "GB/s",
        "% of limit",
        "busy %",
        "depth",
        "in ms p50",
        "p99",
        "out ms p50",
        "p99",
    ]);
    let (lines, left_out) = rank_lines(&uses.iter().map(|it| it.busy_s).collect::<Vec<_>>());
    for index in lines {
        table.add_row(drive_row(&uses[index]));
    }
    let more = match left_out {
        0 => String::new(),
        count => format!("\n({count} more drives, neither among the busiest nor the idlest)"),
    };
    format!("{table}{more}")
}

fn drive_row(it: &DriveUse) -> [String; 11] {
    let share =
        |share: Option<f64>| share.map_or("-".to_owned(), |it| format!("{:.0}", it * 100.0));
    let ms = |seconds: f64| format!("{:.2}", seconds * 1e3);
    let busy = if it.step_s > 0.0 { it.busy_s / it.step_s * 100.0 } else { 0.0 };
    [
        format!("{} ({})", it.drive, it.host),
        format!("{:.3}", it.read_bytes as f64 / 1e9),
        format!("{:.3}", it.written_bytes as f64 / 1e9),
        format!("{:.3}", it.bytes_per_s() / 1e9),
        share(it.share_of_limit()),
        format!("{busy:.0}"),
        it.depth_max.to_string(),
        ms(it.read_latency_s[0]),
        ms(it.read_latency_s[1]),
        ms(it.write_latency_s[0]),
        ms(it.write_latency_s[1]),
    ]
}

/// How long each rank took for its own part; for many, of the slowest and the fastest.
fn own_table(records: &[RankRecord]) -> String {
    let ms = |record: &RankRecord, timer| record.seconds(timer) * 1e3 / record.steps.max(1) as f64;
    let own = |record: &RankRecord| ms(record, Timer::StepOwn) + ms(record, Timer::BetweenSteps);
    let (lines, left_out) = rank_lines(&records.iter().map(own).collect::<Vec<_>>());
    let mut table = TextTable::of_numbers([
        "rank (ms per step)",
        "step",
        "own part",
        "before it",
        "waits for others",
    ]);
    for index in lines {
        let record = &records[index];
        let step = ms(record, Timer::Step);
        let waits = step - ms(record, Timer::StepOwn) + ms(record, Timer::CollectivesBetween);
        table.add_row([
            format!("{} ({})", record.rank, record.host),
            format!("{step:.2}"),
            format!("{:.2}", ms(record, Timer::StepOwn)),
            format!("{:.2}", ms(record, Timer::BetweenSteps)),
            format!("{:.2}", waits.max(0.0)),
        ]);
    }
    let more = match left_out {
        0 => String::new(),
        count => format!("\n({count} more ranks, neither among the slowest nor the fastest)"),
    };
    format!("{table}{more}")
}

/// Everything about the world: tables and the verdict. `endurance` is what may be written to a
/// drive in its life, 0 if unknown.
pub fn world_report(records: &[RankRecord], endurance: Bytes) -> String {
    let steps = records.iter().map(|record| record.steps).max().unwrap_or(0);
    let sum = |value: fn(&RankRecord) -> u64| records.iter().map(value).sum::<u64>();
    let mut text = format!(
        "{} on {}: {} B read, {} B written (the kernel counts {} and {})\n",
        counted(steps, "step"),
        counted(records.len() as u64, "rank"),
        sum(RankRecord::read_bytes),
        sum(RankRecord::written_bytes),
        sum(|record| record.kernel_read_bytes),
        sum(|record| record.kernel_written_bytes),
    );
    let sum_of = |counter| records.iter().map(|it| it.counted(counter)).sum::<u64>();
    let hits = sum_of(Counter::CacheHitBytes);
    if hits > 0 {
        let all = hits + sum(RankRecord::read_bytes);
        let share = hits as f64 / all as f64 * 100.0;
        text.push_str(&format!("{hits} B were still in memory ({share:.1} % of state)\n"));
    }
    let spilled = sum_of(Counter::SpilledGradientBytes);
    if spilled > 0 {
        text.push_str(&format!("{spilled} B of gradients were spilled to drives\n"));
    }
    text.push_str(&format!("{}\n{}\n", milliseconds_table(records), own_table(records)));
    text.push_str(&format!("{}\n", drive_table(records)));
    text.push_str(&wear(records, endurance));
    text.push_str(&format!("verdict: {}", Verdict::of(records).words));
    text
}

/// How many such steps a drive lasts, if its endurance is known.
fn wear(records: &[RankRecord], endurance: Bytes) -> String {
    let uses = drive_uses(records);
    let most = uses.iter().max_by_key(|it| it.written_bytes);
    let (Some(most), true) = (most, endurance.0 > 0) else { return String::new() };
    let steps = records.iter().map(|record| record.steps).max().unwrap_or(0);
    let per_step = most.written_bytes as f64 / steps.max(1) as f64;
    let life = if per_step > 0.0 { endurance.0 as f64 / per_step } else { f64::INFINITY };
    format!(
        "wear: {} ({}) is written {:.3} GB a step; its {} last for {life:.0} such steps\n",
        most.drive,
        most.host,
        per_step / 1e9,
        endurance.human(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    use super::super::verdict::tests::record;

    #[test]
    fn a_world_of_512_ranks_fits_a_terminal() {
        let records: Vec<RankRecord> = (0..512)
            .map(|rank| record(rank, &format!("node{:03}", rank / 8), 100 + u64::from(rank)))
            .collect();
        let text = world_report(&records, Bytes(600 << 40));
        assert!(text.lines().count() < 60, "{} lines", text.lines().count());
        assert!(text.lines().all(|line| line.chars().count() <= 180), "{text}");
        for words in ["512 ranks", "rank 511 (node063)", "500 more ranks", "more drives", "wear: "]
        {
            assert!(text.contains(words), "`{words}` is not in:\n{text}");
        }
    }

    #[test]
    fn of_many_the_slowest_and_fastest_have_a_line() {
        let seconds: Vec<f64> = (0..512).map(f64::from).collect();
        let (lines, left_out) = rank_lines(&seconds);
        assert_eq!(lines, [511, 510, 509, 508, 507, 506, 505, 504, 3, 2, 1, 0]);
        assert_eq!(left_out, 500);
        assert_eq!(rank_lines(&seconds[..3]), (vec![0, 1, 2], 0));
    }
}
