//! Collects what this rank records about its steps. Recording an event allocates nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::ReportConfig;
use crate::coord::{Communicator, Waits};
use crate::io::DriveTotals;
use crate::swap::SweepTotals;
use crate::telemetry::{
    CounterRecord, DriveLimit, DriveRecord, DriveSample, ProcessIoBytes, RankRecord, Ring,
    StepSample, TimerRecord,
};
use crate::timers::{Counter, NO_CHUNK, Section, SpanKind, Timer, Timers, Tracer};
use crate::units::StepRange;

/// Spans of one step that are kept for the picture of a step, when nothing is traced.
const PICTURE_SPANS: usize = 4096;
/// Spans of a picture that a rank sends to the others.
const PICTURE_SPANS_SENT: usize = 1000;
/// The first ranks send a picture, so many of them.
const PICTURE_RANKS: u32 = 4;
/// A picture is taken of the first recorded step, and of the second one if there is one.
const PICTURE_STEPS: u64 = 2;

pub(super) struct Recorder {
    pub timers: Timers,
    tracer: Arc<Tracer>,
    trace_steps: StepRange,
    paths: Vec<PathBuf>,
    limits: Vec<Option<DriveLimit>>,
    drives: Vec<DriveTotals>,
    /// Since the last sample.
    samples: Vec<DriveSample>,
    kernel: ProcessIoBytes,
    steps: u64,
    ring: Ring,
    /// Bytes of spilled gradients that samples of steps have reported so far. Most are spilled
    /// before the step that they belong to.
    reported_spill_bytes: u64,
    begun: Begun,
    /// When the last step ended, and what this rank had waited for others by then.
    ended: Option<(Instant, Waits)>,
}

