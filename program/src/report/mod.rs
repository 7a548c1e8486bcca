//! What the records say: statistics over ranks, tables for people, JSON for programs; and what a
//! machine's facts mean. It formats and judges what was gathered and measures nothing itself.

mod bench;
mod bench_csv;
mod bench_head;
mod bench_table;
mod checks;
mod compare;
mod drive_checks;
mod latency;
mod page;
mod plan;
mod probe;
mod result_file;
mod slurm_check;
mod terminal;
mod throughput;
mod tune;
mod watch;

use optswap::internals::telemetry::stats;

pub use bench::{BENCH_SCHEMA, BenchResult, BenchSetup, Dataset, Flag};
pub use bench_csv::bench_csv;
pub use bench_table::bench_tables;
pub use checks::{Check, State, machine_checks, mpi_check, uring_check};
pub use compare::{Comparison, Row, Scaling, compare, compare_table};
pub use drive_checks::{ExaminedDrive, drive_checks};
pub use latency::{Latencies, LatencyPercentiles};
pub use optswap::internals::telemetry::{
    OverRanks, RunResult, median, milliseconds_table as timer_table, standard_deviation,
    world_report,
};
pub use page::html_page;
pub use plan::{PlanResult, plan_tables};
pub use probe::probe_table;
pub use result_file::ResultFile;
pub use slurm_check::slurm_check;
pub use terminal::{sparkline, terminal_summary};
pub use throughput::{Limits, Scope, Throughput};
pub use tune::{tune_table, tuned_config};
pub use watch::{DriveView, JobView, RankView};
