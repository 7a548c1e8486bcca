//! How fast each rank moved its state, as a table.

use super::records::RankRecord;
use super::stats::{OverRanks, median};
use super::table::TextTable;
use super::world::rank_lines;
use crate::timers::Timer;

/// How fast each rank, and the world, moved its state during the steps. `seconds` are each rank's
/// times of a step: of every one, or means over several. A step of the world takes as long as its
/// slowest rank.
pub fn rank_table(records: &[RankRecord], seconds: &[Vec<f64>]) -> String {
    let mut table = TextTable::of_numbers([
        "rank", "elements", "GB in", "GB out", "GB/s in", "GB/s out", "step s", "min", "max",
        "overlap",
    ]);
    let totals: Vec<f64> = seconds.iter().map(|of_rank| of_rank.iter().sum()).collect();
    let (lines, left_out) = rank_lines(&totals);
    for index in lines {
        let record = &records[index];
        let label = format!("{} ({})", record.rank, record.host);
        table.add_row(row(label, std::slice::from_ref(record), &seconds[index]));
    }
    table.add_row(row("all".to_owned(), records, &slowest(seconds)));
    match left_out {
        0 => table.to_string(),
        count => format!("{table}\n({count} more ranks, neither the slowest nor the fastest)"),
    }
}

/// The slowest rank's seconds of every step.
pub fn slowest(seconds: &[Vec<f64>]) -> Vec<f64> {
    let steps = seconds.iter().map(Vec::len).min().unwrap_or(0);
    let of_step = |step: usize| seconds.iter().map(|of_rank| of_rank[step]).fold(0.0, f64::max);
    (0..steps).map(of_step).collect()
}

fn row(label: String, records: &[RankRecord], seconds: &[f64]) -> [String; 10] {
    let gigabytes =
        |bytes: fn(&RankRecord) -> u64| records.iter().map(bytes).sum::<u64>() as f64 / 1e9;
    let (read, written) = (gigabytes(RankRecord::read_bytes), gigabytes(RankRecord::written_bytes));
    let over = OverRanks::of(seconds);
    let (min, mean, max) = over.map_or((0.0, 0.0, 0.0), |over| (over.min, over.mean, over.max));
    let total = mean * records.first().map_or(0.0, |record| record.steps as f64);
    let rate = |gigabytes: f64| if total > 0.0 { gigabytes / total } else { 0.0 };
    [
        label,
        records.iter().map(|record| record.elems).sum::<u64>().to_string(),
        format!("{read:.3}"),
        format!("{written:.3}"),
        format!("{:.3}", rate(read)),
        format!("{:.3}", rate(written)),
        format!("{:.4}", median(seconds)),
        format!("{min:.4}"),
        format!("{max:.4}"),
        format!("{:.2}", overlap(records)),
    ]
}

/// How many of swap-in, swap-out and update were under way at a time, on average over the step:
/// 1.0 is one after the other, 3.0 is all three all the time.
pub fn overlap(records: &[RankRecord]) -> f64 {
    let seconds = |timers: &[Timer]| -> f64 {
        records.iter().flat_map(|r| timers.iter().map(|timer| r.seconds(*timer))).sum()
    };
    let step = seconds(&[Timer::Step]);
    let busy = [Timer::AsyncSwapInState, Timer::AsyncSwapOutState, Timer::OptimizerStep];
    if step > 0.0 { seconds(&busy) / step } else { 0.0 }
}

/// Bytes moved per parameter and step, over all ranks.
pub fn bytes_per_param(records: &[RankRecord], bytes: fn(&RankRecord) -> u64) -> f64 {
    let moved: u64 = records.iter().map(bytes).sum();
    let params: u64 = records.iter().map(|record| record.elems).sum();
    let steps = records.first().map_or(0, |record| record.steps);
    moved as f64 / (params * steps).max(1) as f64
}
