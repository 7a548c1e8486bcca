//! Writes a rank's files: lines of metrics after every step, the Prometheus file every few seconds,
//! a trace when its steps are over, results at the end. Metrics are written by a thread of its own,
//! so that a slow file system delays no step. If it cannot write them, it warns once.

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::alignment::{Alignment, Reading, read_clocks};
use super::lines::{EndLine, Line, StartLine, StepLine, unix_seconds};
use super::losses::{LineFile, is_passing, tell};
use super::prometheus::{self, Labels, Lifetime};
use super::records::{DriveLimit, RankRecord};
use super::result::RunResult;
use super::series::{DriveSample, StepSample};
use super::trace::{RankSpans, TraceWriter};
use super::world::world_report;
use crate::config::Config;
use crate::coord::{Communicator, agree, send_to_first};
use crate::error::{Error, ErrorKind, Result};
use crate::io::DriveTotals;
use crate::telemetry::LOSSES_TARGET;
use crate::timers::{CLOSING, Tracer, join_within};
use crate::wire;

/// The Prometheus file is replaced at most this often.
const PROMETHEUS_EVERY: Duration = Duration::from_secs(2);

/// The files of one rank.
pub struct Outlet {
    config: Config,
    labels: Labels,
    lifetime: Lifetime,
    next_prometheus: Instant,
    sender: Option<Sender<Message>>,
    writer: Option<JoinHandle<()>>,
    clocks: Vec<Reading>,
    has_traced: bool,
}

enum Message {
    Line(String),
    Prometheus(String),
}

impl Outlet {
    /// Collective: opens this rank's files, if the configuration names a place for any. `drives`
    /// are the directories that the user named.
    ///
    /// # Errors
    /// Agreed by all ranks: usage if they differ about what is wanted; cannot create if a directory
    /// or file cannot be created; unavailable if the thread cannot be started. Also those of the
    /// communicator: peer if a rank does not answer in time.
    pub fn open(
        config: &Config,
        comm: &dyn Communicator,
        elems: u64,
        drives: &[PathBuf],
        tracer: &Tracer,
    ) -> Result<Option<Self>> {
        let report = &config.report;
        let mut wanted = [
            u64::from(report.dir.is_some() || report.prometheus_dir.is_some()),
            report.trace_steps.last(),
        ];
        let mine = wanted;
        comm.all_reduce_sum(&mut wanted)?;
        let ranks = comm.size() as u64;
        let is_agreed = wanted.iter().zip(mine).all(|(sum, mine)| *sum == mine * ranks);
        let differ = || Error::usage("ranks differ about what is to be reported ([report])");
        agree(comm, is_agreed.then_some(()).ok_or_else(differ))?;
        if wanted[0] == 0 {
            return Ok(None);
        }
        let mut outlet = agree(comm, Self::create(config, comm, elems, drives))?;
        if !report.trace_steps.is_empty() {
            outlet.clocks = read_clocks(comm, tracer)?;
        }
        Ok(Some(outlet))
    }

    fn create(
        config: &Config,
        comm: &dyn Communicator,
        elems: u64,
        drives: &[PathBuf],
    ) -> Result<Self> {
        let rank = comm.rank().0;
        let names = drives.iter().map(|path| path.display().to_string()).collect();
        let labels =
            Labels { job: config.job.clone(), rank, host: comm.host().to_owned(), drives: names };
        let report = &config.report;
        let lines = report.dir.as_deref().map(|dir| open_lines(dir, rank)).transpose()?.flatten();
        if let Some(dir) = &report.prometheus_dir {
            may_be_missing(fs::create_dir_all(dir), dir)?;
        }
        let prometheus_dir = report.prometheus_dir.as_ref().or(report.dir.as_ref());
        let prometheus = prometheus_dir
            .map(|dir| dir.join(format!("optswap-{}-rank{rank:05}.prom", config.job)));
        let (sender, writer) = start_writer(lines, prometheus)?;
        let lifetime = Lifetime {
            drives: vec![DriveTotals::default(); drives.len()],
            elems,
            endurance_bytes: report.drive_endurance.0,
            is_running: true,
            ..Lifetime::default()
        };
        let outlet = Self {
            config: config.clone(),
            labels,
            lifetime,
            next_prometheus: Instant::now(),
            sender: Some(sender),
            writer: Some(writer),
            clocks: Vec::new(),
            has_traced: report.trace_steps.is_empty(),
        };
        outlet.line(&Line::Start(start_line(&config.job, comm, elems, drives)));
        Ok(outlet)
    }

    fn send(&self, message: Message) {
        if let Some(sender) = &self.sender {
            // The writer ends only after this end does.
            let _ = sender.send(message);
        }
    }

