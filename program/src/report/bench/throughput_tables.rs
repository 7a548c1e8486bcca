//! Throughput and latency of the world, its nodes and its drives, as tables.

use super::throughput::{Scope, Throughput};
use optswap::internals::telemetry::{OverRanks, TextTable, rank_lines};

/// World, nodes and drives; of many, the slowest and the fastest.
pub(super) fn throughput_table(all: &[Throughput]) -> String {
    let mut table = TextTable::of_numbers([
        "place",
        "ranks",
        "GB/s in",
        "GB/s out",
        "GiB/s in",
        "GiB/s out",
        "ns/param",
        "first done s",
        "last done s",
        "imbalance",
        "limit s",
        "bound by",
        "% of limit",
    ]);
    let (lines, left_out) = lines_of(all);
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    for it in lines {
        let done = it.done_seconds.as_ref();
        table.add_row([
            it.name.clone(),
            it.ranks.to_string(),
            format!("{:.3}", it.read_gb_per_s),
            format!("{:.3}", it.written_gb_per_s),
            format!("{:.3}", it.read_gib_per_s),
            format!("{:.3}", it.written_gib_per_s),
            format!("{:.2}", it.ns_per_param),
            or_none(done.map(|done| format!("{:.4}", done.min))),
            or_none(done.map(|done| format!("{:.4}", done.max))),
            or_none(done.map(|done| format!("{:.1} %", done.imbalance * 100.0))),
            or_none(it.limit_seconds.map(|seconds| format!("{seconds:.4}"))),
            or_none(it.bound_by.map(|by| format!("{by:?}").to_lowercase())),
            or_none(it.limit_percent.map(|percent| format!("{percent:.1}"))),
        ]);
    }
    match left_out {
        0 => table.to_string(),
        count => format!("{table}\n({count} more nodes and drives, neither slow nor fast)"),
    }
}

/// How long operations of the world, nodes and drives took; of many, the slowest and the fastest.
pub(super) fn latency_table(all: &[Throughput]) -> String {
    let mut table = TextTable::of_numbers([
        "latency, ms",
        "",
        "operations",
        "mean",
        "50 %",
        "99 %",
        "99.9 %",
        "max",
    ]);
    let (lines, left_out) = lines_of(all);
    for it in lines {
        for (direction, of) in [("in", it.latency.read), ("out", it.latency.write)] {
            let ms = |seconds: f64| format!("{:.3}", seconds * 1e3);
            let [p50, p99, p999, max] = of.points().map(ms);
            let (name, operations) = (it.name.clone(), of.operations.to_string());
            let mean = ms(of.mean_seconds);
            table.add_row([name, direction.to_owned(), operations, mean, p50, p99, p999, max]);
        }
    }
    match left_out {
        0 => table.to_string(),
        count => format!("{table}\n({count} more nodes and drives)"),
    }
}

/// The lines of a table, and how many were left out: the world, then nodes and drives. Of many,
/// only those that were done last and first.
fn lines_of(all: &[Throughput]) -> (Vec<&Throughput>, usize) {
    let (mut lines, mut left_out) = (Vec::new(), 0);
    for scope in [Scope::World, Scope::Node, Scope::Drive] {
        let these: Vec<&Throughput> = all.iter().filter(|it| it.scope == scope).collect();
        let last = |it: &&Throughput| it.done_seconds.as_ref().map_or(0.0, |done| done.max);
        let (shown, more) = rank_lines(&these.iter().map(last).collect::<Vec<f64>>());
        lines.extend(shown.into_iter().map(|index| these[index]));
        left_out += more;
    }
    (lines, left_out)
}

/// How far apart nodes, or drives, were done; nothing if there is one.
pub(super) fn spread(all: &[Throughput], scope: Scope, what: &str) -> Option<String> {
    let these = all.iter().filter(|it| it.scope == scope);
    let last: Vec<(&str, f64)> =
        these.filter_map(|it| Some((it.name.as_str(), it.done_seconds.as_ref()?.max))).collect();
    let seconds: Vec<f64> = last.iter().map(|(_, seconds)| *seconds).collect();
    let over = OverRanks::of(&seconds).filter(|_| last.len() > 1)?;
    Some(format!(
        "last done over {} {what}: {:.4} s per step min, {:.4} mean, {:.4} max ({}): imbalance \
         {:.1} %",
        last.len(),
        over.min,
        over.mean,
        over.max,
        last[over.max_rank].0,
        over.imbalance * 100.0
    ))
}
