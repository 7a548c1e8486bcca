//! The I/O thread: it asks the pipeline what to do next, does it, and waits for results or
//! commands.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::messages::{Command, Event, EventSender, ReadySender, SwapperSpec, SweepTotals};
use super::pipeline::{Action, Pipeline, SweepKind};
use crate::error::{Error, ErrorKind};
use crate::io::{Buffer, Direction, Finished, IoCause, IoFault, Part, Transfer, Transfers, Wait};
use crate::storage::{Placement, Slots};
use crate::timers::BusyClock;
use crate::units::ChunkIndex;

/// The body of the thread: opens the engine, reports readiness, serves until `Close`.
pub(super) fn run(
    spec: SwapperSpec,
    commands: Arc<Mutex<VecDeque<Command>>>,
    ready: &ReadySender,
    events: EventSender,
) {
    let depth = spec.engine.depth;
    let files = spec.engine.files.len();
    let engine = match spec.engine.open(&spec.buffers) {
        Ok(engine) => engine,
        Err(error) => return drop(ready.send(Err(error))),
    };
    let waker = engine.waker();
    let worker = Worker {
        transfers: Transfers::new(engine, depth, files).traced(spec.tracer),
        free: spec.buffers,
        pipeline: Pipeline::new(SweepKind::Inspect, 0, 0),
        sweeping: false,
        failure: None,
        completed_ops: 0,
        last_progress: Instant::now(),
        swap_in_busy: BusyClock::default(),
        swap_out_busy: BusyClock::default(),
        placement: spec.placement,
        slots: Arc::new(Slots::new(0, false)),
        on_progress: spec.on_progress,
        chunks: spec.chunks,
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

struct Worker {
    transfers: Transfers,
    free: Vec<Buffer>,
    pipeline: Pipeline,
    sweeping: bool,
    failure: Option<Error>,
    completed_ops: u64,
    last_progress: Instant,
    swap_in_busy: BusyClock,
    swap_out_busy: BusyClock,
    placement: Placement,
    /// Of the sweep under way.
    slots: Arc<Slots>,
    on_progress: Box<dyn Fn(u64) + Send>,
    chunks: usize,
    swap_in_bytes: Vec<usize>,
    paths: Vec<PathBuf>,
    io_timeout: Duration,
    describe: Box<dyn Fn(ChunkIndex) -> String + Send>,
    commands: Arc<Mutex<VecDeque<Command>>>,
    events: EventSender,
}

impl Worker {
    fn serve(mut self) {
        let mut finished = Vec::new();
        loop {
            if self.obey_commands().is_break() {
                return;
            }
            self.start_what_can_start();
            let deadline = self.last_progress + self.io_timeout;
            let idle = Instant::now() + Duration::from_secs(3600);
            let wait = if self.transfers.active() > 0 { deadline } else { idle };
            if let Err(error) = self.transfers.poll(Wait::Until(wait), &mut finished) {
                return self.give_up(error);
            }
            if self.transfers.completed_ops() != self.completed_ops {
                self.completed_ops = self.transfers.completed_ops();
                self.last_progress = Instant::now();
                (self.on_progress)(self.completed_ops);
            } else if self.transfers.active() > 0 && Instant::now() >= deadline {
                let error = self.stalled();
                return self.give_up(error);
            }
            for transfer in finished.drain(..) {
                self.settle(transfer);
            }
        }
    }

    fn obey_commands(&mut self) -> ControlFlow<()> {
        let commands = {
            let mut queue = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *queue)
        };
        for command in commands {
            match command {
                Command::Begin(kind, slots) => {
                    self.slots = slots;
                    self.pipeline = Pipeline::new(kind, self.chunks, self.free.len());
                    self.sweeping = true;
                }
                Command::SwapOut(chunk, buffer) => self.swap_out(chunk, buffer),
                Command::Release(chunk, buffer) => {
                    self.free.push(buffer);
                    self.pipeline.release(chunk);
                }
                Command::Stop => self.pipeline.stop(),
                Command::Close => return ControlFlow::Break(()),
            }
        }
        ControlFlow::Continue(())
    }

    fn start_what_can_start(&mut self) {
        while self.sweeping {
            match self.pipeline.next() {
                Action::SwapIn(chunk) => {
                    self.pipeline.begin_swap_in(chunk);
                    let buffer = self.take_buffer();
                    self.swap_in_busy.begin(Instant::now());
                    self.start(Direction::SwapIn, chunk, buffer);
                }
                Action::LendZeroed(chunk) => {
                    self.pipeline.lend_zeroed(chunk);
                    let mut buffer = self.take_buffer();
                    buffer.fill(0);
                    self.lend(chunk, buffer);
                }
                Action::Wait => return,
                Action::Finish => self.end_sweep(),
            }
        }
    }

    fn take_buffer(&mut self) -> Buffer {
        // The pipeline counts the same buffers as this list.
        self.free.pop().expect("the pipeline starts a chunk only with a free buffer")
    }

    fn swap_out(&mut self, chunk: ChunkIndex, buffer: Buffer) {
        if self.failure.is_some() || self.pipeline.kind() == SweepKind::Inspect {
            self.free.push(buffer);
            return self.pipeline.release(chunk);
        }
        self.pipeline.begin_swap_out(chunk);
        self.swap_out_busy.begin(Instant::now());
        self.start(Direction::SwapOut, chunk, buffer);
    }

    fn start(&mut self, direction: Direction, chunk: ChunkIndex, buffer: Buffer) {
        if self.transfers.active() == 0 {
            self.last_progress = Instant::now();
        }
        let extent = match direction {
            Direction::SwapIn => self.slots.read_extent(chunk),
            Direction::SwapOut => self.slots.write_extent(chunk),
        };
        let bytes = match (direction, self.pipeline.kind()) {
            (Direction::SwapIn, SweepKind::Update) => self.swap_in_bytes[chunk.index()],
            _ => usize::MAX,
        };
        let segments = self.placement.segments(extent).into_iter();
        let parts = segments.filter(|segment| segment.extent_offset < bytes).map(|segment| Part {
            file: segment.drive.0,
            file_offset: segment.file_offset,
            buffer_offset: segment.extent_offset,
            len: segment.len.min(bytes - segment.extent_offset),
        });
        let parts = parts.collect();
        self.transfers.start(Transfer { token: u64::from(chunk.0), direction, buffer, parts });
    }

    fn settle(&mut self, finished: Finished) {
        let Finished { token, direction, buffer, result } = finished;
        let now = Instant::now();
        let chunk = ChunkIndex(token as u32);
        if let Err(fault) = result {
            self.fail(fault, chunk);
        }
        match direction {
            Direction::SwapIn => {
                self.swap_in_busy.end(now);
                if self.failure.is_none() {
                    self.pipeline.lend(chunk);
                    return self.lend(chunk, buffer);
                }
                self.pipeline.fail_swap_in(chunk);
            }
            Direction::SwapOut => {
                self.swap_out_busy.end(now);
                self.pipeline.end_swap_out(chunk);
            }
        }
        self.free.push(buffer);
    }

    fn lend(&mut self, chunk: ChunkIndex, buffer: Buffer) {
        if let Err(refused) = self.events.send(Event::Lent(chunk, buffer))
            && let Event::Lent(chunk, buffer) = refused.0
        {
            // The caller is gone and will say `Close`.
            self.free.push(buffer);
            self.pipeline.release(chunk);
        }
    }

    fn end_sweep(&mut self) {
        self.sweeping = false;
        let totals = SweepTotals {
            drives: self.transfers.take_totals(),
            swap_in_busy: self.swap_in_busy.take(),
            swap_out_busy: self.swap_out_busy.take(),
        };
        let result = self.failure.take().map_or(Ok(totals), Err);
        // A caller that is gone asks for nothing more.
        let _ = self.events.send(Event::Ended(result));
    }

    /// Keeps the first failure; the sweep then comes to its end without starting anything.
    fn fail(&mut self, fault: IoFault, chunk: ChunkIndex) {
        self.pipeline.stop();
        let what = match fault.direction {
            Direction::SwapIn => "swap-in failed",
            Direction::SwapOut => "swap-out failed",
        };
        let error = self.describe_fault(what, fault).with("holding", (self.describe)(chunk));
        self.failure.get_or_insert(error);
    }

    fn describe_fault(&self, what: &str, fault: IoFault) -> Error {
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

    /// Ends the thread although operations may be in flight. Their buffers are never freed.
    fn give_up(self, error: Error) {
        self.transfers.abandon();
        let _ = self.events.send(Event::GaveUp(error));
    }
}
