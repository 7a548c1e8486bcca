//! A job as its metrics files show it, while it runs or afterwards. Every look reads what has been
//! added to the files since the one before.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use optswap::internals::error::{Error, ErrorKind, Result};
use optswap::internals::telemetry::{DriveLimit, Line, StartLine, StepLine};

/// The last steps of a rank that are kept.
const STEPS_KEPT: usize = 120;

/// What the metrics file of one rank says.
#[derive(Clone, Debug, Default)]
pub struct RankView {
    /// Who it is; none before its first line.
    pub start: Option<StartLine>,
    /// Its last steps.
    pub steps: VecDeque<StepLine>,
    /// Whether it has ended in order.
    pub has_ended: bool,
    /// When a look last found lines that had not been there before, by the clock of this host. The
    /// times in the lines are those of other hosts.
    pub heard: Option<Instant>,
    offset: u64,
}

/// A job.
#[derive(Debug)]
pub struct JobView {
    dir: PathBuf,
    /// By rank.
    pub ranks: BTreeMap<u32, RankView>,
}

/// What the ranks of a node did to one of its drives in their last steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DriveView {
    /// Directory and node.
    pub name: String,
    /// Bytes read per second of a step.
    pub read_bytes_per_s: f64,
    /// Bytes written per second of a step.
    pub written_bytes_per_s: f64,
    /// Share of the step with an operation in flight: the busiest rank's.
    pub busy_share: f64,
    /// The most operations of a rank in flight.
    pub depth_max: u32,
    /// What it can do, if it was measured.
    pub limit: Option<DriveLimit>,
}

impl RankView {
    fn apply(&mut self, line: Line) {
        match line {
            Line::Start(start) => {
                let (offset, heard) = (self.offset, self.heard);
                *self = Self { start: Some(start), offset, heard, ..Self::default() };
            }
            Line::Step(step) => {
                if self.steps.len() == STEPS_KEPT {
                    self.steps.pop_front();
                }
                self.steps.push_back(step);
            }
            Line::End(_) => self.has_ended = true,
        }
    }

    /// For how long looks have found no new lines.
    pub fn silence(&self) -> Duration {
        self.heard.map_or(Duration::ZERO, |heard| heard.elapsed())
    }

    /// The last step, if there is one.
    pub fn last(&self) -> Option<&StepLine> {
        self.steps.back()
    }

    /// What share of its time the rank waits for others, over the steps that are looked at.
    pub fn waiting_share(&self) -> f64 {
        let sum = |value: fn(&StepLine) -> f64| self.steps.iter().map(value).sum::<f64>();
        let waiting = sum(|step| step.waiting_s);
        let wall = waiting + sum(|step| step.own_s) + sum(|step| step.between_s);
        if wall > 0.0 { waiting / wall } else { 0.0 }
    }
}

impl JobView {
    /// Looks into the directory of a job.
    ///
    /// # Errors
    /// Usage if there are no metrics files in it.
    pub fn open(dir: &Path) -> Result<Self> {
        let mut view = Self { dir: dir.to_owned(), ranks: BTreeMap::new() };
        view.refresh()?;
        if view.ranks.is_empty() {
            return Err(Error::usage("there are no metrics of a job in the directory")
                .with("directory", dir.display())
                .hint("name the directory that the job was given as --report-dir"));
        }
        Ok(view)
    }

    /// Reads what has been added since the last look.
    ///
    /// # Errors
    /// I/O if the directory or a file cannot be read.
    pub fn refresh(&mut self) -> Result<()> {
        let refused = |error: std::io::Error| {
            Error::new(ErrorKind::Io, "metrics cannot be read")
                .with("directory", self.dir.display())
                .because(error)
        };
        for entry in std::fs::read_dir(&self.dir).map_err(refused)? {
            let entry = entry.map_err(refused)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let number = name.strip_prefix("metrics-rank").and_then(|it| it.strip_suffix(".jsonl"));
            let Some(rank) = number.and_then(|number| number.parse::<u32>().ok()) else { continue };
            let view = self.ranks.entry(rank).or_default();
            read_new_lines(&entry.path(), view).map_err(refused)?;
        }
        // Ranks of an earlier, larger start are no longer there. Rank 0 is in every start.
        let first = self.ranks.get(&0).and_then(|view| view.start.as_ref());
        if let Some(ranks) = first.map(|start| start.ranks) {
            self.ranks.retain(|rank, _| *rank < ranks);
        }
        Ok(())
    }

    /// The job's name and its number of ranks.
    pub fn name(&self) -> (String, u32) {
        let start = self.ranks.values().find_map(|view| view.start.as_ref());
        start.map_or_else(|| ("?".to_owned(), 0), |start| (start.job.clone(), start.ranks))
    }

    /// Time of the last steps, the slowest rank's of each, oldest first.
    pub fn step_seconds(&self) -> Vec<f64> {
        let mut slowest: BTreeMap<u64, f64> = BTreeMap::new();
        for step in self.ranks.values().flat_map(|view| &view.steps) {
            let known = slowest.entry(step.step).or_default();
            *known = known.max(step.step_s);
        }
        slowest.into_values().collect()
    }

    /// Every drive of every node, in their last steps.
    pub fn drives(&self) -> Vec<DriveView> {
        let mut drives: BTreeMap<String, DriveView> = BTreeMap::new();
        for view in self.ranks.values() {
            let (Some(start), Some(step)) = (&view.start, view.last()) else { continue };
            let limits = start.limits.iter().chain(std::iter::repeat(&None));
            for ((path, it), limit) in start.drives.iter().zip(&step.drives).zip(limits) {
                let name = format!("{} ({})", path.display(), start.host);
                let drive = drives.entry(name.clone()).or_default();
                // Writes that go on after a step may take longer than the step.
                let seconds = step.step_s.max(it.busy_s);
                let per_s = |value: f64| if seconds > 0.0 { value / seconds } else { 0.0 };
                drive.name = name;
                drive.read_bytes_per_s += per_s(it.read_bytes as f64);
                drive.written_bytes_per_s += per_s(it.written_bytes as f64);
                drive.busy_share = drive.busy_share.max(per_s(it.busy_s));
                drive.depth_max = drive.depth_max.max(it.depth_max);
                drive.limit = drive.limit.or(*limit);
            }
        }
        drives.into_values().collect()
    }
}

/// Reads whole lines from where the file ended at the last look; half a line is left for the next.
fn read_new_lines(path: &Path, view: &mut RankView) -> std::io::Result<()> {
    let mut file = File::open(path)?;
    if file.metadata()?.len() < view.offset {
        *view = RankView::default();
    }
    file.seek(SeekFrom::Start(view.offset))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    view.offset += whole as u64;
    if whole > 0 {
        view.heard = Some(Instant::now());
    }
    for line in bytes[..whole].split(|byte| *byte == b'\n') {
        // A line that cannot be read, after a full disk for instance, is left out.
        if let Ok(line) = serde_json::from_slice(line) {
            view.apply(line);
        }
    }
    Ok(())
}
