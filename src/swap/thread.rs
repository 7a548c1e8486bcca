//! The I/O thread: it asks the pipeline what to do next, does that, and waits for results or
//! commands.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::inbox::Commands;
use super::messages::{
    Command, Event, EventSender, Loan, ReadySender, SpillSender, SwapperSpec, SweepTotals,
};
use super::pipeline::{Action, Fate, Pipeline, SweepKind};
use super::spills::Spills;
use crate::error::{Error, ErrorKind};
use crate::io::{
    Buffer, Direction, Finished, IoCause, IoFault, Part, Seen, StallWatch, Transfer, Transfers,
    Wait,
};
use crate::storage::{Placement, Slots};
use crate::timers::BusyClock;
use crate::units::ChunkIndex;

/// The body of the thread: opens the engine, reports readiness, serves until `Close`.
pub(super) fn run(
    mut spec: SwapperSpec,
    commands: Arc<Commands>,
    ready: &ReadySender,
    (events, answers): (EventSender, SpillSender),
) {
    let depth = spec.engine.depth;
    let chunks = spec.sub_groups.len();
    let engine = match spec.engine.open(&spec.buffers) {
        Ok(engine) => engine,
        Err(error) => return drop(ready.send(Err(error))),
    };
    let waker = engine.waker();
    let for_gradients = spec.buffers.split_off(spec.buffers.len() - spec.gradient_buffers);
    let worker = Worker {
        transfers: Transfers::metered(engine, depth, spec.meters)
            .traced(spec.tracer)
            .closing_within(spec.io_timeout),
        pipeline: Pipeline::new(
            spec.sub_groups.into(),
            spec.buffers.len(),
            spec.pinned,
            spec.overlap,
            spec.reads_whole,
        ),
        must_report_written: false,
        free: spec.buffers,
        kept: BTreeMap::new(),
        spills: Spills::new(chunks, for_gradients, spec.gradient_placement, answers),
        failure: None,
        stall_watch: StallWatch::new(0, spec.io_timeout),
        swap_in_busy: BusyClock::default(),
        swap_out_busy: BusyClock::default(),
        placement: spec.placement,
        slots: Slots::new(chunks, false),
        on_progress: spec.on_progress,
        swap_in_bytes: spec.swap_in_bytes,
        paths: spec.paths,
        io_timeout: spec.io_timeout,
        describe: spec.describe,
        commands,
        events,
    };
    // The caller may be gone already; then there is nothing to serve.
    if ready.send(Ok(waker)).is_ok() {
        worker.serve();
    }
}

/// A buffer in which the swapper keeps a chunk in memory.
pub(super) struct Kept {
    pub buffer: Buffer,
    pub is_fresh: bool,
}

pub(super) struct Worker {
    transfers: Transfers,
    pub(super) pipeline: Pipeline,
    pub(super) spills: Spills,
    must_report_written: bool,
    free: Vec<Buffer>,
    /// The buffers of resident chunks. There are far fewer of them than chunks.
    kept: BTreeMap<ChunkIndex, Kept>,
    failure: Option<Error>,
    stall_watch: StallWatch,
    pub(super) swap_in_busy: BusyClock,
    pub(super) swap_out_busy: BusyClock,
    placement: Arc<Placement>,
    /// The slots of the last update, inspection or fill, and those that have been written since.
    slots: Slots,
    on_progress: Box<dyn Fn(u64) + Send>,
    swap_in_bytes: Vec<usize>,
    paths: Vec<PathBuf>,
    io_timeout: Duration,
    pub(super) describe: Box<dyn Fn(ChunkIndex) -> String + Send>,
    commands: Arc<Commands>,
    events: EventSender,
}

impl Worker {
    fn serve(mut self) {
        let mut finished = Vec::new();
        loop {
            // Stored before the last look at the queue, so that no command is missed.
            let looks_soon = self.transfers.comes_back_soon();
            self.commands.looks_soon.store(looks_soon, Ordering::SeqCst);
            if self.carry_out_commands().is_break() {
                return;
            }
            self.start_what_is_next();
            self.move_spills_on();
            if self.must_report_written && !self.pipeline.is_writing() {
                self.must_report_written = false;
                let _ = self.events.send(Event::Written);
            }
            let idle = Instant::now() + Duration::from_secs(3600);
            let wait =
                if self.transfers.active() > 0 { self.stall_watch.next_look() } else { idle };
            if let Err(error) = self.transfers.poll(Wait::Until(wait), &mut finished) {
                return self.give_up(error);
            }
            match self.stall_watch.look(self.transfers.completed_ops()) {
                Seen::Progress(completed_ops) => (self.on_progress)(completed_ops),
                Seen::Stall if self.transfers.active() > 0 => {
                    let error = self.stalled();
                    return self.give_up(error);
                }
                Seen::Stall | Seen::Nothing => {}
            }
            for transfer in finished.drain(..) {
                self.settle(transfer);
            }
        }
    }

