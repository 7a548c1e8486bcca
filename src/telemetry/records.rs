//! A rank's record of its steps, in the form in which ranks exchange it and files store it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::series::Series;
use crate::io::DriveTotals;
use crate::storage::DriveProfile;
use crate::timers::{Counter, Section, Span, Timer, Total};

/// One rank's timers and counters over the recorded steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RankRecord {
    /// The rank.
    pub rank: u32,
    /// The host that it runs on.
    pub host: String,
    /// Elements of its shard.
    pub elems: u64,
    /// Number of recorded steps.
    pub steps: u64,
    /// What moved on each drive.
    pub drives: Vec<DriveRecord>,
    /// Where the time went.
    pub timers: Vec<TimerRecord>,
    /// The counters.
    #[serde(default)]
    pub counters: Vec<CounterRecord>,
    /// Bytes that the kernel read from storage for this process during the steps
    /// (`/proc/self/io`).
    pub kernel_read_bytes: u64,
    /// Bytes that the kernel wrote to storage for this process during the steps.
    pub kernel_written_bytes: u64,
    /// The last steps one by one.
    #[serde(default)]
    pub series: Series,
    /// The spans of one of the steps; only a few ranks exchange them.
    #[serde(default)]
    pub picture: Vec<Span>,
}

/// What moved between one rank and one drive.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DriveRecord {
    /// The file on the drive.
    pub path: PathBuf,
    /// Bytes, operations, latencies.
    pub totals: DriveTotals,
    /// The drive's bandwidths, if they were ever measured.
    #[serde(default)]
    pub limit: Option<DriveLimit>,
}

/// A drive's bandwidths, from its profile.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DriveLimit {
    /// Reading alone, bytes per second.
    pub read_bytes_per_s: f64,
    /// Writing alone.
    pub write_bytes_per_s: f64,
    /// Reading and writing at the same time, both together.
    pub mixed_bytes_per_s: f64,
}

/// One timer's total.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimerRecord {
    /// The name, see [`Timer`].
    pub name: String,
    /// Nanoseconds and how often.
    pub total: Total,
}

/// One counter's value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterRecord {
    /// The name, see [`Counter`].
    pub name: String,
    /// The value.
    pub value: u64,
}

impl DriveRecord {
    /// The directory that the user named.
    pub fn root(&self) -> &Path {
        // DRIVE/optswap/JOB/shard-00003/state
        self.path.ancestors().nth(4).unwrap_or(&self.path)
    }
}

impl DriveLimit {
    /// The bandwidths of the drive that this directory is on; `None` if it has no profile that can
    /// be read.
    pub fn of(root: &Path) -> Option<Self> {
        let profile = DriveProfile::read(root).ok().flatten()?;
        Some(Self {
            read_bytes_per_s: profile.read_bytes_per_s,
            write_bytes_per_s: profile.write_bytes_per_s,
            mixed_bytes_per_s: profile.mixed_bytes_per_s,
        })
    }
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
        self.seconds_of(timer.name())
    }

    /// Seconds that all timers of a section have over all recorded steps.
    pub fn section_seconds(&self, section: Section) -> f64 {
        let timers = Timer::ALL.iter().filter(|timer| timer.section() == Some(section));
        timers.map(|timer| self.seconds(*timer)).sum()
    }

    fn seconds_of(&self, name: &str) -> f64 {
        let found = self.timers.iter().find(|record| record.name == name);
        found.map_or(0.0, |record| record.total.total_ns as f64 / 1e9)
    }

    /// The value of a counter; 0 if the record does not have it.
    pub fn counted(&self, counter: Counter) -> u64 {
        let found = self.counters.iter().find(|record| record.name == counter.name());
        found.map_or(0, |record| record.value)
    }
}