    fn line(&self, line: &Line) {
        if let Ok(text) = serde_json::to_string(line) {
            self.send(Message::Line(text + "\n"));
        }
    }

    /// Adds what the drives have moved.
    pub fn add_moved(&mut self, moved: &[DriveTotals]) {
        self.lifetime.drives.iter_mut().zip(moved).for_each(|(sum, more)| sum.add(more));
    }

    /// Writes the end of a step.
    pub fn step(&mut self, sample: &StepSample, drives: &[DriveSample]) {
        let line = StepLine::new(sample, drives);
        self.lifetime.add_step(sample, line.unix_s);
        self.line(&Line::Step(line));
        let now = Instant::now();
        if now >= self.next_prometheus {
            self.next_prometheus = now + PROMETHEUS_EVERY;
            self.send(Message::Prometheus(prometheus::text(&self.labels, &self.lifetime)));
        }
    }

    /// Collective: writes the trace if the steps before this one were the last to be traced.
    ///
    /// # Errors
    /// Those of the communicator: peer if a rank does not answer in time. A file that cannot be
    /// written is a warning.
    pub fn write_due_trace(
        &mut self,
        step: u64,
        comm: &dyn Communicator,
        tracer: &Tracer,
    ) -> Result<()> {
        if self.has_traced || step <= self.config.report.trace_steps.last() {
            return Ok(());
        }
        self.write_trace(comm, tracer)
    }

    fn write_trace(&mut self, comm: &dyn Communicator, tracer: &Tracer) -> Result<()> {
        self.has_traced = true;
        tracer.turn(false, 0);
        let after = read_clocks(comm, tracer)?;
        let (spans, dropped) = tracer.spans();
        let Labels { rank, host, drives, job } = self.labels.clone();
        let mine = RankSpans { rank, host, drives, spans, dropped };
        let path = match &self.config.report.dir {
            Some(dir) if rank == 0 => Some(dir.join("trace.json")),
            _ => None,
        };
        let mut file = path.as_deref().map(|path| begin_trace(path, &job));
        for (from, after) in after.into_iter().enumerate() {
            // One rank after the other, so that rank 0 needs memory for the spans of one rank only.
            let received = send_to_rank_0(comm, from, &mine)?;
            if let (Some(Ok(open)), Some(of)) = (&mut file, received) {
                let alignment = Alignment::new(self.clocks[from], after);
                if let Err(error) = open.rank(&of, &alignment) {
                    file = Some(Err(error));
                }
            }
        }
        if dropped > 0 {
            tracing::warn!(
                "{dropped} spans found no room in the trace: raise report.trace_spans or trace \
                 fewer steps"
            );
        }
        if let (Some(file), Some(path)) = (file, path)
            && let Err(error) = file.and_then(|file| end_trace(file, &path))
        {
            tell("the trace", &path, &error);
        }
        Ok(())
    }

    /// Collective: writes the trace, if that has not been done, and on rank 0 the results, with the
    /// command line that started the run.
    ///
    /// # Errors
    /// Those of the communicator: peer if a rank does not answer in time. A file that cannot be
    /// written is a warning.
    pub fn finish(
        &mut self,
        comm: &dyn Communicator,
        tracer: &Tracer,
        command: Vec<String>,
        records: Vec<RankRecord>,
    ) -> Result<()> {
        if !self.has_traced {
            self.write_trace(comm, tracer)?;
        }
        if let (0, Some(dir)) = (self.labels.rank, &self.config.report.dir) {
            let table = world_report(&records, self.config.report.drive_endurance);
            let result = RunResult::new(&self.config, command, records);
            let csv = result.csv().map_err(io::Error::other);
            let json = serde_json::to_string(&result).map_err(io::Error::other);
            let files = [
                ("table.txt", Ok(table + "\n")),
                ("ranks.csv", csv),
                ("result.json", json.map(|text| text + "\n")),
            ];
            // All are tried; one warning is enough.
            let lost = files.map(|(name, text)| {
                let path = dir.join(name);
                text.and_then(|text| replace(&path, &text)).err().map(|error| (path, error))
            });
            if let Some((path, error)) = lost.iter().flatten().next_back() {
                tell("the result", path, error);
            }
        }
        Ok(())
    }

    /// Writes the last lines and ends the thread. `since_last_line` is what the drives have moved
    /// since the last line.
    pub fn close(&mut self, since_last_line: &[DriveSample]) {
        let Some(sender) = self.sender.take() else { return };
        let end = Line::End(EndLine {
            unix_s: unix_seconds(),
            read_bytes: since_last_line.iter().map(|it| it.read_bytes).sum(),
            written_bytes: since_last_line.iter().map(|it| it.written_bytes).sum(),
        });
        self.lifetime.is_running = false;
        let last = prometheus::text(&self.labels, &self.lifetime);
        if let Ok(text) = serde_json::to_string(&end) {
            let _ = sender.send(Message::Line(text + "\n"));
        }
        let _ = sender.send(Message::Prometheus(last));
        drop(sender);
        if let Some(writer) = self.writer.take()
            && join_within(writer, CLOSING).is_none()
        {
            tracing::warn!(
                target: LOSSES_TARGET,
                "the last metrics are not written after {} s: they are left behind",
                CLOSING.as_secs()
            );
        }
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        self.close(&[]);
    }
}

