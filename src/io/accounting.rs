//! What moves on each drive: bytes, operations, latencies, how many at a time, and the time with at
//! least one operation in flight. Each operation is entered once, when it goes to the engine and
//! when its result comes back. From these entries come both the totals of the operations since the
//! last [`Accounts::take`] and the meters, which other threads read at any time.
//!
//! A drive with nothing to do is not busy, so that one that is given less work looks no slower.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
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
    /// Times from submission to completion of the reads.
    pub read_latency: Latency,
    /// Times from submission to completion of the writes.
    pub write_latency: Latency,
    /// Time with at least one read in flight, in nanoseconds.
    pub read_busy_ns: u64,
    /// Time with at least one write in flight, in nanoseconds.
    pub write_busy_ns: u64,
    /// Time with at least one operation in flight, in nanoseconds.
    pub busy_ns: u64,
    /// The most operations in flight at a time.
    pub depth_max: u32,
}

impl DriveTotals {
    /// Adds what moved on the same drive in another period.
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

/// What one drive has moved in one direction since the meters were made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Bytes moved.
    pub bytes: u64,
    /// Operations completed, failed ones included.
    pub ops: u64,
    /// Nanoseconds with at least one operation in flight, up to the last one that began or ended.
    pub busy_ns: u64,
}

/// One drive in one direction.
#[derive(Debug, Default)]
struct Meter {
    bytes: AtomicU64,
    ops: AtomicU64,
    busy_ns: AtomicU64,
    /// When the last operation ended, in nanoseconds after the meters' beginning.
    last_ns: AtomicU64,
}

impl Meter {
    fn read(&self) -> Reading {
        Reading {
            bytes: self.bytes.load(Relaxed),
            ops: self.ops.load(Relaxed),
            busy_ns: self.busy_ns.load(Relaxed),
        }
    }
}

/// The meters of all drives: written by the I/O thread, read by any other.
#[derive(Debug)]
pub struct DriveMeters {
    beginning: Instant,
    /// By file and [`Direction`].
    meters: Vec<[Meter; 2]>,
}

impl DriveMeters {
    /// Meters for so many files.
    pub fn new(files: usize) -> Self {
        let meters = (0..files).map(|_| Default::default()).collect();
        Self { beginning: Instant::now(), meters }
    }

    /// How many files there are meters for.
    pub fn files(&self) -> usize {
        self.meters.len()
    }

    /// When the last operation in a direction came back from each drive; the meters' beginning if
    /// none has.
    pub fn last_done(&self, direction: Direction) -> Vec<Instant> {
        let last_ns = self.meters.iter().map(|both| both[direction as usize].last_ns.load(Relaxed));
        last_ns.map(|ns| self.beginning + Duration::from_nanos(ns)).collect()
    }

    /// What every drive has read and written, in this order.
    pub fn read(&self) -> Vec<[Reading; 2]> {
        self.meters.iter().map(|both| [both[0].read(), both[1].read()]).collect()
    }
}

/// One drive as the I/O thread accounts for it.
#[derive(Debug, Default)]
struct Account {
    totals: DriveTotals,
    /// By [`Direction`].
    busy: [BusyClock; 2],
    busy_either_way: BusyClock,
}

/// Keeps the accounts of all drives.
pub(super) struct Accounts {
    accounts: Vec<Account>,
    meters: Arc<DriveMeters>,
    tracer: Option<Arc<Tracer>>,
}

/// An operation that has come back.
pub(super) struct Completed {
    pub file: u32,
    pub direction: Direction,
    /// The transfer's token.
    pub token: u64,
    pub submitted: Instant,
    /// Bytes moved; 0 if it failed.
    pub bytes: u64,
}

impl Accounts {
    /// Accounts for as many files as there are meters, which are kept as well.
    pub fn new(meters: Arc<DriveMeters>) -> Self {
        let accounts = meters.meters.iter().map(|_| Account::default()).collect();
        Self { accounts, meters, tracer: None }
    }

    /// From now on operations are spans as well, while the tracer is on.
    pub fn trace(&mut self, tracer: Arc<Tracer>) {
        self.tracer = Some(tracer);
    }

