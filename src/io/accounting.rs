//! What moves on each drive, as completions tell: bytes, operations, latencies, how many at a time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::engine::Direction;
use crate::timers::{BusyClock, Latency, SpanKind, Tracer};

/// What has moved on one drive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DriveTotals {
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Read operations completed.
    pub reads: u64,
    /// Write operations completed.
    pub writes: u64,
    /// From submission to completion, of each read.
    pub read_latency: Latency,
    /// From submission to completion, of each write.
    pub write_latency: Latency,
    /// Time with at least one read in flight, in nanoseconds.
    pub read_busy_ns: u64,
    /// Time with at least one write in flight.
    pub write_busy_ns: u64,
    /// Time with at least one operation in flight.
    pub busy_ns: u64,
    /// The most operations in flight at a time.
    pub depth_max: u32,
}

impl DriveTotals {
    /// Adds what another time has seen.
    pub fn add(&mut self, more: &Self) {
        self.read_bytes += more.read_bytes;
        self.written_bytes += more.written_bytes;
        self.reads += more.reads;
        self.writes += more.writes;
        self.read_latency.add(&more.read_latency);
        self.write_latency.add(&more.write_latency);
        self.read_busy_ns += more.read_busy_ns;
        self.write_busy_ns += more.write_busy_ns;
        self.busy_ns += more.busy_ns;
        self.depth_max = self.depth_max.max(more.depth_max);
    }
}

/// The clocks of one drive.
#[derive(Clone, Debug, Default)]
struct Clocks {
    reads: BusyClock,
    writes: BusyClock,
    either: BusyClock,
}

/// Keeps the accounts of all drives.
pub(super) struct Accounts {
    totals: Vec<DriveTotals>,
    clocks: Vec<Clocks>,
    tracer: Option<Arc<Tracer>>,
}

/// An operation that has come back.
pub(super) struct Completed {
    pub file: u32,
    pub direction: Direction,
    /// What the transfer is about.
    pub token: u64,
    pub submitted: Instant,
    /// Bytes moved; 0 if it failed.
    pub bytes: u64,
}

impl Accounts {
    pub fn new(files: usize) -> Self {
        let (totals, clocks) =
            (vec![DriveTotals::default(); files], vec![Clocks::default(); files]);
        Self { totals, clocks, tracer: None }
    }

    pub fn trace(&mut self, tracer: Arc<Tracer>) {
        self.tracer = Some(tracer);
    }

    /// An operation goes to the kernel.
    pub fn begin(&mut self, file: u32, direction: Direction, now: Instant) {
        let clocks = &mut self.clocks[file as usize];
        match direction {
            Direction::SwapIn => clocks.reads.begin(now),
            Direction::SwapOut => clocks.writes.begin(now),
        }
        clocks.either.begin(now);
        let depth_max = &mut self.totals[file as usize].depth_max;
        *depth_max = (*depth_max).max(clocks.either.under_way());
    }

    /// An operation has come back.
    pub fn end(&mut self, done: &Completed, now: Instant) {
        let file = done.file as usize;
        let (clocks, totals) = (&mut self.clocks[file], &mut self.totals[file]);
        clocks.either.end(now);
        match done.direction {
            Direction::SwapIn => clocks.reads.end(now),
            Direction::SwapOut => clocks.writes.end(now),
        }
        if done.bytes == 0 {
            return;
        }
        let took = now - done.submitted;
        let kind = match done.direction {
            Direction::SwapIn => {
                totals.read_bytes += done.bytes;
                totals.reads += 1;
                totals.read_latency.record(took);
                SpanKind::Read(done.file as u16)
            }
            Direction::SwapOut => {
                totals.written_bytes += done.bytes;
                totals.writes += 1;
                totals.write_latency.record(took);
                SpanKind::Write(done.file as u16)
            }
        };
        if let Some(tracer) = &self.tracer
            && tracer.is_on()
        {
            tracer.record(kind, done.token as u32, done.bytes, (done.submitted, now));
        }
    }

    /// What has moved since the last call, per file.
    pub fn take(&mut self) -> Vec<DriveTotals> {
        let now = Instant::now();
        let ns = |busy: Duration| u64::try_from(busy.as_nanos()).unwrap_or(u64::MAX);
        for (totals, clocks) in self.totals.iter_mut().zip(&mut self.clocks) {
            totals.read_busy_ns = ns(clocks.reads.take_at(now));
            totals.write_busy_ns = ns(clocks.writes.take_at(now));
            totals.busy_ns = ns(clocks.either.take_at(now));
        }
        let files = self.totals.len();
        std::mem::replace(&mut self.totals, vec![DriveTotals::default(); files])
    }
}
