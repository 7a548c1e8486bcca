//! What each drive does while it is asked to: bytes, operations, and the time with at least one
//! operation in flight, by direction. A drive with nothing to do is not measured, so that one that
//! is given less work looks no slower.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::engine::Direction;

/// Of one drive in one direction, since the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Bytes moved.
    pub bytes: u64,
    /// Operations completed.
    pub ops: u64,
    /// Nanoseconds with at least one operation in flight, up to the last one that began or ended.
    pub busy_ns: u64,
}

#[derive(Debug, Default)]
struct Counter {
    bytes: AtomicU64,
    ops: AtomicU64,
    busy_ns: AtomicU64,
    /// When the last operation ended, in nanoseconds after the meters' beginning.
    last_ns: AtomicU64,
}

/// The meters of all drives: written by the I/O thread, read by whoever wants to know.
#[derive(Debug)]
pub struct DriveMeters {
    beginning: Instant,
    counters: Vec<[Counter; 2]>,
}

impl DriveMeters {
    /// Meters for so many files.
    pub fn new(files: usize) -> Self {
        let counters = (0..files).map(|_| Default::default()).collect();
        Self { beginning: Instant::now(), counters }
    }

    /// When the last operation in a direction came back from each drive; the meters' beginning if
    /// none has.
    pub fn last_done(&self, direction: Direction) -> Vec<Instant> {
        let last_ns = self.counters.iter().map(|it| it[direction as usize].last_ns.load(Relaxed));
        last_ns.map(|ns| self.beginning + Duration::from_nanos(ns)).collect()
    }

    /// What every drive has read and written.
    pub fn read(&self) -> Vec<[Reading; 2]> {
        let read = |counter: &Counter| Reading {
            bytes: counter.bytes.load(Relaxed),
            ops: counter.ops.load(Relaxed),
            busy_ns: counter.busy_ns.load(Relaxed),
        };
        self.counters.iter().map(|both| [read(&both[0]), read(&both[1])]).collect()
    }
}

/// The side that measures: how much is in flight on each drive, and since when.
#[derive(Debug)]
pub(super) struct Metering {
    meters: Arc<DriveMeters>,
    in_flight: Vec<[(u32, Option<Instant>); 2]>,
}

impl Metering {
    pub fn new(meters: Arc<DriveMeters>) -> Self {
        Self { in_flight: vec![[(0, None); 2]; meters.counters.len()], meters }
    }

    /// An operation goes to the drive.
    pub fn begin(&mut self, file: u32, direction: Direction, now: Instant) {
        self.advance(file, direction, now, 1);
    }

    /// An operation has come back, having moved so many bytes.
    pub fn end(&mut self, file: u32, direction: Direction, now: Instant, bytes: u64) {
        self.advance(file, direction, now, -1);
        let counter = &self.meters.counters[file as usize][direction as usize];
        counter.bytes.fetch_add(bytes, Relaxed);
        counter.ops.fetch_add(1, Relaxed);
        let since = now.saturating_duration_since(self.meters.beginning);
        counter.last_ns.store(since.as_nanos() as u64, Relaxed);
    }

    fn advance(&mut self, file: u32, direction: Direction, now: Instant, change: i32) {
        let (in_flight, since) = &mut self.in_flight[file as usize][direction as usize];
        if let Some(since) = since.replace(now)
            && *in_flight > 0
        {
            let busy = now.saturating_duration_since(since).as_nanos() as u64;
            let counter = &self.meters.counters[file as usize][direction as usize];
            counter.busy_ns.fetch_add(busy, Relaxed);
        }
        *in_flight = in_flight.saturating_add_signed(change);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn time_counts_once_while_anything_is_in_flight_and_not_otherwise() {
        let meters = Arc::new(DriveMeters::new(2));
        let mut metering = Metering::new(Arc::clone(&meters));
        let start = meters.beginning;
        let at = |ms| start + Duration::from_millis(ms);
        metering.begin(1, Direction::SwapIn, at(0));
        metering.begin(1, Direction::SwapIn, at(2));
        metering.end(1, Direction::SwapIn, at(5), 100);
        metering.end(1, Direction::SwapIn, at(7), 50);
        metering.begin(1, Direction::SwapIn, at(20));
        metering.begin(1, Direction::SwapOut, at(21));
        metering.end(1, Direction::SwapIn, at(23), 7);
        let read = meters.read();
        let expected = Reading { bytes: 157, ops: 3, busy_ns: 10_000_000 };
        assert_eq!(read[1], [expected, Reading::default()]);
        assert_eq!(read[0], [Reading::default(); 2]);
        assert_eq!(meters.last_done(Direction::SwapIn), [start, at(23)]);
        assert_eq!(meters.last_done(Direction::SwapOut), [start; 2]);
    }
}
