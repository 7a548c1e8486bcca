//! An engine that injects faults into another one at chosen operations, so that everything that is
//! promised about failures can be tested. A rank survives short operations and transient errnos,
//! stops on any other errno, reports a stall when its I/O timeout is over, and finds torn writes
//! and flipped bits by their checksums when it reads them.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::engine::{Direction, Engine, EngineOp, OpDone, Wait, Waker};
use crate::config::{FaultConfig, FaultKind};

pub(super) struct FaultEngine {
    inner: Box<dyn Engine>,
    faults: Vec<FaultConfig>,
    next_op: u64,
    answers: Vec<OpDone>,
    /// Operations whose result will be false, as the caller asked for them.
    false_results: Vec<(FaultKind, EngineOp)>,
    /// Operations on slow drives, and when the drive will have finished them.
    slow: Vec<(u64, Instant)>,
    /// When each drive will have finished everything that was submitted to it.
    free_at: Vec<Instant>,
    /// Results that have arrived too early.
    early: Vec<(OpDone, Instant)>,
}

impl FaultEngine {
    pub fn new(inner: Box<dyn Engine>, faults: Vec<FaultConfig>) -> Self {
        Self {
            inner,
            faults,
            next_op: 0,
            answers: Vec::new(),
            false_results: Vec::new(),
            slow: Vec::new(),
            free_at: Vec::new(),
            early: Vec::new(),
        }
    }

    /// The operation that the engine beneath is to execute; `None` if it gets none.
    fn distort(&mut self, op: &EngineOp) -> Option<EngineOp> {
        let number = self.next_op;
        self.next_op += 1;
        self.slow_down(op, number);
        let mut faults = self.faults.iter().filter(|fault| fault.kind != FaultKind::Slow);
        let Some(fault) = faults.find(|fault| fault.strikes(number)) else {
            return Some(*op);
        };
        match (fault.kind, op.direction) {
            (FaultKind::Slow, _) => Some(*op),
            (FaultKind::Short, _) => Some(EngineOp { len: op.len.min(4096), ..*op }),
            (FaultKind::Stall, _) => None,
            (FaultKind::Panic, _) => panic!("injected at operation {number}"),
            (FaultKind::Torn, Direction::SwapOut) => {
                let half = op.len / 2 / 4096 * 4096;
                if half == 0 {
                    return self.answer(op, Ok(op.len));
                }
                self.false_results.push((FaultKind::Torn, *op));
                Some(EngineOp { len: half, ..*op })
            }
            (FaultKind::Bitflip, Direction::SwapIn) => {
                self.false_results.push((FaultKind::Bitflip, *op));
                Some(*op)
            }
            (FaultKind::Torn, Direction::SwapIn) | (FaultKind::Bitflip, Direction::SwapOut) => {
                Some(*op)
            }
            (FaultKind::Eio, _) => self.answer(op, Err(libc::EIO)),
            (FaultKind::Enospc, _) => self.answer(op, Err(libc::ENOSPC)),
            (FaultKind::Eintr, _) => self.answer(op, Err(libc::EINTR)),
            (FaultKind::Eagain, _) => self.answer(op, Err(libc::EAGAIN)),
        }
    }

    /// If its drive is slow, queues the operation behind those before it.
    fn slow_down(&mut self, op: &EngineOp, number: u64) {
        let is_on = |fault: &&FaultConfig| fault.drive.is_none_or(|drive| drive == op.file);
        let slow = self.faults.iter().filter(|fault| fault.kind == FaultKind::Slow);
        let Some(fault) = slow.filter(is_on).find(|fault| fault.strikes(number)) else { return };
        if self.free_at.len() <= op.file as usize {
            self.free_at.resize(op.file as usize + 1, Instant::now());
        }
        let free_at = &mut self.free_at[op.file as usize];
        let begin = (*free_at).max(Instant::now());
        *free_at = begin + Duration::from_millis(u64::from(fault.delay_ms));
        self.slow.push((op.id, *free_at));
    }

    /// Keeps back the results that have arrived too early.
    fn hold_back(&mut self, done: &mut Vec<OpDone>) {
        let now = Instant::now();
        done.retain(|result| {
            let Some(at) = self.slow.iter().position(|(id, _)| *id == result.id) else {
                return true;
            };
            let (_, due) = self.slow.swap_remove(at);
            if due > now {
                self.early.push((*result, due));
            }
            due <= now
        });
    }

    fn answer(&mut self, op: &EngineOp, result: Result<u32, i32>) -> Option<EngineOp> {
        self.answers.push(OpDone { id: op.id, result });
        None
    }

    /// Turns a true result into the false one that the fault asks for.
    fn falsify(&mut self, done: &mut OpDone) {
        let Some(at) = self.false_results.iter().position(|(_, op)| op.id == done.id) else {
            return;
        };
        let (kind, op) = self.false_results.swap_remove(at);
        match (kind, done.result) {
            (FaultKind::Torn, Ok(_)) => done.result = Ok(op.len),
            (_, Ok(moved)) if moved > 0 => {
                // SAFETY: the memory is valid and nobody else's until this result is handed on
                // (contract of `submit`); `moved` bytes of it have just been read.
                unsafe { *op.memory.add(moved as usize / 2) ^= 0x10 }
            }
            _ => {}
        }
    }
}

impl Engine for FaultEngine {
    fn describe(&self) -> String {
        format!("{} with faults injected", self.inner.describe())
    }

    unsafe fn submit(&mut self, ops: &[EngineOp]) -> io::Result<()> {
        let ops: Vec<EngineOp> = ops.iter().filter_map(|op| self.distort(op)).collect();
        // SAFETY: our caller's promise, passed on; a shortened operation touches less memory.
        unsafe { self.inner.submit(&ops) }
    }

    fn reap(&mut self, wait: Wait, done: &mut Vec<OpDone>) -> io::Result<()> {
        let due = self.early.iter().map(|(_, due)| *due).min();
        let wait = match (wait, due) {
            _ if !self.answers.is_empty() => Wait::No,
            (Wait::Until(until), Some(due)) => Wait::Until(until.min(due)),
            (wait, _) => wait,
        };
        let mut reaped = Vec::new();
        let result = self.inner.reap(wait, &mut reaped);
        reaped.iter_mut().for_each(|done| self.falsify(done));
        self.hold_back(&mut reaped);
        let now = Instant::now();
        let ripe = self.early.extract_if(.., |(_, due)| *due <= now);
        done.extend(ripe.map(|(result, _)| result));
        done.append(&mut self.answers);
        done.append(&mut reaped);
        result
    }

    fn waker(&self) -> Arc<dyn Waker> {
        self.inner.waker()
    }
}
