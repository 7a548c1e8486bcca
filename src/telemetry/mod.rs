//! What a job reports about itself: records of its ranks, tables and a verdict over the world, and
//! the files that are written while it runs (metrics, traces) and at its end.
//!
//! Recording costs a fixed amount of time per event and a fixed amount of memory. A thread of its
//! own writes the files, so that no step waits for a file system.

mod alignment;
mod drive_use;
mod lines;
mod losses;
mod outlet;
mod process_io;
mod prometheus;
mod rank_table;
mod records;
mod result;
mod series;
pub mod stats;
mod table;
mod trace;
mod verdict;
mod world;

pub use alignment::Alignment;
pub use drive_use::DriveUse;
pub use lines::{DriveLine, EndLine, Line, SectionTimes, StartLine, StepLine, utc_now};
pub use losses::{LOSSES_TARGET, LineFile, is_passing};
pub use outlet::Outlet;
pub use process_io::{ProcessIo, ProcessIoBytes};
pub use rank_table::{bytes_per_param, overlap, rank_table, slowest};
pub use records::{CounterRecord, DriveLimit, DriveRecord, RankRecord, TimerRecord};
pub use result::{RunResult, step_seconds};
pub use series::{DriveSample, DriveSeries, Ring, Series, StepSample};
pub use stats::{OverRanks, median, standard_deviation};
pub use table::TextTable;
pub use verdict::{Bound, Verdict};
pub use world::{drive_table, milliseconds_table, rank_lines, world_report};
