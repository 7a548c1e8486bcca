//! A trace of chosen steps in Chrome's trace-event format, which Perfetto and chrome://tracing
//! open: a process for each rank; tracks for the step, what is computed, collectives, and the
//! operations on each drive; arrows that follow a chunk from its swap-in over its update to its
//! swap-out. Times are those of rank 0's clock.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::alignment::Alignment;
use crate::timers::{NO_CHUNK, Section, Span, SpanKind, Timer};

/// The spans of a rank, as it sends them to rank 0.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RankSpans {
    pub rank: u32,
    pub host: String,
    pub drives: Vec<String>,
    pub spans: Vec<Span>,
    pub dropped: u64,
}

/// Numbers of tracks. Those of a drive begin at a multiple of [`TRACKS_PER_DIRECTION`].
const STEP_TRACK: u64 = 1;
const COMPUTE_TRACK: u64 = 2;
const COLLECTIVE_TRACK: u64 = 3;
const NOT_RUNNING_TRACK: u64 = 4;
const TRACKS_PER_DIRECTION: u64 = 10_000;

/// Writes the events of one rank after the other.
pub(super) struct TraceWriter<W: Write> {
    out: W,
    is_first: bool,
}

impl<W: Write> TraceWriter<W> {
    pub fn begin(mut out: W, job: &str) -> io::Result<Self> {
        let about =
            json!({ "program": "optswap", "version": env!("CARGO_PKG_VERSION"), "job": job });
        write!(out, "{{\"displayTimeUnit\":\"ms\",\"otherData\":{about},\"traceEvents\":[")?;
        Ok(Self { out, is_first: true })
    }

    pub fn rank(&mut self, of: &RankSpans, alignment: &Alignment) -> io::Result<()> {
        for event in events(of, alignment) {
            let comma = if std::mem::take(&mut self.is_first) { "\n" } else { ",\n" };
            write!(self.out, "{comma}{event}")?;
        }
        Ok(())
    }

    pub fn end(mut self) -> io::Result<W> {
        writeln!(self.out, "\n]}}")?;
        self.out.flush()?;
        Ok(self.out)
    }
}

/// A span on its track, on rank 0's clock.
struct Placed<'a> {
    span: &'a Span,
    track: u64,
    begin_ns: i64,
    end_ns: i64,
}

fn events(of: &RankSpans, alignment: &Alignment) -> Vec<Value> {
    let mut tracks = Tracks::default();
    let mut spans: Vec<&Span> = of.spans.iter().collect();
    // The longer of two that begin together is around the other.
    spans.sort_by_key(|span| (span.begin_ns, std::cmp::Reverse(span.end_ns)));
    let mut spans: Vec<Span> = spans.into_iter().copied().collect();
    widen_steps(&mut spans);
    let placed: Vec<Placed<'_>> = spans
        .iter()
        .map(|span| Placed {
            span,
            track: tracks.place(span),
            begin_ns: alignment.on_rank_0(span.begin_ns),
            end_ns: alignment.on_rank_0(span.end_ns),
        })
        .collect();
    let mut events = names(of, &tracks, alignment);
    events.extend(placed.iter().map(|it| slice(of.rank, it)));
    events.extend(flows(of.rank, &placed));
    events
}

/// Lets every step begin with its first part. A timer's span is recorded a moment after what it
/// measures and ends then, so a step seems to begin a moment after its first part.
fn widen_steps(spans: &mut [Span]) {
    let is_step = |span: &Span| span.kind == SpanKind::Timer(Timer::Step as u8);
    for index in 0..spans.len() {
        if !is_step(&spans[index]) || index == 0 {
            continue;
        }
        let step = spans[index];
        let is_part = |span: &Span| {
            span.step == step.step
                && matches!(span.kind, SpanKind::Timer(timer) if track_of(timer) == STEP_TRACK)
                && span.end_ns > step.begin_ns
        };
        let first = spans[..index].iter().filter(|span| is_part(span)).map(|span| span.begin_ns);
        if let Some(first) = first.min() {
            spans[index].begin_ns = first;
            spans[..=index].sort_by_key(|span| (span.begin_ns, std::cmp::Reverse(span.end_ns)));
        }
    }
}

