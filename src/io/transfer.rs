//! Transfers: whole buffers to and from several files at once.

use std::collections::VecDeque;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::time::{Duration, Instant};

use slab::Slab;

use super::accounting::{Accounts, Completed, DriveMeters, DriveTotals};
use super::buffer::Buffer;
use super::engine::{Direction, Engine, EngineOp, OpDone, Wait};
use super::stall::{Seen, StallWatch};
use crate::error::{Error, ErrorKind, Result};
use crate::timers::{CLOSING, Tracer};

/// The longest operation. Longer ones gain nothing, since the kernel cuts them, and short ones
/// share a drive more evenly among directions and among ranks.
const OP_BYTES_MAX: usize = 1 << 20;

/// From this many operations in flight on, results are collected several at a time, but no more
/// than leave the drives enough to do, and after at most [`PATIENCE`].
const DEEP: usize = 32;
const LOOKS_PER_DEPTH: usize = 2;
const PATIENCE: Duration = Duration::from_millis(50);

/// An operation that the system refuses for the moment is repeated at once, and then ever later.
const RETRY_AFTER: Duration = Duration::from_millis(1);
const RETRY_AFTER_MAX: Duration = Duration::from_millis(128);

/// Some bytes of a transfer: where they are in the buffer and in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Index of the file.
    pub file: u32,
    /// Byte offset in the file.
    pub file_offset: u64,
    /// Byte offset in the buffer.
    pub buffer_offset: usize,
    /// Length in bytes, at least 1.
    pub len: usize,
}

/// A buffer to be filled from, or written to, its parts. Parts do not overlap.
#[derive(Debug)]
pub struct Transfer {
    /// Comes back with the result.
    pub token: u64,
    /// Read or write.
    pub direction: Direction,
    /// The memory; it belongs to the transfer until it is finished.
    pub buffer: Buffer,
    /// Which bytes of the buffer belong where.
    pub parts: Vec<Part>,
}

/// Why a part was not moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoCause {
    /// The system's error number.
    Errno(i32),
    /// A read returned no bytes: the file is shorter than it should be.
    EndOfFile,
    /// A write wrote no bytes.
    WroteNothing,
}

/// The first thing that went wrong in a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoFault {
    /// Index of the file.
    pub file: u32,
    /// Read or write.
    pub direction: Direction,
    /// Byte offset in the file.
    pub offset: u64,
    /// Bytes asked for at that offset.
    pub len: usize,
    /// Why.
    pub cause: IoCause,
}

/// A finished transfer, which returns the buffer in any case.
#[derive(Debug)]
pub struct Finished {
    /// The transfer's token.
    pub token: u64,
    /// Read or write.
    pub direction: Direction,
    /// The memory, free for the next use.
    pub buffer: Buffer,
    /// Whether every byte has moved, or else the first fault.
    pub result: Result<(), IoFault>,
}

struct Active {
    token: u64,
    direction: Direction,
    buffer: Buffer,
    parts_left: usize,
    fault: Option<IoFault>,
}

/// What is left of a part that is being moved.
struct Moving {
    active: usize,
    part: Part,
    /// When its operation in flight went to the engine.
    submitted: Instant,
    /// How often it has been refused for the moment since it last moved, and with which errno.
    refused: Option<(u32, i32)>,
}

/// The parts of one direction on one file.
#[derive(Clone, Default)]
struct Lane {
    backlog: VecDeque<usize>,
    in_flight: usize,
}

/// Executes transfers, any number at a time, on an engine.
pub struct Transfers {
    /// Not dropped, and so leaked, if the engine breaks with operations in flight.
    engine: ManuallyDrop<Box<dyn Engine>>,
    depth: usize,
    /// Holds every buffer that the engine may be using; leaked together with it.
    active: ManuallyDrop<Slab<Active>>,
    moving: Slab<Moving>,
    /// Parts that wait for the engine, and the number of those in flight, by file and direction.
    lanes: Vec<[Lane; 2]>,
    in_flight: usize,
    /// Parts that the system has refused for the moment, and when to try them again.
    refused: Vec<(Instant, usize)>,
    accounts: Accounts,
    completed_ops: u64,
    done: Vec<OpDone>,
    closing: Duration,
}

