//! The result of `optswap bench` as comma-separated values.

use csv::Writer;
use serde::{Serialize, Serializer};

use super::result::BenchResult;
use super::throughput::{GIB_PER_GB, Scope, Throughput};
use optswap::internals::error::{Error, Result};

/// A number with so many decimals.
struct Fixed<const DECIMALS: usize>(f64);

impl<const DECIMALS: usize> Serialize for Fixed<DECIMALS> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:.DECIMALS$}", self.0))
    }
}

/// One repetition of the world, a node, a drive or a rank. Its fields are the columns, in this
/// order and with these names.
#[derive(Serialize)]
struct Row<'a> {
    label: &'a str,
    repetition: usize,
    scope: Scope,
    name: &'a str,
    ranks: usize,
    params: u64,
    seconds_per_step: Fixed<9>,
    ns_per_param: Fixed<4>,
    first_done_seconds: Option<Fixed<9>>,
    mean_done_seconds: Option<Fixed<9>>,
    last_done_seconds: Option<Fixed<9>>,
    last_done_rank: Option<usize>,
    done_imbalance: Option<Fixed<6>>,
    read_bytes_per_step: Fixed<0>,
    written_bytes_per_step: Fixed<0>,
    read_gb_per_s: Fixed<6>,
    written_gb_per_s: Fixed<6>,
    read_gib_per_s: Fixed<6>,
    written_gib_per_s: Fixed<6>,
    limit_percent: Option<Fixed<3>>,
    read_p50_us: Fixed<1>,
    read_p99_us: Fixed<1>,
    read_p999_us: Fixed<1>,
    read_max_us: Fixed<1>,
    write_p50_us: Fixed<1>,
    write_p99_us: Fixed<1>,
    write_p999_us: Fixed<1>,
    write_max_us: Fixed<1>,
}

impl<'a> Row<'a> {
    /// Repetition `index`, counted from 0, of a place.
    fn new(label: &'a str, place: &'a Throughput, index: usize) -> Self {
        let seconds = place.seconds[index];
        let done = place.done.get(index);
        let [read_gb, written_gb] = place.gb_per_s(seconds);
        let [read_p50, read_p99, read_p999, read_max] = microseconds(place.latency.read.points());
        let [write_p50, write_p99, write_p999, write_max] =
            microseconds(place.latency.write.points());
        Self {
            label,
            repetition: index + 1,
            scope: place.scope,
            name: &place.name,
            ranks: place.ranks,
            params: place.params,
            seconds_per_step: Fixed(seconds),
            ns_per_param: Fixed(place.ns_per_param_in(seconds)),
            first_done_seconds: done.map(|done| Fixed(done.min)),
            mean_done_seconds: done.map(|done| Fixed(done.mean)),
            last_done_seconds: done.map(|done| Fixed(done.max)),
            last_done_rank: done.map(|done| done.max_rank),
            done_imbalance: done.map(|done| Fixed(done.imbalance)),
            read_bytes_per_step: Fixed(place.read_bytes),
            written_bytes_per_step: Fixed(place.written_bytes),
            read_gb_per_s: Fixed(read_gb),
            written_gb_per_s: Fixed(written_gb),
            read_gib_per_s: Fixed(read_gb * GIB_PER_GB),
            written_gib_per_s: Fixed(written_gb * GIB_PER_GB),
            limit_percent: place.limit_percent_in(seconds).map(Fixed),
            read_p50_us: read_p50,
            read_p99_us: read_p99,
            read_p999_us: read_p999,
            read_max_us: read_max,
            write_p50_us: write_p50,
            write_p99_us: write_p99,
            write_p999_us: write_p999,
            write_max_us: write_max,
        }
    }
}

fn microseconds(seconds: [f64; 4]) -> [Fixed<1>; 4] {
    seconds.map(|seconds| Fixed(seconds * 1e6))
}

/// One line for each repetition and each of world, nodes, drives and ranks, below a header. The
/// last line has no end.
///
/// # Errors
/// Internal, for values that CSV cannot hold.
pub fn bench_csv(result: &BenchResult) -> Result<String> {
    let label = result.setup.label.as_deref().unwrap_or_default();
    let mut writer = Writer::from_writer(Vec::new());
    for place in &result.throughput {
        for index in 0..place.seconds.len() {
            writer.serialize(Row::new(label, place, index)).map_err(no_csv)?;
        }
    }
    let bytes = writer.into_inner().map_err(no_csv)?;
    let text = String::from_utf8(bytes).map_err(no_csv)?;
    Ok(text.trim_end_matches('\n').to_owned())
}

fn no_csv(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::internal("the result cannot be written as CSV").because(error)
}
