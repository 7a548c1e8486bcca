//! Spans of time in traced steps: what happened when, in a list of fixed size.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// A span that is about no chunk.
pub const NO_CHUNK: u32 = u32::MAX;

/// What a span measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SpanKind {
    /// A timer of the caller's thread, by its place in [`super::Timer::ALL`].
    Timer(u8),
    /// An operation that reads from this drive.
    Read(u16),
    /// An operation that writes to this drive.
    Write(u16),
}

/// A span of time in a traced step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// What it measures.
    pub kind: SpanKind,
    /// The chunk that it is about; [`NO_CHUNK`] for none.
    pub chunk: u32,
    /// The traced step, counted as attempts.
    pub step: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// When it began: nanoseconds since the tracer was made, on this rank's clock.
    pub begin_ns: u64,
    /// When it ended, on the same clock.
    pub end_ns: u64,
}

/// Collects spans while it is on. Shared by the threads of a rank.
#[derive(Debug)]
pub struct Tracer {
    is_on: AtomicBool,
    epoch: Instant,
    list: Mutex<List>,
}

#[derive(Debug, Default)]
struct List {
    spans: Vec<Span>,
    capacity: usize,
    step: u64,
    dropped: u64,
}

impl Tracer {
    /// A tracer for up to `capacity` spans, whose memory is allocated now.
    pub fn new(capacity: usize) -> Self {
        let list = List { spans: Vec::with_capacity(capacity), capacity, ..List::default() };
        Self { is_on: AtomicBool::new(false), epoch: Instant::now(), list: Mutex::new(list) }
    }

    /// Whether spans are recorded.
    pub fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// Turns recording on or off; spans from now on belong to this step.
    pub fn turn(&self, on: bool, step: u64) {
        self.list().step = step;
        self.is_on.store(on, Ordering::Relaxed);
    }

    /// Nanoseconds since the tracer was made.
    pub fn ns(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.epoch).as_nanos() as u64
    }

    /// Adds a span, from its beginning to its end; counts it as dropped if there is no room.
    pub fn record(&self, kind: SpanKind, chunk: u32, bytes: u64, time: (Instant, Instant)) {
        let (begin_ns, end_ns) = (self.ns(time.0), self.ns(time.1));
        let mut list = self.list();
        if list.spans.len() < list.capacity {
            let step = list.step;
            list.spans.push(Span { kind, chunk, step, bytes, begin_ns, end_ns });
        } else {
            list.dropped += 1;
        }
    }

    /// The spans that were recorded so far, and how many found no room.
    pub fn spans(&self) -> (Vec<Span>, u64) {
        let list = self.list();
        (list.spans.clone(), list.dropped)
    }

    /// Forgets all recorded spans.
    pub fn clear(&self) {
        let mut list = self.list();
        list.spans.clear();
        list.dropped = 0;
    }

    fn list(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_beyond_the_capacity_are_counted() {
        let tracer = Tracer::new(2);
        assert!(!tracer.is_on());
        tracer.turn(true, 7);
        let now = Instant::now();
        (0..3).for_each(|chunk| tracer.record(SpanKind::Read(1), chunk, 10, (now, now)));
        let (spans, dropped) = tracer.spans();
        assert_eq!((spans.len(), dropped, spans[1].chunk, spans[1].step), (2, 1, 1, 7));
        tracer.clear();
        assert_eq!(tracer.spans(), (Vec::new(), 0));
    }
}