impl Transfers {
    /// Takes an engine of this depth that works on `files` files.
    pub fn new(engine: Box<dyn Engine>, depth: usize, files: usize) -> Self {
        Self::metered(engine, depth, Arc::new(DriveMeters::new(files)))
    }

    /// Takes an engine of this depth that works on as many files as `meters` has; other threads can
    /// read there what each file moves.
    pub fn metered(engine: Box<dyn Engine>, depth: usize, meters: Arc<DriveMeters>) -> Self {
        Self {
            engine: ManuallyDrop::new(engine),
            depth: depth.max(1),
            active: ManuallyDrop::new(Slab::new()),
            moving: Slab::new(),
            lanes: vec![Default::default(); meters.files()],
            in_flight: 0,
            refused: Vec::new(),
            accounts: Accounts::new(meters),
            completed_ops: 0,
            done: Vec::new(),
            closing: CLOSING,
        }
    }

    /// Number of operations that have moved bytes or failed since the beginning. If it does not
    /// change, I/O stalls. An operation that is refused for the moment is no progress.
    pub fn completed_ops(&self) -> u64 {
        self.completed_ops
    }

    /// Number of transfers that have not finished.
    pub fn active(&self) -> usize {
        self.active.len()
    }

    /// Records operations as spans as well, while the tracer is on; the chunk of a span is the
    /// token.
    pub fn traced(mut self, tracer: Arc<Tracer>) -> Self {
        self.accounts.trace(tracer);
        self
    }

    /// When this is dropped, drives that complete nothing for `io_timeout` are not waited for, nor
    /// for longer than five seconds.
    pub fn closing_within(mut self, io_timeout: Duration) -> Self {
        self.closing = io_timeout.min(CLOSING);
        self
    }

    /// What has moved since the last call, per file.
    pub fn take_totals(&mut self) -> Vec<DriveTotals> {
        self.accounts.take()
    }

    /// Adds a transfer; calls of [`Self::poll`] execute it.
    pub fn start(&mut self, transfer: Transfer) {
        let Transfer { token, direction, buffer, parts } = transfer;
        let parts: Vec<Part> = parts.into_iter().flat_map(cut).collect();
        for part in &parts {
            let end = part.buffer_offset + part.len;
            assert!(part.len > 0 && end <= buffer.len(), "a part lies within its buffer");
        }
        assert!(!parts.is_empty(), "a transfer moves something");
        let parts_left = parts.len();
        let active =
            self.active.insert(Active { token, direction, buffer, parts_left, fault: None });
        let submitted = Instant::now();
        for part in parts {
            let lane = part.file as usize;
            let key = self.moving.insert(Moving { active, part, submitted, refused: None });
            self.lanes[lane][direction as usize].backlog.push_back(key);
        }
    }

    /// Whether so many operations are in flight that some will complete soon.
    pub fn comes_back_soon(&self) -> bool {
        self.in_flight >= DEEP
    }

    /// How to wait: with many operations in flight, for several results at once, since each wait
    /// costs a system call and the drives have enough to do. The drive with the fewest operations
    /// decides how many: if its results were collected late, it would be idle, and look slow.
    fn patience(&self, wait: Wait) -> Wait {
        match wait {
            Wait::Until(deadline) if self.comes_back_soon() => {
                let soon = Instant::now() + PATIENCE;
                let busy = self.lanes.iter().flatten().map(|lane| lane.in_flight);
                let least = busy.filter(|in_flight| *in_flight > 0).min().unwrap_or(0);
                Wait::Several((least / LOOKS_PER_DEPTH).max(1), deadline.min(soon))
            }
            wait => wait,
        }
    }

    /// Waits no longer than until a refused part is to be tried again.
    fn until_retry(&self, wait: Wait) -> Wait {
        let Some(retry) = self.refused.iter().map(|(due, _)| *due).min() else { return wait };
        match wait {
            Wait::No => Wait::No,
            Wait::Until(deadline) | Wait::Several(_, deadline) => Wait::Until(deadline.min(retry)),
        }
    }

