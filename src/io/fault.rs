//! Faults on purpose. The wrapped engine behaves as told at the n-th operation, so that every
//! promise about failures can be tested: a rank survives `Short` and transient errnos, stops on any
//! other errno, and reports `Stall` when its I/O timeout is over.

use std::io;
use std::sync::Arc;

use super::engine::{Engine, EngineOp, OpDone, Wait, Waker};
use crate::config::{FaultConfig, FaultKind};

pub(super) struct FaultEngine {
    inner: Box<dyn Engine>,
    faults: Vec<FaultConfig>,
    next_op: u64,
    answers: Vec<OpDone>,
}

impl FaultEngine {
    pub fn new(inner: Box<dyn Engine>, faults: Vec<FaultConfig>) -> Self {
        Self { inner, faults, next_op: 0, answers: Vec::new() }
    }

    /// The operation as the engine beneath shall see it, if it shall see it.
    fn distort(&mut self, op: &EngineOp) -> Option<EngineOp> {
        let number = self.next_op;
        self.next_op += 1;
        let fault = self.faults.iter().find(|fault| fault.op == number);
        let errno = match fault.map(|fault| fault.kind) {
            None => return Some(*op),
            Some(FaultKind::Short) => return Some(EngineOp { len: op.len.min(4096), ..*op }),
            Some(FaultKind::Stall) => return None,
            Some(FaultKind::Panic) => panic!("injected at operation {number}"),
            Some(FaultKind::Eio) => libc::EIO,
            Some(FaultKind::Enospc) => libc::ENOSPC,
            Some(FaultKind::Eintr) => libc::EINTR,
            Some(FaultKind::Eagain) => libc::EAGAIN,
        };
        self.answers.push(OpDone { id: op.id, result: Err(errno) });
        None
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
        let wait = if self.answers.is_empty() { wait } else { Wait::No };
        done.append(&mut self.answers);
        self.inner.reap(wait, done)
    }

    fn waker(&self) -> Arc<dyn Waker> {
        self.inner.waker()
    }
}
