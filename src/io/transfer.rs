//! Transfers: whole buffers to and from several files at once.

use std::collections::VecDeque;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::time::{Duration, Instant};

use slab::Slab;

use super::accounting::{Accounts, Completed, DriveMeters, DriveTotals};
use super::buffer::Buffer;
use super::engine::{Direction, Engine, EngineOp, OpDone, Wait};
use crate::error::{Error, ErrorKind, Result};
use crate::timers::Tracer;

/// Longer operations gain nothing: the kernel cuts them. Many short ones share a drive more evenly,
/// among directions and among ranks.
const OP_BYTES_MAX: usize = 1 << 20;

/// From so many operations in flight on, their results are collected several at a time: as many as
/// leave the drives most of what they have to do, and not later than a moment.
const DEEP: usize = 32;
const LOOKS_PER_DEPTH: usize = 2;
const PATIENCE: Duration = Duration::from_millis(50);

/// Some bytes of a transfer: where they are in the buffer and in which file.
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
    /// What goes where.
    pub parts: Vec<Part>,
}

/// Why a part did not move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoCause {
    /// The system's answer.
    Errno(i32),
    /// A read came back with nothing: the file is shorter than it should be.
    EndOfFile,
    /// A write came back with nothing.
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

/// A transfer's end: the buffer comes back in any case.
#[derive(Debug)]
pub struct Finished {
    /// The transfer's token.
    pub token: u64,
    /// Read or write.
    pub direction: Direction,
    /// The memory, free for the next use.
    pub buffer: Buffer,
    /// Every byte has moved, or what went wrong first.
    pub result: Result<(), IoFault>,
}

struct Active {
    token: u64,
    direction: Direction,
    buffer: Buffer,
    parts_left: usize,
    fault: Option<IoFault>,
}

/// A part on its way: what is left of it.
struct Moving {
    active: usize,
    part: Part,
    /// When what is in flight of it went to the engine.
    submitted: Instant,
}

/// The parts of one direction on one file.
#[derive(Clone, Default)]
struct Lane {
    backlog: VecDeque<usize>,
    in_flight: usize,
}

/// The keeper of all transfers in flight.
pub struct Transfers {
    /// Not dropped, and so leaked, if the engine breaks with operations in flight.
    engine: ManuallyDrop<Box<dyn Engine>>,
    depth: usize,
    /// Holds every buffer that the engine may be using; leaked together with it.
    active: ManuallyDrop<Slab<Active>>,
    moving: Slab<Moving>,
    /// Parts that wait for a place in the engine, and how many have one, by file and direction.
    lanes: Vec<[Lane; 2]>,
    in_flight: usize,
    accounts: Accounts,
    completed_ops: u64,
    done: Vec<OpDone>,
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
            accounts: Accounts::new(meters),
            completed_ops: 0,
            done: Vec::new(),
        }
    }

    /// Operations that have come back since the beginning, whatever their result: a number that
    /// stands still is a stall.
    pub fn completed_ops(&self) -> u64 {
        self.completed_ops
    }

    /// Transfers that have not finished.
    pub fn active(&self) -> usize {
        self.active.len()
    }

    /// Operations are spans as well, while the tracer is on; the chunk of a span is the token.
    pub fn traced(mut self, tracer: Arc<Tracer>) -> Self {
        self.accounts.trace(tracer);
        self
    }

    /// What has moved since the last call, per file.
    pub fn take_totals(&mut self) -> Vec<DriveTotals> {
        self.accounts.take()
    }

    /// Takes a transfer in; it moves when [`Self::poll`] is called.
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
            let key = self.moving.insert(Moving { active, part, submitted });
            self.lanes[lane][direction as usize].backlog.push_back(key);
        }
    }

    /// Whether so much is in flight that results come soon, whatever else happens.
    pub fn comes_back_soon(&self) -> bool {
        self.in_flight >= DEEP
    }

    /// With many operations in flight it is enough to look after every few results: the drives have
    /// plenty to do, and each look costs the processor a system call. The drive with the least to
    /// do decides: it would be idle, and look slow, if its results were collected late.
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

    /// Moves things on: submits what fits, waits as told, and collects finished transfers.
    ///
    /// # Errors
    /// If the engine itself is broken. Failed transfers are in `finished`.
    pub fn poll(&mut self, wait: Wait, finished: &mut Vec<Finished>) -> Result<()> {
        let broken = |error: std::io::Error| {
            Error::new(ErrorKind::Io, "the I/O engine is broken").because(error)
        };
        self.submit_backlog().map_err(broken)?;
        let mut done = std::mem::take(&mut self.done);
        let wait = self.patience(wait);
        self.engine.reap(wait, &mut done).map_err(broken)?;
        let now = Instant::now();
        for op in done.drain(..) {
            self.complete(op, now, finished);
        }
        self.done = done;
        // Rests of short operations and parts that waited for a place go at once.
        self.submit_backlog().map_err(broken)
    }

    /// The next part to go: of the file and direction with the fewest in flight. Drives read and
    /// write at the same time, so neither what came first nor a slow drive may take every place.
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
        self.completed_ops += 1;
        let key = done.id as usize;
        let moving = &mut self.moving[key];
        let Active { token, direction, .. } = self.active[moving.active];
        let bytes = done.result.map_or(0, u64::from);
        let (file, submitted) = (moving.part.file, moving.submitted);
        self.accounts.end(&Completed { file, direction, token, submitted, bytes }, now);
        let lane = &mut self.lanes[file as usize][direction as usize];
        lane.in_flight -= 1;
        self.in_flight -= 1;
        let cause = match done.result {
            // A signal or a moment's shortage: the same again.
            Err(libc::EINTR | libc::EAGAIN) => return lane.backlog.push_front(key),
            Err(errno) => IoCause::Errno(errno),
            Ok(0) if direction == Direction::SwapIn => IoCause::EndOfFile,
            Ok(0) => IoCause::WroteNothing,
            Ok(moved) => {
                let moved = moved as usize;
                moving.part.file_offset += moved as u64;
                moving.part.buffer_offset += moved;
                moving.part.len -= moved;
                if moving.part.len > 0 {
                    // Short I/O is normal; the rest goes first.
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

    /// Where one of the unfinished parts is going, for the message of a time-out.
    pub fn any_unfinished(&self) -> Option<IoFault> {
        let (_, moving) = self.moving.iter().next()?;
        let part = moving.part;
        Some(IoFault {
            file: part.file,
            direction: self.active[moving.active].direction,
            offset: part.file_offset,
            len: part.len,
            cause: IoCause::Errno(libc::ETIMEDOUT),
        })
    }

    /// Gives up: the kernel may still use the buffers in flight, so they are never freed.
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

impl Drop for Transfers {
    fn drop(&mut self) {
        // Buffers in flight belong to the kernel until it says otherwise. Whoever cannot wait for
        // that calls `abandon` instead.
        let mut finished = Vec::new();
        while self.active() > 0 {
            let soon = Instant::now() + Duration::from_secs(1);
            if self.poll(Wait::Until(soon), &mut finished).is_err() {
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