    fn carry_out_commands(&mut self) -> ControlFlow<()> {
        let commands = {
            let mut queue = self.commands.queue.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *queue)
        };
        for command in commands {
            match command {
                Command::Begin(kind, ending, slots) => {
                    if let Some(slots) = slots {
                        self.slots = slots;
                    }
                    self.pipeline.begin(kind, ending);
                    self.begin_spills();
                    self.free_what_was_dropped();
                }
                Command::Spill(command) => self.carry_out_spill(command),
                Command::GiveBack { chunk, buffer, gradient, has_changed } => {
                    self.free_gradient(gradient);
                    let has_changed =
                        has_changed && self.pipeline.kind() != Some(SweepKind::Inspect);
                    if has_changed {
                        self.slots.mark_written(chunk);
                    }
                    // The caller may not have looked at a chunk that it gives back unchanged.
                    let kept = Kept { buffer, is_fresh: !has_changed };
                    let fate = self.pipeline.give_back(chunk, has_changed);
                    self.dispose(chunk, kept, fate);
                }
                Command::Stop => {
                    self.pipeline.stop();
                    self.drop_held();
                    self.free_what_was_dropped();
                }
                Command::ReportWritten => self.must_report_written = true,
                Command::Forget => {
                    self.pipeline.forget();
                    self.free_what_was_dropped();
                }
                Command::Close => return ControlFlow::Break(()),
            }
        }
        ControlFlow::Continue(())
    }

    fn start_what_is_next(&mut self) {
        loop {
            match self.pipeline.next() {
                Action::SwapIn { chunk, is_whole } => {
                    let buffer = self.take_free();
                    let bytes =
                        if is_whole { usize::MAX } else { self.swap_in_bytes[chunk.index()] };
                    self.swap_in_busy.begin(Instant::now());
                    self.start(Direction::SwapIn, chunk, bytes, buffer);
                    self.want_gradient(chunk);
                }
                Action::SwapOut(chunk) => {
                    let kept = self.take_kept(chunk);
                    self.write(chunk, kept.buffer);
                }
                Action::Lend(chunk) => {
                    let kept = self.take_kept(chunk);
                    self.lend_with_gradient(chunk, kept);
                }
                Action::Drop(chunk) => {
                    let kept = self.take_kept(chunk);
                    self.free.push(kept.buffer);
                }
                Action::LendZeroed(chunk) => {
                    let mut buffer = self.take_free();
                    buffer.fill(0);
                    self.lend(Loan { chunk, buffer, gradient: None, is_fresh: false });
                }
                Action::Wait => return,
                Action::Finish => self.end_sweep(),
            }
        }
    }

    fn take_free(&mut self) -> Buffer {
        // The pipeline counts the buffers of this list.
        self.free.pop().expect("the pipeline starts a chunk only with a free buffer")
    }

    fn take_kept(&mut self, chunk: ChunkIndex) -> Kept {
        // Buffers are kept and taken as the pipeline decides.
        self.kept.remove(&chunk).expect("a resident chunk has a buffer")
    }

    pub(super) fn dispose(&mut self, chunk: ChunkIndex, kept: Kept, fate: Fate) {
        match fate {
            Fate::Keep => {
                self.kept.insert(chunk, kept);
            }
            Fate::Write => self.write(chunk, kept.buffer),
            Fate::Free => self.free.push(kept.buffer),
        }
    }

    fn free_what_was_dropped(&mut self) {
        let chunks = self.kept.keys().copied();
        let dropped: Vec<_> = chunks.filter(|chunk| !self.pipeline.is_resident(*chunk)).collect();
        for chunk in dropped {
            self.free.extend(self.kept.remove(&chunk).map(|kept| kept.buffer));
        }
    }

    fn write(&mut self, chunk: ChunkIndex, buffer: Buffer) {
        self.swap_out_busy.begin(Instant::now());
        self.start(Direction::SwapOut, chunk, usize::MAX, buffer);
    }

    /// Starts a transfer of the first `bytes` bytes of a chunk's extent.
    fn start(&mut self, direction: Direction, chunk: ChunkIndex, bytes: usize, buffer: Buffer) {
        let segments = match direction {
            Direction::SwapIn => self.placement.segments(self.slots.read_extent(chunk)),
            Direction::SwapOut => self.placement.begin_write(self.slots.write_extent(chunk)),
        };
        let segments = segments.into_iter();
        let parts = segments.filter(|segment| segment.extent_offset < bytes).map(|segment| Part {
            file: segment.drive.0,
            file_offset: segment.file_offset,
            buffer_offset: segment.extent_offset,
            len: segment.len.min(bytes - segment.extent_offset),
        });
        let parts = parts.collect();
        self.start_transfer(Transfer { token: u64::from(chunk.0), direction, buffer, parts });
    }

    pub(super) fn start_transfer(&mut self, transfer: Transfer) {
        if self.transfers.active() == 0 {
            self.stall_watch.restart();
        }
        self.transfers.start(transfer);
    }

    fn settle(&mut self, finished: Finished) {
        if Spills::is_theirs(finished.token) {
            return self.settle_spill(finished);
        }
        let Finished { token, direction, buffer, result } = finished;
        let now = Instant::now();
        let chunk = ChunkIndex(token as u32);
        if direction == Direction::SwapOut {
            self.placement.end_write(self.slots.write_extent(chunk), result.is_ok());
        }
        if let Err(fault) = result {
            self.fail(fault, chunk);
        }
        let is_fresh = direction == Direction::SwapIn;
        let fate = match direction {
            Direction::SwapIn => {
                self.swap_in_busy.end(now);
                self.pipeline.end_swap_in(chunk)
            }
            Direction::SwapOut => {
                self.swap_out_busy.end(now);
                self.pipeline.end_swap_out(chunk)
            }
        };
        self.dispose(chunk, Kept { buffer, is_fresh }, fate);
    }

    pub(super) fn lend(&mut self, loan: Loan) {
        if let Err(refused) = self.events.send(Event::Lent(loan))
            && let Event::Lent(Loan { chunk, buffer, gradient, is_fresh }) = refused.0
        {
            self.free_gradient(gradient);
            // The caller is gone and `Close` follows.
            let fate = self.pipeline.give_back(chunk, false);
            self.dispose(chunk, Kept { buffer, is_fresh }, fate);
        }
    }

    fn end_sweep(&mut self) {
        let now = Instant::now();
        let totals = SweepTotals {
            drives: self.transfers.take_totals(),
            swap_in_busy: self.swap_in_busy.take_at(now),
            swap_out_busy: self.swap_out_busy.take_at(now),
        };
        self.pipeline.clear_failure();
        let result = self.failure.take().map_or(Ok(totals), Err);
        // If the caller is gone, nobody waits for this event.
        let _ = self.events.send(Event::Ended(result));
    }

    /// Keeps the first failure. The sweep under way, or the next one, then ends without starting
    /// anything.
    fn fail(&mut self, fault: IoFault, chunk: ChunkIndex) {
        let what = match fault.direction {
            Direction::SwapIn => "swap-in failed",
            Direction::SwapOut => "swap-out failed",
        };
        let error = self.describe_fault(what, fault).with("holding", (self.describe)(chunk));
        self.fail_with(error);
    }

    pub(super) fn fail_with(&mut self, error: Error) {
        self.pipeline.fail();
        self.drop_held();
        self.free_what_was_dropped();
        self.failure.get_or_insert(error);
    }

    pub(super) fn describe_fault(&self, what: &str, fault: IoFault) -> Error {
        let path = &self.paths[fault.file as usize];
        let error = Error::new(ErrorKind::Io, what)
            .with("drive", fault.file)
            .with("path", path.display())
            .with("offset", fault.offset)
            .with("length", fault.len);
        match fault.cause {
            IoCause::Errno(errno) => error.because(std::io::Error::from_raw_os_error(errno)),
            IoCause::EndOfFile => error
                .because("the file ends before the data does")
                .hint("somebody cut the file; this state is lost"),
            IoCause::WroteNothing => error.because("the write moved no byte"),
        }
    }

    fn stalled(&self) -> Error {
        let seconds = self.io_timeout.as_secs_f64();
        let what = format!("no I/O completed for {seconds} s (io_timeout)");
        match self.transfers.any_unfinished() {
            Some(fault) => self.describe_fault(&what, fault),
            None => Error::new(ErrorKind::Io, what),
        }
    }

    /// Ends the thread although operations may be in flight; their buffers are never freed.
    fn give_up(self, error: Error) {
        self.transfers.abandon();
        let reason = (error.kind(), error.sentence());
        let mut gave_up = self.commands.gave_up.lock().unwrap_or_else(PoisonError::into_inner);
        gave_up.get_or_insert(reason);
        drop(gave_up);
        let _ = self.events.send(Event::GaveUp(error));
    }
}
