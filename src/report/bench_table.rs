//! The result of `optswap bench` for people, and as comma-separated values.

use std::fmt::Write;

use super::bench::{BenchResult, Flag};
use super::latency::{CSV_HEADER, latency_table};
use super::stats::{OverRanks, standard_deviation};
use super::table::{counted, rank_table, table};
use super::throughput::{Scope, Throughput};
use crate::telemetry::world_report;
use crate::units::Bytes;

const GIB_PER_GB: f64 = 1e9 / (1u64 << 30) as f64;

/// Everything that people want to see.
pub fn bench_tables(result: &BenchResult) -> String {
    let mut text = String::new();
    let mut line = |words: String| {
        text.push_str(&words);
        text.push('\n');
    };
    line(head(result));
    line(rank_table(&result.rank_records, &seconds_of_ranks(result)));
    let endurance = result.setup.config.report.drive_endurance;
    line(world_report(&result.rank_records, endurance));
    line(throughput_table(&result.throughput));
    line(latency_table(&result.throughput));
    for (number, seconds) in result.step_seconds.iter().enumerate() {
        let rates = rates_in(result, *seconds);
        line(format!("repetition {}: {seconds:.4} s per step, {rates}", number + 1));
    }
    if let Some(done) = &result.done_seconds {
        line(format!(
            "until its own last write: first rank {:.4} s per step, the last (rank {}) {:.4} s: \
             imbalance {:.1} %",
            done.min,
            done.max_rank,
            done.max,
            done.imbalance * 100.0
        ));
    }
    line(summary(result));
    remarks(result).into_iter().for_each(&mut line);
    let verified = if result.verified { ", verified" } else { "" };
    line(format!("state digest {}{verified}", result.state_digest));
    text.truncate(text.trim_end().len());
    text
}

fn head(result: &BenchResult) -> String {
    let options = &result.setup.options;
    format!(
        "optswap {} ({}): {} parameters, {} on {}, {} of {}, {} of warm-up before",
        result.optswap,
        result.commit,
        result.params,
        counted(result.ranks as u64, "rank"),
        counted(result.nodes.len() as u64, "node"),
        counted(options.repetitions, "repetition"),
        counted(options.steps, "step"),
        options.warmup
    )
}

/// Seconds per step of every rank and repetition.
fn seconds_of_ranks(result: &BenchResult) -> Vec<Vec<f64>> {
    let ranks = result.throughput.iter().filter(|it| it.scope == Scope::Rank);
    ranks.map(|rank| rank.seconds.clone()).collect()
}

fn world(result: &BenchResult) -> Option<&Throughput> {
    result.throughput.iter().find(|it| it.scope == Scope::World)
}

/// `read 1.2 GB/s (1.1 GiB/s), written ...` for a step of so many seconds.
fn rates_in(result: &BenchResult, seconds: f64) -> String {
    let Some(world) = world(result).filter(|_| seconds > 0.0) else { return String::new() };
    let rate = |bytes: f64| {
        let gb = bytes / seconds / 1e9;
        format!("{gb:.3} GB/s ({:.3} GiB/s)", gb * GIB_PER_GB)
    };
    let of_limit = match world.limit_percent(seconds) {
        Some(percent) => format!(", {percent:.1} % of limit"),
        None => String::new(),
    };
    format!("read {}, written {}{of_limit}", rate(world.read_bytes), rate(world.written_bytes))
}

/// World, nodes and drives.
fn throughput_table(all: &[Throughput]) -> String {
    let mut table = table(&[
        "place",
        "GB/s in",
        "GB/s out",
        "GiB/s in",
        "GiB/s out",
        "limit s",
        "bound by",
        "% of limit",
    ]);
    for it in all.iter().filter(|it| it.scope != Scope::Rank) {
        let [read, written] = it.gb_per_s();
        let limit = it.limit_percent(it.median_seconds());
        table.add_row([
            it.name.clone(),
            format!("{read:.3}"),
            format!("{written:.3}"),
            format!("{:.3}", read * GIB_PER_GB),
            format!("{:.3}", written * GIB_PER_GB),
            it.limit_seconds.map_or("-".to_owned(), |seconds| format!("{seconds:.4}")),
            it.bound_by.map_or("-".to_owned(), |by| format!("{by:?}").to_lowercase()),
            limit.map_or("-".to_owned(), |percent| format!("{percent:.1}")),
        ]);
    }
    table.to_string()
}

