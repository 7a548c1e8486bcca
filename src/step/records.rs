//! What one rank records about its steps, and the form in which ranks exchange it.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::process_io::ProcessIoBytes;
use crate::coord::Communicator;
use crate::io::DriveTotals;
use crate::swap::SweepTotals;
use crate::timers::{Timer, Timers, Total};

/// One rank's timers and counters over the recorded steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RankRecord {
    /// The rank.
    pub rank: u32,
    /// Where it runs.
    pub host: String,
    /// Elements of its shard.
    pub elems: u64,
    /// Steps recorded.
    pub steps: u64,
    /// What moved, per drive.
    pub drives: Vec<DriveRecord>,
    /// Where the time went.
    pub timers: Vec<TimerRecord>,
    /// Bytes that the kernel read from storage for this process during the steps
    /// (`/proc/self/io`).
    pub kernel_read_bytes: u64,
    /// Bytes that the kernel wrote to storage for this process during the steps.
    pub kernel_written_bytes: u64,
}

/// What moved between one rank and one drive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriveRecord {
    /// The file on the drive.
    pub path: PathBuf,
    /// Bytes and operations.
    pub totals: DriveTotals,
}

/// One timer's total.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimerRecord {
    /// The name, see [`Timer`].
    pub name: String,
    /// Nanoseconds and how often.
    pub total: Total,
}

impl RankRecord {
    /// Bytes read by this rank, all drives together.
    pub fn read_bytes(&self) -> u64 {
        self.drives.iter().map(|drive| drive.totals.read_bytes).sum()
    }

    /// Bytes written by this rank, all drives together.
    pub fn written_bytes(&self) -> u64 {
        self.drives.iter().map(|drive| drive.totals.written_bytes).sum()
    }

    /// Seconds of one timer over all recorded steps.
    pub fn seconds(&self, timer: Timer) -> f64 {
        let found = self.timers.iter().find(|record| record.name == timer.name());
        found.map_or(0.0, |record| record.total.total_ns as f64 / 1e9)
    }
}

/// Collects the record of this rank. Recording an event allocates nothing.
pub(super) struct Recorder {
    pub timers: Timers,
    paths: Vec<PathBuf>,
    drives: Vec<DriveTotals>,
    kernel: ProcessIoBytes,
    steps: u64,
}

impl Recorder {
    pub fn new(paths: Vec<PathBuf>) -> Self {
        let drives = vec![DriveTotals::default(); paths.len()];
        let (timers, kernel) = (Timers::default(), ProcessIoBytes::default());
        Self { timers, paths, drives, kernel, steps: 0 }
    }

    /// Adds what was moved, for steps taken or to come.
    pub fn add_moved(&mut self, moved: &SweepTotals, kernel: ProcessIoBytes) {
        for (sum, drive) in self.drives.iter_mut().zip(&moved.drives) {
            sum.read_bytes += drive.read_bytes;
            sum.written_bytes += drive.written_bytes;
            sum.reads += drive.reads;
            sum.writes += drive.writes;
        }
        self.kernel.read_bytes += kernel.read_bytes;
        self.kernel.written_bytes += kernel.written_bytes;
        self.timers.record(Timer::AsyncSwapInState, moved.swap_in_busy);
        self.timers.record(Timer::AsyncSwapOutState, moved.swap_out_busy);
    }

    /// Counts a step.
    pub fn add_step(&mut self, duration: Duration) {
        self.timers.record(Timer::Step, duration);
        self.steps += 1;
    }

    pub fn reset(&mut self) {
        *self = Self::new(std::mem::take(&mut self.paths));
    }

    pub fn record(&self, comm: &dyn Communicator, elems: u64) -> RankRecord {
        let drives = self.paths.iter().zip(&self.drives);
        let drive = |(path, totals): (&PathBuf, &DriveTotals)| DriveRecord {
            path: path.clone(),
            totals: *totals,
        };
        let timer = |timer: &Timer| TimerRecord {
            name: timer.name().to_owned(),
            total: self.timers.total(*timer),
        };
        RankRecord {
            rank: comm.rank().0,
            host: comm.host().to_owned(),
            elems,
            steps: self.steps,
            drives: drives.map(drive).collect(),
            timers: Timer::ALL.iter().map(timer).collect(),
            kernel_read_bytes: self.kernel.read_bytes,
            kernel_written_bytes: self.kernel.written_bytes,
        }
    }
}
