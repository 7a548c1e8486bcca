//! The result of `optswap bench` as comma-separated values.

use std::fmt::Write;

use super::latency::CSV_HEADER;
use super::result::BenchResult;
use super::throughput::GIB_PER_GB;
use optswap::internals::telemetry::OverRanks;

/// One line for each repetition and each of world, nodes, drives and ranks.
pub fn bench_csv(result: &BenchResult) -> String {
    let mut csv = String::from(
        "label,repetition,scope,name,ranks,params,seconds_per_step,ns_per_param,\
         first_done_seconds,mean_done_seconds,last_done_seconds,last_done_rank,done_imbalance,\
         read_bytes_per_step,written_bytes_per_step,read_gb_per_s,\
         written_gb_per_s,read_gib_per_s,written_gib_per_s,limit_percent,",
    );
    csv.push_str(CSV_HEADER);
    let label = quoted(result.setup.label.as_deref().unwrap_or_default());
    for it in &result.throughput {
        let scope = format!("{:?}", it.scope).to_lowercase();
        for (number, seconds) in it.seconds.iter().enumerate() {
            let [read, written] = it.gb_per_s(*seconds);
            let limit = it.limit_percent_in(*seconds).map(|percent| format!("{percent:.3}"));
            // Writing to a text does not fail.
            let _ = write!(
                csv,
                "\n{label},{},{scope},{},{},{},{seconds:.9},{:.4},{},{:.0},{:.0},{read:.6},\
                 {written:.6},{:.6},{:.6},{},{}",
                number + 1,
                quoted(&it.name),
                it.ranks,
                it.params,
                it.ns_per_param_in(*seconds),
                done(it.done.get(number)),
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

fn done(done: Option<&OverRanks>) -> String {
    let Some(OverRanks { min, mean, max, max_rank, imbalance }) = done else {
        return ",,,,".to_owned();
    };
    format!("{min:.9},{mean:.9},{max:.9},{max_rank},{imbalance:.6}")
}

/// A field as RFC 4180 wants it.
fn quoted(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}
