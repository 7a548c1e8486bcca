//! The result of `optswap bench` for people.

use super::head::head;
use super::result::{BenchResult, Dataset, Flag};
use super::throughput::{GIB_PER_GB, Scope, Throughput};
use super::throughput_tables::{latency_table, spread, throughput_table};
use optswap::internals::config::number_ranges;
use optswap::internals::telemetry::{OverRanks, rank_table, standard_deviation, world_report};
use optswap::internals::units::{Bytes, counted};

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
    let spreads = [(Scope::Node, "nodes"), (Scope::Drive, "drives")];
    let spreads = spreads.map(|(scope, what)| spread(&result.throughput, scope, what));
    spreads.into_iter().flatten().for_each(&mut line);
    line(summary(result));
    remarks(result).into_iter().for_each(&mut line);
    let verified = if result.verified { ", verified" } else { "" };
    line(format!("state digest {}{verified}", result.state_digest));
    text.truncate(text.trim_end().len());
    text
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
    let rate = |gb: f64| format!("{gb:.3} GB/s ({:.3} GiB/s)", gb * GIB_PER_GB);
    let [read, written] = world.gb_per_s(seconds).map(rate);
    let of_limit = match world.limit_percent_in(seconds) {
        Some(percent) => format!(", {percent:.1} % of limit"),
        None => String::new(),
    };
    format!("read {read}, written {written}{of_limit}")
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
            "buffered: on {} the kernel moved less than optswap did ({:.2} B read and {:.2} B \
             written per parameter over all): the page cache answered, not the drives",
            ranks_in_words(&result.buffered_ranks),
            result.kernel_bytes_read_per_param,
            result.kernel_bytes_written_per_param
        ));
    }
    remarks.push(direct_io(result));
    remarks.extend(dataset(result));
    if result.verified {
        remarks.push("verified: comparisons are left out of the times".to_owned());
    }
    remarks
}

fn direct_io(result: &BenchResult) -> String {
    let files: Vec<bool> = result.places.iter().flat_map(|it| it.direct_io.clone()).collect();
    let direct = files.iter().filter(|is| **is).count();
    let verified = if result.buffered_ranks.is_empty() {
        "verified on every rank by the kernel's count"
    } else {
        "not so by the kernel's count"
    };
    format!("direct I/O: {direct} of {}; {verified}", counted(files.len() as u64, "file"))
}

/// State against memory, of the node that has the least state for its memory.
fn dataset(result: &BenchResult) -> Option<String> {
    let known = result.dataset.iter().filter(|it| it.memory_bytes > 0);
    let part = |it: &Dataset| it.state_bytes as f64 / it.memory_bytes as f64;
    let least = known.min_by(|a, b| part(a).total_cmp(&part(b)))?;
    let fits = if least.fits_memory { "which could hold it" } else { "which cannot hold it" };
    Some(format!(
        "dataset: on {} {} of state, {} of memory, {fits}",
        least.host,
        Bytes(least.state_bytes).human(),
        Bytes(least.memory_bytes).human()
    ))
}

fn ranks_in_words(ranks: &[u32]) -> String {
    let word = if ranks.len() == 1 { "rank" } else { "ranks" };
    format!("{word} {}", number_ranges(ranks))
}
