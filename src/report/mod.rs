//! What the records say: statistics over ranks, tables for people, JSON for programs; and what a
//! machine's facts mean. It formats and judges what was gathered and measures nothing itself.

mod bench;
mod checks;
mod drive_checks;
mod probe;
mod stats;
mod table;

pub use bench::{BenchResult, DriveInfo, Machine, bytes_per_param};
pub use checks::{Check, State, machine_checks, mpi_check, uring_check};
pub use drive_checks::{ExaminedDrive, drive_checks};
pub use probe::probe_table;
pub use stats::{OverRanks, median};
pub use table::{rank_table, slowest, timer_table};
