//! A result for those on a terminal: key figures, and step times as a line of blocks.

use super::result_file::ResultFile;
use optswap::internals::telemetry::{RankRecord, median, rank_lines};
use optswap::internals::timers::{Section, Timer};
use optswap::internals::units::Bytes;

const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Values as a line of blocks, the lowest for the smallest value. Of more values than `width`, each
/// block is the largest of a few.
pub fn sparkline(values: &[f64], width: usize) -> String {
    let group = values.len().div_ceil(width.max(1)).max(1);
    let largest = |few: &[f64]| few.iter().copied().fold(0.0, f64::max);
    let values: Vec<f64> = values.chunks(group).map(largest).collect();
    let max = largest(&values);
    let min = values.iter().copied().fold(max, f64::min);
    if max == min {
        return values.iter().map(|_| BLOCKS[3]).collect();
    }
    values
        .iter()
        .map(|value| BLOCKS[((value - min) / (max - min) * 7.0).round() as usize])
        .collect()
}

/// Names and values, for page and terminal alike.
pub(super) fn key_figures(result: &ResultFile) -> Vec<(String, String)> {
    let records = &result.rank_records;
    let steps = records.iter().map(|record| record.steps).max().unwrap_or(0);
    let per_param = |bytes: fn(&RankRecord) -> u64| {
        let moved: u64 = records.iter().map(bytes).sum();
        format!("{:.2} B", moved as f64 / (result.params * steps).max(1) as f64)
    };
    let kernel: u64 = records.iter().map(|it| it.kernel_read_bytes + it.kernel_written_bytes).sum();
    let drives = result.verdict().drive;
    let limit = drives.and_then(|drive| drive.share_of_limit());
    let mut hosts: Vec<&str> = records.iter().map(|record| record.host.as_str()).collect();
    hosts.sort_unstable();
    hosts.dedup();
    let nodes = if hosts.len() == 1 { "node" } else { "nodes" };
    let mut figures = vec![
        ("ranks".to_owned(), format!("{} on {} {}", records.len(), hosts.len(), nodes)),
        ("steps".to_owned(), steps.to_string()),
        ("parameters".to_owned(), format!("{:.1} M", result.params as f64 / 1e6)),
        ("step, median".to_owned(), format!("{:.4} s", result.step_median_s())),
        ("read and written".to_owned(), format!("{:.3} GB/s", result.bytes_per_s() / 1e9)),
        ("read per parameter".to_owned(), per_param(RankRecord::read_bytes)),
        ("written per parameter".to_owned(), per_param(RankRecord::written_bytes)),
        ("bytes read".to_owned(), sum(records, RankRecord::read_bytes).to_string()),
        ("bytes written".to_owned(), sum(records, RankRecord::written_bytes).to_string()),
        ("the kernel's count".to_owned(), Bytes(kernel).human()),
    ];
    if let Some(limit) = limit {
        let name = "busiest drive".to_owned();
        figures.push((name, format!("{:.0} % of limit", limit * 100.0)));
    }
    figures
}

fn sum(records: &[RankRecord], value: fn(&RankRecord) -> u64) -> u64 {
    records.iter().map(value).sum()
}

/// The summary of a result, short enough for a terminal.
pub fn terminal_summary(result: &ResultFile) -> String {
    let mut text = format!("{}\n  {}\n", result.name, result.verdict().words);
    let figures = key_figures(result);
    for few in figures.chunks(3) {
        let cells = few.iter().map(|(name, value)| format!("{name} {value}"));
        text.push_str(&format!("  {}\n", cells.collect::<Vec<_>>().join(", ")));
    }
    let seconds = &result.step_seconds;
    let max = seconds.iter().copied().fold(0.0, f64::max);
    let min = seconds.iter().copied().fold(max, f64::min);
    text.push_str(&format!(
        "  step s   {}  {min:.4} to {max:.4}, median {:.4}\n",
        sparkline(seconds, 60),
        median(seconds)
    ));
    let records = &result.rank_records;
    let own: Vec<f64> = records.iter().map(|record| record.seconds(Timer::StepOwn)).collect();
    let (lines, left_out) = rank_lines(&own);
    for index in lines {
        let record = &records[index];
        let step = record.seconds(Timer::Step).max(f64::MIN_POSITIVE);
        let shares = Section::ALL.map(|section| {
            let share = record.section_seconds(section) / step * 100.0;
            format!("{} {share:.0}%", section.name())
        });
        text.push_str(&format!(
            "  rank {} ({}): {}\n",
            record.rank,
            record.host,
            shares.join(", ")
        ));
    }
    if left_out > 0 {
        text.push_str(&format!("  ({left_out} more ranks)\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_go_from_the_smallest_to_the_largest() {
        assert_eq!(sparkline(&[1.0, 8.0, 4.5], 10), "▁█▅");
        assert_eq!(sparkline(&[2.0, 2.0], 10), "▄▄");
        assert_eq!(sparkline(&[1.0, 2.0, 3.0, 10.0], 2), "▁█");
        assert_eq!(sparkline(&[], 5), "");
    }
}
