//! What the records say: statistics over ranks, tables for people, JSON for programs. It formats
//! what was gathered and measures nothing itself.

mod bench;
mod stats;
mod table;

pub use bench::{BenchResult, DriveInfo, Machine, bytes_per_param};
pub use stats::{OverRanks, median};
pub use table::{rank_table, slowest, timer_table};
