//! A result as it is read back: what `optswap bench --json` and `--report-dir` wrote, of this
//! version or another one that has the same figures.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use optswap::internals::error::{Error, Result};
use optswap::internals::telemetry::{RankRecord, Verdict, median, step_seconds};
use optswap::internals::timers::Timer;

/// One result.
#[derive(Clone, Debug, Deserialize)]
pub struct ResultFile {
    /// The file's name, without directories.
    #[serde(skip)]
    pub name: String,
    /// The command line that made it.
    #[serde(default)]
    pub command: Vec<String>,
    /// The configuration, as written.
    #[serde(default)]
    pub config: Value,
    /// The machine, as written.
    #[serde(default, alias = "nodes")]
    pub machine: Value,
    /// Parameters of the world.
    #[serde(skip)]
    pub params: u64,
    /// Seconds of every step, the slowest rank's.
    #[serde(default)]
    pub step_seconds: Vec<f64>,
    /// Timers and counters of every rank.
    pub rank_records: Vec<RankRecord>,
}

impl ResultFile {
    /// Reads a file.
    ///
    /// # Errors
    /// Usage if it cannot be read or is no result with records.
    pub fn read(path: &Path) -> Result<Self> {
        let unusable = |why: String| {
            Error::usage("the file is no result that a report can be made of")
                .with("file", path.display())
                .because(why)
                .hint("make one with optswap bench --json FILE, or with --report-dir DIR")
        };
        let text = std::fs::read_to_string(path).map_err(|error| unusable(error.to_string()))?;
        let mut result: Self =
            serde_json::from_str(&text).map_err(|error| unusable(error.to_string()))?;
        let name = path.file_name().unwrap_or(path.as_os_str());
        result.name = name.to_string_lossy().into_owned();
        if let Some(problem) = result.problem() {
            return Err(unusable(problem.to_owned()));
        }
        result.params = result.rank_records.iter().map(|record| record.elems).sum();
        // A benchmark's own times are of repetitions; those of steps are in the records.
        let from_series = step_seconds(&result.rank_records);
        if !from_series.is_empty() {
            result.step_seconds = from_series;
        }
        Ok(result)
    }

    fn problem(&self) -> Option<&'static str> {
        let records = &self.rank_records;
        if records.is_empty() {
            return Some("it has no ranks");
        }
        if !self.step_seconds.iter().all(|seconds| seconds.is_finite() && *seconds >= 0.0) {
            return Some("the time of a step is no time");
        }
        (!records.iter().all(has_whole_series))
            .then_some("columns of a series have different lengths")
    }

    /// The middle step time, in seconds.
    pub fn step_median_s(&self) -> f64 {
        median(&self.step_seconds)
    }

    /// Bytes moved in both directions by all ranks, per second of the slowest rank's steps.
    pub fn bytes_per_s(&self) -> f64 {
        let moved: u64 =
            self.rank_records.iter().map(|it| it.read_bytes() + it.written_bytes()).sum();
        let seconds = self.rank_records.iter().map(|it| it.seconds(Timer::Step));
        let longest = seconds.fold(0.0, f64::max);
        if longest > 0.0 { moved as f64 / longest } else { 0.0 }
    }

    /// Parameters updated per second, from the middle step.
    pub fn params_per_s(&self) -> f64 {
        let median = self.step_median_s();
        if median > 0.0 { self.params as f64 / median } else { 0.0 }
    }

    /// What the steps were bound by.
    pub fn verdict(&self) -> Verdict {
        Verdict::of(&self.rank_records)
    }
}

/// Whether all columns of a rank's series are as long as each other.
fn has_whole_series(record: &RankRecord) -> bool {
    let (series, len) = (&record.series, record.series.len());
    let columns = [&series.step_ns, &series.between_ns, &series.own_ns, &series.waiting_ns];
    let of_drives =
        series.drives.iter().flat_map(|it| [&it.read_bytes, &it.written_bytes, &it.busy_ns]);
    columns.into_iter().chain(of_drives).all(|column| column.len() == len)
}
