//! The result of `optswap bench`. Numbers come first: latency, throughput, the result as a whole.
//! Then how they are written: as tables for people and as comma-separated values.

mod csv;
mod head;
mod latency;
mod result;
mod tables;
mod throughput;
mod throughput_tables;

pub use self::csv::bench_csv;
pub use latency::{Latencies, LatencyPercentiles};
pub use result::{BENCH_SCHEMA, BENCH_SCHEMA_OLDEST, BenchResult, BenchSetup, Dataset, Flag};
pub use tables::bench_tables;
pub use throughput::{Limits, Scope, Throughput};