    /// Submits as many operations as fit, waits as `wait` says, and adds finished transfers to
    /// `finished`.
    ///
    /// # Errors
    /// If the engine itself is broken. Failed transfers are in `finished`.
    pub fn poll(&mut self, wait: Wait, finished: &mut Vec<Finished>) -> Result<()> {
        let broken = |error: std::io::Error| {
            Error::new(ErrorKind::Io, "the I/O engine is broken").because(error)
        };
        self.submit_backlog().map_err(broken)?;
        let mut done = std::mem::take(&mut self.done);
        let wait = self.until_retry(self.patience(wait));
        self.engine.reap(wait, &mut done).map_err(broken)?;
        let now = Instant::now();
        for op in done.drain(..) {
            self.complete(op, now, finished);
        }
        self.done = done;
        // The rest of short operations, and parts that waited, are submitted at once.
        self.submit_backlog().map_err(broken)
    }

    /// The next part to submit: of the file and direction with the fewest in flight. Drives read
    /// and write at the same time, so neither the parts that came first nor a slow drive may take
    /// up the whole depth.
    fn next_part(&mut self) -> Option<usize> {
        let waiting = self.lanes.iter_mut().flatten().filter(|lane| !lane.backlog.is_empty());
        let lane = waiting.min_by_key(|lane| lane.in_flight)?;
        lane.in_flight += 1;
        self.in_flight += 1;
        lane.backlog.pop_front()
    }

    fn submit_backlog(&mut self) -> std::io::Result<()> {
        let mut ops: Vec<EngineOp> = Vec::new();
        let now = Instant::now();
        for (_, key) in self.refused.extract_if(.., |(due, _)| *due <= now) {
            let Moving { active, part, .. } = self.moving[key];
            let direction = self.active[active].direction;
            self.lanes[part.file as usize][direction as usize].backlog.push_front(key);
        }
        while self.in_flight < self.depth
            && let Some(key) = self.next_part()
        {
            let op = op_for(key, &self.moving, &self.active);
            self.moving[key].submitted = now;
            self.accounts.begin(op.file, op.direction, now);
            ops.push(op);
        }
        if ops.is_empty() {
            return Ok(());
        }
        // SAFETY: each operation's memory lies in a buffer that `active` holds (checked in
        // `start`), parts do not overlap, and the buffer is not touched before its last part has
        // been reaped. Never more than `depth` are in flight.
        unsafe { self.engine.submit(&ops) }
    }

    fn complete(&mut self, done: OpDone, now: Instant, finished: &mut Vec<Finished>) {
        let key = done.id as usize;
        let moving = &mut self.moving[key];
        let Active { token, direction, .. } = self.active[moving.active];
        let bytes = done.result.map_or(0, u64::from);
        let (file, submitted) = (moving.part.file, moving.submitted);
        self.accounts.end(&Completed { file, direction, token, submitted, bytes }, now);
        let lane = &mut self.lanes[file as usize][direction as usize];
        lane.in_flight -= 1;
        self.in_flight -= 1;
        // A signal, or memory that is short for a moment: the operation is repeated.
        if let Err(errno @ (libc::EINTR | libc::EAGAIN)) = done.result {
            let times = moving.refused.map_or(0, |(times, _)| times);
            moving.refused = Some((times.saturating_add(1), errno));
            return self.refused.push((now + retry_after(times), key));
        }
        self.completed_ops += 1;
        moving.refused = None;
        let cause = match done.result {
            Err(errno) => IoCause::Errno(errno),
            Ok(0) if direction == Direction::SwapIn => IoCause::EndOfFile,
            Ok(0) => IoCause::WroteNothing,
            Ok(moved) => {
                let moved = moved as usize;
                moving.part.file_offset += moved as u64;
                moving.part.buffer_offset += moved;
                moving.part.len -= moved;
                if moving.part.len > 0 {
                    // Short I/O is normal; the rest goes before other parts.
                    return lane.backlog.push_front(key);
                }
                return self.finish_part(key, None, finished);
            }
        };
        let part = moving.part;
        let fault =
            IoFault { file: part.file, direction, offset: part.file_offset, len: part.len, cause };
        self.finish_part(key, Some(fault), finished);
    }