fn start_line(job: &str, comm: &dyn Communicator, elems: u64, drives: &[PathBuf]) -> StartLine {
    StartLine {
        unix_s: unix_seconds(),
        optswap: env!("CARGO_PKG_VERSION").to_owned(),
        job: job.to_owned(),
        rank: comm.rank().0,
        ranks: comm.size() as u32,
        host: comm.host().to_owned(),
        pid: std::process::id(),
        elems,
        drives: drives.to_vec(),
        limits: drives.iter().map(|root| DriveLimit::of(root)).collect(),
    }
}

/// Opens a rank's file of metrics.
fn open_lines(dir: &Path, rank: u32) -> Result<Option<LineFile>> {
    let path = dir.join(format!("metrics-rank{rank:05}.jsonl"));
    may_be_missing(fs::create_dir_all(dir).and_then(|()| LineFile::open(path)), dir)
}

/// The value, or `None` with a warning where the file system is full or broken.
///
/// # Errors
/// Cannot create, where the name is at fault.
fn may_be_missing<T>(opened: io::Result<T>, dir: &Path) -> Result<Option<T>> {
    match opened {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_passing(&error) => {
            tell("metrics", dir, &error);
            Ok(None)
        }
        Err(error) => {
            Err(Error::new(ErrorKind::CannotCreate, "a place for reports cannot be made")
                .with("path", dir.display())
                .because(error)
                .hint("name another directory with --report-dir or --prometheus-dir"))
        }
    }
}

/// Starts the thread that writes metrics.
fn start_writer(
    lines: Option<LineFile>,
    prometheus: Option<PathBuf>,
) -> Result<(Sender<Message>, JoinHandle<()>)> {
    let (sender, messages) = channel();
    let spawned = std::thread::Builder::new()
        .name("optswap-report".to_owned())
        .spawn(move || write_all(messages, lines.as_ref(), prometheus.as_deref()));
    let writer = spawned.map_err(|error| {
        let failed = "the thread that writes metrics cannot be started";
        Error::no_thread(failed, error)
    })?;
    Ok((sender, writer))
}

/// The body of the thread: writes all messages until the sender is gone.
fn write_all(messages: Receiver<Message>, lines: Option<&LineFile>, prometheus: Option<&Path>) {
    let mut has_told = false;
    for message in messages {
        match (message, lines, prometheus) {
            (Message::Line(text), Some(file), _) => {
                if let Err(error) = file.add(&text) {
                    tell("metrics", file.path(), &error);
                }
            }
            (Message::Prometheus(text), _, Some(path)) => {
                if let Err(error) = replace(path, &text)
                    && !std::mem::replace(&mut has_told, true)
                {
                    tell("the Prometheus file", path, &error);
                }
            }
            _ => {}
        }
    }
}

/// Replaces a file atomically: a reader finds the old text or the new one.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    // Programs that read the directory take only files whose names end in `.prom`.
    let new = path.with_extension("new");
    fs::write(&new, text).and_then(|()| fs::rename(&new, path)).inspect_err(|_| {
        let _ = fs::remove_file(&new);
    })
}

fn begin_trace(path: &Path, job: &str) -> io::Result<TraceWriter<BufWriter<File>>> {
    TraceWriter::begin(BufWriter::new(File::create(path.with_extension("json.new"))?), job)
}

fn end_trace(writer: TraceWriter<BufWriter<File>>, path: &Path) -> io::Result<()> {
    writer.end()?;
    fs::rename(path.with_extension("json.new"), path)?;
    tracing::info!("trace written: {}", path.display());
    Ok(())
}

/// Collective: sends the spans of rank `from` to rank 0.
fn send_to_rank_0(
    comm: &dyn Communicator,
    from: usize,
    mine: &RankSpans,
) -> Result<Option<RankSpans>> {
    let rank = comm.rank().index();
    let bytes = if rank == from { wire::encode(mine)? } else { Vec::new() };
    let mut length = [bytes.len() as u64];
    comm.all_reduce_sum(&mut length)?;
    let mut counts = vec![0; comm.size()];
    counts[from] = length[0] as usize;
    let received = send_to_first(comm, &bytes, &counts)?;
    received.map(|received| wire::decode(&received)).transpose()
}
