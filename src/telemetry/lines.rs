//! The lines of a rank's metrics file: JSON objects, one per step, whose kind is in `event`.
//! Programs that watch a job read them back.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

use super::records::DriveLimit;
use super::series::{DriveSample, StepSample};
use crate::timers::Section;

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Line {
    /// A process begins. A job that goes on adds to the file, so there may be several.
    Start(StartLine),
    /// A step has ended.
    Step(StepLine),
    /// The process ends in order.
    End(EndLine),
}

/// The start of a process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartLine {
    /// Seconds since 1970.
    pub unix_s: f64,
    /// Version of the program.
    pub optswap: String,
    /// The job's name.
    pub job: String,
    /// The rank.
    pub rank: u32,
    /// Number of ranks.
    pub ranks: u32,
    /// The host that it runs on.
    pub host: String,
    /// Its process number.
    pub pid: u32,
    /// Elements of its shard.
    pub elems: u64,
    /// Its drives: the directories that the user named.
    pub drives: Vec<PathBuf>,
    /// The drives' measured bandwidths, where they are known.
    pub limits: Vec<Option<DriveLimit>>,
}

/// A step. Bytes are those that moved since the line before.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepLine {
    /// Seconds since 1970, at its end.
    pub unix_s: f64,
    /// Its number, counted as attempts.
    pub step: u64,
    /// Whether it was skipped.
    pub skipped: bool,
    /// The whole of `step()`, in seconds.
    pub step_s: f64,
    /// Seconds from the end of the step before to the beginning of this one, without waiting for
    /// other ranks.
    pub between_s: f64,
    /// The part of `step_s` that was not spent waiting for other ranks.
    pub own_s: f64,
    /// Seconds spent waiting for other ranks, in the step and before it.
    pub waiting_s: f64,
    /// Where the step's time went.
    pub sections: SectionTimes,
    /// Bytes read, all drives together.
    pub read_bytes: u64,
    /// Bytes written, all drives together.
    pub written_bytes: u64,
    /// The kernel's count of the same.
    pub kernel_read_bytes: u64,
    /// The kernel's count of the same.
    pub kernel_written_bytes: u64,
    /// Bytes of state that were still in memory, so that they were not read.
    pub cache_hit_bytes: u64,
    /// Drive by drive.
    pub drives: Vec<DriveLine>,
}

/// Seconds of a step by what they were spent on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SectionTimes {
    /// Waiting for swap-ins.
    pub read_s: f64,
    /// Waiting for swap-outs.
    pub write_s: f64,
    /// The update.
    pub compute_s: f64,
    /// Looking through the gradients.
    pub gradient_s: f64,
    /// Comparing and taking checksums.
    pub checksum_s: f64,
    /// Writing the record of a commit.
    pub commit_s: f64,
    /// Waiting for other ranks.
    pub collective_s: f64,
}

/// What a drive did for the rank since the line before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DriveLine {
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Operations that read.
    pub reads: u64,
    /// Operations that wrote.
    pub writes: u64,
    /// Seconds with an operation in flight.
    pub busy_s: f64,
    /// The most operations in flight.
    pub depth_max: u32,
}

/// The end. Bytes are those that moved since the line before.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EndLine {
    /// Seconds since 1970.
    pub unix_s: f64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

impl StepLine {
    /// The line of a step, from its sample and those of its drives.
    pub fn new(sample: &StepSample, drives: &[DriveSample]) -> Self {
        let section = |section: Section| seconds(sample.sections_ns[section as usize]);
        let drive = |it: &DriveSample| DriveLine {
            read_bytes: it.read_bytes,
            written_bytes: it.written_bytes,
            reads: it.reads,
            writes: it.writes,
            busy_s: seconds(it.busy_ns),
            depth_max: it.depth_max,
        };
        Self {
            unix_s: unix_seconds(),
            step: sample.step,
            skipped: sample.skipped,
            step_s: seconds(sample.step_ns),
            between_s: seconds(sample.between_ns),
            own_s: seconds(sample.own_ns),
            waiting_s: seconds(sample.waiting_ns),
            sections: SectionTimes {
                read_s: section(Section::Read),
                write_s: section(Section::Write),
                compute_s: section(Section::Compute),
                gradient_s: section(Section::Gradient),
                checksum_s: section(Section::Checksum),
                commit_s: section(Section::Commit),
                collective_s: section(Section::Collective),
            },
            read_bytes: drives.iter().map(|it| it.read_bytes).sum(),
            written_bytes: drives.iter().map(|it| it.written_bytes).sum(),
            kernel_read_bytes: sample.kernel_read_bytes,
            kernel_written_bytes: sample.kernel_written_bytes,
            cache_hit_bytes: sample.cache_hit_bytes,
            drives: drives.iter().map(drive).collect(),
        }
    }
}

/// The time now, in seconds since 1970.
pub(super) fn unix_seconds() -> f64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0.0, |now| now.as_secs_f64())
}

/// The time now, in UTC, as people read it.
pub fn utc_now() -> String {
    let mut text = String::new();
    // Writing into a text does not fail.
    let _ = SystemTime.format_time(&mut Writer::new(&mut text));
    text
}