    /// An operation goes to the engine.
    pub fn begin(&mut self, file: u32, direction: Direction, now: Instant) {
        let account = &mut self.accounts[file as usize];
        account.busy[direction as usize].begin(now);
        account.busy_either_way.begin(now);
        let in_flight = account.busy_either_way.under_way();
        account.totals.depth_max = account.totals.depth_max.max(in_flight);
        self.add_busy_time(file as usize, direction, now);
    }

    /// An operation has come back.
    pub fn end(&mut self, done: &Completed, now: Instant) {
        let file = done.file as usize;
        self.accounts[file].busy[done.direction as usize].end(now);
        self.accounts[file].busy_either_way.end(now);
        self.add_busy_time(file, done.direction, now);
        let meter = &self.meters.meters[file][done.direction as usize];
        meter.bytes.fetch_add(done.bytes, Relaxed);
        meter.ops.fetch_add(1, Relaxed);
        let since = now.saturating_duration_since(self.meters.beginning);
        meter.last_ns.store(nanoseconds(since), Relaxed);
        if done.bytes > 0 {
            self.add_moved(done, now);
        }
    }

    fn add_moved(&mut self, done: &Completed, now: Instant) {
        let totals = &mut self.accounts[done.file as usize].totals;
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

    /// Moves a drive's busy time in one direction, up to now, from its clock to totals and meter.
    fn add_busy_time(&mut self, file: usize, direction: Direction, now: Instant) {
        let Account { totals, busy, .. } = &mut self.accounts[file];
        let busy_ns = nanoseconds(busy[direction as usize].take_at(now));
        match direction {
            Direction::SwapIn => totals.read_busy_ns += busy_ns,
            Direction::SwapOut => totals.write_busy_ns += busy_ns,
        }
        self.meters.meters[file][direction as usize].busy_ns.fetch_add(busy_ns, Relaxed);
    }

    /// What has moved since the last call, per file.
    pub fn take(&mut self) -> Vec<DriveTotals> {
        let now = Instant::now();
        for file in 0..self.accounts.len() {
            self.add_busy_time(file, Direction::SwapIn, now);
            self.add_busy_time(file, Direction::SwapOut, now);
        }
        self.accounts
            .iter_mut()
            .map(|account| {
                account.totals.busy_ns = nanoseconds(account.busy_either_way.take_at(now));
                std::mem::take(&mut account.totals)
            })
            .collect()
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_counts_once_while_anything_is_in_flight_and_not_otherwise() {
        let meters = Arc::new(DriveMeters::new(2));
        let mut accounts = Accounts::new(Arc::clone(&meters));
        let start = meters.beginning;
        let at = |ms| start + Duration::from_millis(ms);
        let end = |accounts: &mut Accounts, ms, bytes| {
            let (direction, submitted) = (Direction::SwapIn, start);
            accounts.end(&Completed { file: 1, direction, token: 0, submitted, bytes }, at(ms));
        };
        accounts.begin(1, Direction::SwapIn, at(0));
        accounts.begin(1, Direction::SwapIn, at(2));
        end(&mut accounts, 5, 100);
        end(&mut accounts, 7, 50);
        accounts.begin(1, Direction::SwapIn, at(20));
        accounts.begin(1, Direction::SwapOut, at(21));
        end(&mut accounts, 23, 7);
        let read = meters.read();
        let expected = Reading { bytes: 157, ops: 3, busy_ns: 10_000_000 };
        assert_eq!(read[1], [expected, Reading::default()]);
        assert_eq!(read[0], [Reading::default(); 2]);
        assert_eq!(meters.last_done(Direction::SwapIn), [start, at(23)]);
        assert_eq!(meters.last_done(Direction::SwapOut), [start; 2]);

        let totals = accounts.take();
        assert_eq!((totals[1].read_bytes, totals[1].reads, totals[1].depth_max), (157, 3, 2));
        assert_eq!(totals[1].read_busy_ns, 10_000_000, "as the meter has it");
        assert_eq!(accounts.take()[1].read_bytes, 0, "taken once");
    }
}