/// Counters and times as they were when the step began.
#[derive(Default)]
struct Begun {
    waits: Waits,
    between_ns: u64,
    waiting_ns: u64,
    sections_ns: [u64; Section::ALL.len()],
    cache_hit_bytes: u64,
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Recorder {
    pub fn new(paths: Vec<PathBuf>, tracer: Arc<Tracer>, trace_steps: StepRange) -> Self {
        let count = paths.len();
        let root = |path: &PathBuf| DriveLimit::of(path.ancestors().nth(4)?);
        Self {
            timers: Timers::traced(Arc::clone(&tracer)),
            tracer,
            trace_steps,
            limits: paths.iter().map(root).collect(),
            paths,
            drives: vec![DriveTotals::default(); count],
            samples: vec![DriveSample::default(); count],
            kernel: ProcessIoBytes::default(),
            steps: 0,
            ring: Ring::new(count),
            reported_spill_bytes: 0,
            begun: Begun::default(),
            ended: None,
        }
    }

    /// The memory for spans of this rank.
    pub fn tracer(config: &ReportConfig) -> Arc<Tracer> {
        let is_tracing = !config.trace_steps.is_empty();
        Arc::new(Tracer::new(if is_tracing { config.trace_spans } else { PICTURE_SPANS }))
    }

    /// The spans recorded so far.
    pub fn spans(&self) -> &Tracer {
        &self.tracer
    }

    /// Begins a step.
    pub fn begin_step(&mut self, step: u64, waits: Waits, now: Instant) {
        let is_picture = self.trace_steps.is_empty() && self.steps < PICTURE_STEPS;
        if is_picture {
            self.tracer.clear();
        }
        self.tracer.turn(is_picture || self.trace_steps.contains(step), step);
        self.timers.turn_to(NO_CHUNK);
        let sections_ns = Section::ALL.map(|section| self.timers.section_ns(section));
        self.begun = Begun {
            waits,
            sections_ns,
            cache_hit_bytes: self.timers.counted(Counter::CacheHitBytes),
            ..Begun::default()
        };
        if let Some((ended, before)) = self.ended {
            self.record_between(ended, waits - before, now);
        }
    }

    /// Records the time between the end of the last step and now, of which `waits` were spent in
    /// collectives.
    fn record_between(&mut self, ended: Instant, waits: Waits, now: Instant) {
        let waited = waits.waited();
        let between = now.saturating_duration_since(ended).saturating_sub(waited);
        self.timers.record(Timer::BetweenSteps, between);
        self.timers.record(Timer::CollectivesBetween, waited);
        if !waits.paused.is_zero() {
            self.timers.record(Timer::NotRunning, waits.paused);
        }
        // When the rank worked and when it waited is not known. In the picture all work comes
        // first, then all waiting.
        let worked = ended + between;
        self.span(Timer::BetweenSteps, ended, worked);
        self.span(Timer::CollectivesBetween, worked, worked + waited);
        self.span(Timer::NotRunning, now.checked_sub(waits.paused).unwrap_or(now), now);
        (self.begun.between_ns, self.begun.waiting_ns) = (ns(between), ns(waited));
    }

    /// Traces a span that no timer of the caller's thread has measured.
    fn span(&self, timer: Timer, begin: Instant, end: Instant) {
        if self.tracer.is_on() && begin < end {
            self.tracer.record(SpanKind::Timer(timer as u8), NO_CHUNK, 0, (begin, end));
        }
    }

    /// Adds what the drives did since the last call. Writes may have ended after the step that they
    /// belong to.
    pub fn add_moved(&mut self, moved: &SweepTotals) {
        for (index, more) in moved.drives.iter().enumerate() {
            self.drives[index].add(more);
            let sample = &mut self.samples[index];
            sample.read_bytes += more.read_bytes;
            sample.written_bytes += more.written_bytes;
            sample.reads += more.reads;
            sample.writes += more.writes;
            sample.busy_ns += more.busy_ns;
            sample.depth_max = sample.depth_max.max(more.depth_max);
        }
        self.timers.record(Timer::AsyncSwapInState, moved.swap_in_busy);
        self.timers.record(Timer::AsyncSwapOutState, moved.swap_out_busy);
    }

    /// Adds what the kernel has counted.
    pub fn add_kernel(&mut self, kernel: ProcessIoBytes) {
        self.kernel.read_bytes += kernel.read_bytes;
        self.kernel.written_bytes += kernel.written_bytes;
    }

    /// Ends a step and returns what is to be reported of it, except for what the drives did:
    /// [`Self::samples`] has that.
    pub fn end_step(
        &mut self,
        (step, skipped): (u64, bool),
        kernel: ProcessIoBytes,
        duration: Duration,
        waits: Waits,
    ) -> StepSample {
        self.timers.turn_to(NO_CHUNK);
        self.timers.record(Timer::Step, duration);
        let since = |section: Section| {
            self.timers.section_ns(section) - self.begun.sections_ns[section as usize]
        };
        let mut sections_ns = Section::ALL.map(since);
        // A rank that was stopped inside of a collective has not waited for the others.
        let paused = (waits - self.begun.waits).paused;
        if !paused.is_zero() {
            self.timers.record(Timer::NotRunning, paused);
            let now = Instant::now();
            self.span(Timer::NotRunning, now.checked_sub(paused).unwrap_or(now), now);
        }
        let paused_ns = ns(paused);
        let collective_ns = &mut sections_ns[Section::Collective as usize];
        *collective_ns = collective_ns.saturating_sub(paused_ns);
        let own_ns = ns(duration).saturating_sub(*collective_ns);
        let spilled = self.timers.counted(Counter::SpilledGradientBytes);
        self.timers.record(Timer::StepOwn, Duration::from_nanos(own_ns));
        let sample = StepSample {
            step,
            skipped,
            step_ns: ns(duration),
            between_ns: self.begun.between_ns,
            own_ns,
            waiting_ns: self.begun.waiting_ns + *collective_ns,
            sections_ns,
            kernel_read_bytes: kernel.read_bytes,
            kernel_written_bytes: kernel.written_bytes,
            cache_hit_bytes: self.timers.counted(Counter::CacheHitBytes)
                - self.begun.cache_hit_bytes,
            spilled_gradient_bytes: spilled - self.reported_spill_bytes,
        };
        self.reported_spill_bytes = spilled;
        self.add_kernel(kernel);
        self.ring.push(sample, &self.samples);
        self.steps += 1;
        self.ended = Some((Instant::now(), waits));
        sample
    }

    /// What the drives did since the last sample.
    pub fn samples(&self) -> &[DriveSample] {
        &self.samples
    }

    /// Sets the counters of drives back to zero, for the next sample.
    pub fn clear_samples(&mut self) {
        self.samples.fill(DriveSample::default());
    }

    /// Forgets what was recorded. What was traced stays.
    pub fn reset(&mut self) {
        self.timers.reset();
        self.drives.fill(DriveTotals::default());
        self.kernel = ProcessIoBytes::default();
        self.steps = 0;
        self.ring.clear();
        self.reported_spill_bytes = 0;
        self.ended = None;
    }

    pub fn record(&self, comm: &dyn Communicator, elems: u64) -> RankRecord {
        let drives = self.paths.iter().zip(&self.limits).zip(&self.drives);
        let drive = |((path, limit), totals): ((&PathBuf, &Option<_>), &DriveTotals)| DriveRecord {
            path: path.clone(),
            totals: totals.clone(),
            limit: *limit,
        };
        let timer = |timer: &Timer| TimerRecord {
            name: timer.name().to_owned(),
            total: self.timers.total(*timer),
        };
        let counter = |counter: &Counter| CounterRecord {
            name: counter.name().to_owned(),
            value: self.timers.counted(*counter),
        };
        let mut picture = Vec::new();
        if comm.rank().0 < PICTURE_RANKS {
            (picture, _) = self.tracer.spans();
            let step = picture.first().map_or(0, |span| span.step);
            picture.retain(|span| span.step == step);
            picture.sort_by_key(|span| span.begin_ns);
            picture.truncate(PICTURE_SPANS_SENT);
        }
        RankRecord {
            rank: comm.rank().0,
            host: comm.host().to_owned(),
            elems,
            steps: self.steps,
            drives: drives.map(drive).collect(),
            timers: Timer::ALL.iter().map(timer).collect(),
            counters: Counter::ALL.iter().map(counter).collect(),
            kernel_read_bytes: self.kernel.read_bytes,
            kernel_written_bytes: self.kernel.written_bytes,
            series: self.ring.last_steps(comm.size()),
            picture,
        }
    }
}
