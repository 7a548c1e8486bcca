//! Results as text: tables for people, JSON, CSV and HTML for programs and browsers; and what a
//! machine's facts mean. Values come from `measure`, `forecast` and the library, and nothing is
//! measured here.

mod bench;
mod checks;
mod compare;
mod drive_checks;
mod flat_keys;
mod limits;
mod page;
mod plan;
mod probe;
mod result_file;
mod slurm_check;
mod terminal;
mod tune;
mod watch;

pub use bench::{
    BENCH_SCHEMA, BenchResult, BenchSetup, Dataset, Flag, Latencies, LatencyPercentiles, Limits,
    Scope, Throughput, bench_csv, bench_tables,
};
pub use checks::{Check, State, machine_checks, mpi_check, mpi_name, uring_check};
pub use compare::{Comparison, Row, Scaling, compare, compare_table};
pub use drive_checks::{ExaminedDrive, drive_checks};
pub use limits::limit_checks;
pub use page::html_page;
pub use plan::{PlanResult, plan_tables};
pub use probe::probe_table;
pub use result_file::ResultFile;
pub use slurm_check::slurm_check;
pub use terminal::{sparkline, terminal_summary};
pub use tune::{tune_table, tuned_config};
pub use watch::{DriveView, JobView, RankView};