/// The tracks of drives. Operations on a drive overlap, which slices of a track must not, so a
/// drive has as many tracks as it had operations in flight at the same time.
#[derive(Default)]
struct Tracks {
    /// When the last span of each track of a drive ends, by first track.
    lanes: BTreeMap<u64, Vec<u64>>,
}

impl Tracks {
    fn place(&mut self, span: &Span) -> u64 {
        let (direction, drive) = match span.kind {
            SpanKind::Timer(timer) => return track_of(timer),
            SpanKind::Read(drive) => (0, u64::from(drive)),
            SpanKind::Write(drive) => (1, u64::from(drive)),
        };
        let first = (1 + 2 * drive + direction) * TRACKS_PER_DIRECTION;
        let lanes = self.lanes.entry(first).or_default();
        let free = lanes.iter().position(|end_ns| *end_ns <= span.begin_ns);
        let lane = free.unwrap_or_else(|| {
            lanes.push(0);
            lanes.len() - 1
        });
        lanes[lane] = span.end_ns;
        first + lane as u64
    }
}

fn track_of(timer: u8) -> u64 {
    let timer = Timer::ALL.get(usize::from(timer)).copied();
    match timer {
        Some(Timer::CollectivesBetween) => return COLLECTIVE_TRACK,
        Some(Timer::NotRunning) => return NOT_RUNNING_TRACK,
        _ => {}
    }
    match timer.and_then(Timer::section) {
        Some(Section::Collective) => COLLECTIVE_TRACK,
        Some(Section::Compute | Section::Gradient | Section::Checksum) => COMPUTE_TRACK,
        _ => STEP_TRACK,
    }
}

fn names(of: &RankSpans, tracks: &Tracks, alignment: &Alignment) -> Vec<Value> {
    let meta = |name: &str, track: u64, args: Value| -> Value {
        json!({ "ph": "M", "pid": of.rank, "tid": track, "name": name, "args": args })
    };
    let process = format!("rank {} on {}", of.rank, of.host);
    let mut events = vec![
        meta("process_name", 0, json!({ "name": process })),
        meta("process_sort_index", 0, json!({ "sort_index": of.rank })),
        meta(
            "process_labels",
            0,
            json!({ "labels": format!(
                "clock known to {} us, {} spans dropped",
                alignment.error_ns() / 1000 + 1, of.dropped
            ) }),
        ),
    ];
    let mut named = |track: u64, name: String| {
        events.push(meta("thread_name", track, json!({ "name": name })));
        events.push(meta("thread_sort_index", track, json!({ "sort_index": track })));
    };
    named(STEP_TRACK, "step".to_owned());
    named(COMPUTE_TRACK, "compute".to_owned());
    named(COLLECTIVE_TRACK, "collectives".to_owned());
    named(NOT_RUNNING_TRACK, "not running".to_owned());
    for (first, lanes) in &tracks.lanes {
        let number = first / TRACKS_PER_DIRECTION - 1;
        let direction = if number.is_multiple_of(2) { "reads" } else { "writes" };
        let drive = of.drives.get(number as usize / 2).map_or("a drive", String::as_str);
        for lane in 0..lanes.len() as u64 {
            let more = if lane == 0 { String::new() } else { format!(" ({})", lane + 1) };
            named(first + lane, format!("{direction} {drive}{more}"));
        }
    }
    events
}

/// Microseconds, as the format wants them; exact to the nanosecond.
fn us(ns: i64) -> Value {
    json!(ns as f64 / 1000.0)
}

fn slice(rank: u32, it: &Placed<'_>) -> Value {
    let Span { kind, chunk, step, bytes, .. } = *it.span;
    let (category, name) = match kind {
        SpanKind::Timer(timer) => {
            let timer = Timer::ALL.get(usize::from(timer));
            ("step", timer.map_or("unknown", |timer| timer.name()).to_owned())
        }
        SpanKind::Read(_) => ("read", format!("swap in chunk {chunk}")),
        SpanKind::Write(_) => ("write", format!("swap out chunk {chunk}")),
    };
    let mut args = json!({ "step": step });
    if chunk != NO_CHUNK {
        args["chunk"] = json!(chunk);
    }
    if bytes > 0 {
        args["bytes"] = json!(bytes);
    }
    json!({
        "ph": "X", "pid": rank, "tid": it.track, "ts": us(it.begin_ns),
        "dur": us(it.end_ns - it.begin_ns), "name": name, "cat": category, "args": args,
    })
}