    fn finish_part(&mut self, key: usize, fault: Option<IoFault>, finished: &mut Vec<Finished>) {
        let Moving { active: active_key, .. } = self.moving.remove(key);
        let active = &mut self.active[active_key];
        active.fault = active.fault.or(fault);
        active.parts_left -= 1;
        if active.parts_left == 0 {
            let Active { token, direction, buffer, fault, .. } = self.active.remove(active_key);
            let result = fault.map_or(Ok(()), Err);
            finished.push(Finished { token, direction, buffer, result });
        }
    }

    /// Describes one of the unfinished parts, for the message of a time-out: if there are such, one
    /// that the system refuses again and again, with its errno.
    pub fn any_unfinished(&self) -> Option<IoFault> {
        let (_, moving) = self.moving.iter().max_by_key(|(_, moving)| moving.refused)?;
        let part = moving.part;
        let errno = moving.refused.map_or(libc::ETIMEDOUT, |(_, errno)| errno);
        Some(IoFault {
            file: part.file,
            direction: self.active[moving.active].direction,
            offset: part.file_offset,
            len: part.len,
            cause: IoCause::Errno(errno),
        })
    }

    /// Leaks all buffers in flight, since the kernel may still use them.
    pub fn abandon(self) {
        std::mem::forget(self);
    }
}

/// A part in pieces of at most [`OP_BYTES_MAX`].
fn cut(part: Part) -> impl Iterator<Item = Part> {
    (0..part.len).step_by(OP_BYTES_MAX).map(move |at| Part {
        file_offset: part.file_offset + at as u64,
        buffer_offset: part.buffer_offset + at,
        len: OP_BYTES_MAX.min(part.len - at),
        ..part
    })
}

fn op_for(key: usize, moving: &Slab<Moving>, active: &Slab<Active>) -> EngineOp {
    let Moving { active: active_key, part, .. } = &moving[key];
    let Active { direction, buffer, .. } = &active[*active_key];
    // SAFETY: within the buffer, checked in `start`; resuming only moves the start towards the end.
    let memory = unsafe { buffer.as_ptr().add(part.buffer_offset) };
    // At most OP_BYTES_MAX.
    let len = part.len as u32;
    EngineOp {
        id: key as u64,
        direction: *direction,
        file: part.file,
        offset: part.file_offset,
        memory,
        len,
        buffer_index: buffer.index(),
    }
}

/// How long to wait with an operation that has been refused so many times before.
fn retry_after(times: u32) -> Duration {
    match times {
        0 => Duration::ZERO,
        times => (RETRY_AFTER * (1 << (times - 1).min(16))).min(RETRY_AFTER_MAX),
    }
}

impl Drop for Transfers {
    fn drop(&mut self) {
        // The kernel uses buffers in flight until their operations end. If they do not, engine and
        // buffers are leaked; so after a panic, when nobody knows what has been submitted.
        if std::thread::panicking() {
            return;
        }
        // Nobody waits for what has not been submitted.
        self.refused.clear();
        self.lanes.iter_mut().flatten().for_each(|lane| lane.backlog.clear());
        let mut finished = Vec::new();
        let mut watch = StallWatch::new(self.completed_ops, self.closing);
        while self.in_flight > 0 {
            let wait = Wait::Until(watch.next_look());
            if self.poll(wait, &mut finished).is_err() {
                return;
            }
            self.refused.clear();
            if watch.look(self.completed_ops) == Seen::Stall {
                let drive = self.any_unfinished().map_or(0, |fault| fault.file);
                tracing::warn!(
                    "drive {drive} completes nothing: {} I/O operations are left behind",
                    self.in_flight
                );
                return;
            }
        }
        // SAFETY: dropped once, here; neither is used afterwards.
        unsafe {
            ManuallyDrop::drop(&mut self.engine);
            ManuallyDrop::drop(&mut self.active);
        }
    }
}