fn summary(result: &BenchResult) -> String {
    let seconds = &result.step_seconds;
    let over = OverRanks::of(seconds);
    let (min, mean, max) = over.map_or((0.0, 0.0, 0.0), |over| (over.min, over.mean, over.max));
    let limit = match result.limit_percent {
        Some(percent) => format!("; {percent:.1} % of limit"),
        None => String::new(),
    };
    format!(
        "step {:.3} s median, {min:.3} min, {mean:.3} mean, {max:.3} max, {:.4} standard deviation \
         over {} repetitions; {:.1} ns per parameter; {:.2} B read and {:.2} B written per \
         parameter{limit}",
        result.step_seconds_median,
        standard_deviation(seconds),
        seconds.len(),
        result.ns_per_param,
        result.bytes_read_per_param,
        result.bytes_written_per_param,
    )
}

/// What a reader must know to believe the figures.
fn remarks(result: &BenchResult) -> Vec<String> {
    let mut remarks = Vec::new();
    if result.flags.contains(&Flag::Short) {
        remarks.push(
            "short: repetitions of less than a second say little; take more --steps or --params"
                .to_owned(),
        );
    }
    if result.flags.contains(&Flag::Buffered) {
        remarks.push(format!(
            "buffered: the kernel read {:.2} B and wrote {:.2} B per parameter, less than optswap \
             did: the page cache answered, not the drives",
            result.kernel_bytes_read_per_param, result.kernel_bytes_written_per_param
        ));
        for (host, state, memory) in result.data_against_memory() {
            let holds = if state < memory { "holds it" } else { "does not hold it" };
            remarks.push(format!(
                "{host}: {} of state, {} of memory, which {holds}",
                Bytes(state).human(),
                Bytes(memory).human()
            ));
        }
    }
    if result.verified {
        remarks.push("verified: comparisons are left out of the times".to_owned());
    }
    remarks
}

/// One line for each repetition and each of world, nodes, drives and ranks.
pub fn bench_csv(result: &BenchResult) -> String {
    let mut csv = String::from(
        "label,repetition,scope,name,seconds_per_step,read_bytes_per_step,written_bytes_per_step,\
         read_gb_per_s,written_gb_per_s,read_gib_per_s,written_gib_per_s,limit_percent,",
    );
    csv.push_str(CSV_HEADER);
    let label = quoted(result.setup.label.as_deref().unwrap_or_default());
    for it in &result.throughput {
        let scope = format!("{:?}", it.scope).to_lowercase();
        for (number, seconds) in it.seconds.iter().enumerate() {
            let gb = |bytes: f64| if *seconds > 0.0 { bytes / seconds / 1e9 } else { 0.0 };
            let (read, written) = (gb(it.read_bytes), gb(it.written_bytes));
            let limit = it.limit_percent(*seconds).map(|percent| format!("{percent:.3}"));
            // Writing to a text does not fail.
            let _ = write!(
                csv,
                "\n{label},{},{scope},{},{seconds:.9},{:.0},{:.0},{read:.6},{written:.6},{:.6},\
                 {:.6},{},{}",
                number + 1,
                quoted(&it.name),
                it.read_bytes,
                it.written_bytes,
                read * GIB_PER_GB,
                written * GIB_PER_GB,
                limit.unwrap_or_default(),
                it.latency.csv(),
            );
        }
    }
    csv
}

/// A field as RFC 4180 wants it.
fn quoted(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}