/// Arrows from the last read of a chunk over its update to its first write. The read may lie in the
/// step before, and the write in the step after. A chunk that was still in memory has no read and
/// no arrow.
fn flows(rank: u32, placed: &[Placed<'_>]) -> Vec<Value> {
    let mut chunks: BTreeMap<u32, Vec<&Placed<'_>>> = BTreeMap::new();
    for it in placed.iter().filter(|it| it.span.chunk != NO_CHUNK) {
        chunks.entry(it.span.chunk).or_default().push(it);
    }
    let mut events = Vec::new();
    for spans in chunks.into_values() {
        let mut read: Option<&Placed<'_>> = None;
        let mut update: Option<(&Placed<'_>, &Placed<'_>)> = None;
        for it in spans {
            match it.span.kind {
                SpanKind::Read(_) => {
                    update.take().into_iter().for_each(|way| arrows(rank, way, None, &mut events));
                    if read.is_none_or(|read| read.end_ns <= it.end_ns) {
                        read = Some(it);
                    }
                }
                SpanKind::Write(_) => {
                    let way = update.take().into_iter();
                    way.for_each(|way| arrows(rank, way, Some(it), &mut events));
                }
                SpanKind::Timer(timer) if timer == Timer::OptimizerStep as u8 => {
                    update = read.take().map(|read| (read, it));
                }
                SpanKind::Timer(_) => {}
            }
        }
        update.into_iter().for_each(|way| arrows(rank, way, None, &mut events));
    }
    events
}

/// The arrows of one update of a chunk; each is bound to the slice around it.
fn arrows(
    rank: u32,
    (read, update): (&Placed<'_>, &Placed<'_>),
    write: Option<&Placed<'_>>,
    events: &mut Vec<Value>,
) {
    // Perfetto takes numbers only. This one is unique and below 2^53.
    let id = (u64::from(rank) << 32) + events.len() as u64;
    let mut arrow = |phase: &str, it: &Placed<'_>| {
        events.push(json!({
            "ph": phase, "pid": rank, "tid": it.track, "ts": us(it.begin_ns), "id": id,
            "name": "chunk", "cat": "chunk", "bp": "e",
        }));
    };
    arrow("s", read);
    match write {
        Some(write) => {
            arrow("t", update);
            arrow("f", write);
        }
        None => arrow("f", update),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(kind: SpanKind, chunk: u32, begin_ns: u64, end_ns: u64) -> Span {
        Span { kind, chunk, step: 3, bytes: 0, begin_ns, end_ns }
    }

    #[test]
    fn operations_that_overlap_have_tracks_of_their_own() {
        let update = SpanKind::Timer(Timer::OptimizerStep as u8);
        let spans = vec![
            span(SpanKind::Read(0), 0, 0, 100),
            span(SpanKind::Read(0), 1, 50, 150),
            span(SpanKind::Read(0), 2, 100, 200),
            span(SpanKind::Write(0), 0, 160, 300),
            span(update, 0, 110, 150),
        ];
        let drives = vec!["/nvme0".to_owned()];
        let of = RankSpans { rank: 2, host: "a".to_owned(), drives, spans, dropped: 0 };
        let events = events(&of, &Alignment::default());
        let slices = events.iter().filter(|event| event["ph"] == "X");
        let tracks: Vec<u64> = slices.map(|event| event["tid"].as_u64().unwrap()).collect();
        let reads = TRACKS_PER_DIRECTION;
        assert_eq!(tracks, [reads, reads + 1, reads, COMPUTE_TRACK, 2 * reads]);
        let phases: Vec<&str> = events
            .iter()
            .filter(|event| event["cat"] == "chunk")
            .map(|event| event["ph"].as_str().unwrap())
            .collect();
        assert_eq!(phases, ["s", "t", "f"]);
        let names: Vec<&str> =
            events.iter().filter_map(|event| event["args"]["name"].as_str()).collect();
        assert!(names.contains(&"reads /nvme0 (2)") && names.contains(&"rank 2 on a"), "{names:?}");
    }
}
