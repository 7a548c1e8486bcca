//! The engine's contract: single operations in, single results out.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::buffer::Buffer;
use super::fault::FaultEngine;
use super::threads::ThreadEngine;
use super::uring::UringEngine;
use crate::config::{EngineName, FaultConfig};
use crate::error::{Error, ErrorKind, Result};

/// Which way bytes move, seen from memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From a drive into memory.
    SwapIn,
    /// From memory onto a drive.
    SwapOut,
}

/// One operation: `len` bytes between `memory` and `offset` of a file.
#[derive(Clone, Copy, Debug)]
pub struct EngineOp {
    /// Comes back with the result.
    pub id: u64,
    /// Read or write.
    pub direction: Direction,
    /// Index into the engine's files.
    pub file: u32,
    /// Byte offset in the file.
    pub offset: u64,
    /// First byte in memory.
    pub memory: *mut u8,
    /// Number of bytes.
    pub len: u32,
    /// The buffer that `memory` lies in, for registered buffers.
    pub buffer_index: u32,
}

// SAFETY: an operation is a description; what makes its memory valid is the contract of
// `Engine::submit`, which does not depend on the thread.
unsafe impl Send for EngineOp {}

/// The result of one operation: bytes moved, or the errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpDone {
    /// The operation's id.
    pub id: u64,
    /// Bytes moved (which may be fewer than asked for) or the positive errno.
    pub result: Result<u32, i32>,
}

/// How long [`Engine::reap`] may wait for the first result.
#[derive(Clone, Copy, Debug)]
pub enum Wait {
    /// Not at all.
    No,
    /// Until a result, a wake-up or this moment.
    Until(Instant),
}

/// Ends a wait in [`Engine::reap`] from another thread.
pub trait Waker: Send + Sync {
    /// Ends the current wait, or the next one if nobody waits.
    fn wake(&self);
}

/// Executes single operations. All calls come from the thread that opened the engine.
pub trait Engine {
    /// What it is, for logs: the engine and the features in use.
    fn describe(&self) -> String;

    /// Hands operations over; never waits for them.
    ///
    /// # Safety
    /// Each operation's memory must stay valid, and untouched by anyone else, until its result has
    /// come out of [`Engine::reap`]. No more than the engine's depth may be in flight.
    ///
    /// # Errors
    /// Only if the engine itself is broken; failed operations are results.
    unsafe fn submit(&mut self, ops: &[EngineOp]) -> io::Result<()>;

    /// Collects results into `done`; with nothing to collect it waits as `wait` says.
    ///
    /// # Errors
    /// Only if the engine itself is broken.
    fn reap(&mut self, wait: Wait, done: &mut Vec<OpDone>) -> io::Result<()>;

    /// A handle that ends waits.
    fn waker(&self) -> Arc<dyn Waker>;
}

/// Everything needed to open an engine on the thread that will use it.
#[derive(Debug)]
pub struct EngineSpec {
    /// What the user asked for.
    pub choice: EngineName,
    /// The most operations in flight.
    pub depth: usize,
    /// The files, in drive order.
    pub files: Vec<File>,
    /// Faults to inject, for tests.
    pub faults: Vec<FaultConfig>,
}

impl EngineSpec {
    /// Opens the engine, with these buffers registered where the kernel allows it. Logs what was
    /// chosen and why.
    ///
    /// # Errors
    /// Unavailable if io_uring was asked for by name and is refused.
    pub fn open(self, buffers: &[Buffer]) -> Result<Box<dyn Engine>> {
        let (engine, reason): (Box<dyn Engine>, String) = match self.choice {
            EngineName::Threads => (self.open_threads()?, "by choice".to_owned()),
            EngineName::Uring => (self.open_uring(buffers)?, "by choice".to_owned()),
            EngineName::Auto => match self.open_uring(buffers) {
                Ok(engine) => (engine, "the kernel allows io_uring".to_owned()),
                Err(error) => (self.open_threads()?, error.to_string()),
            },
        };
        tracing::info!("I/O engine: {} ({reason})", engine.describe());
        if self.faults.is_empty() {
            return Ok(engine);
        }
        tracing::warn!("{} faults will be injected, as configured", self.faults.len());
        Ok(Box::new(FaultEngine::new(engine, self.faults)))
    }

    fn open_uring(&self, buffers: &[Buffer]) -> Result<Box<dyn Engine>> {
        let engine = UringEngine::open(&self.files, buffers, self.depth).map_err(|error| {
            Error::new(ErrorKind::Unavailable, "io_uring is refused")
                .because(error)
                .hint("see sysctl kernel.io_uring_disabled and seccomp, or use --engine threads")
        })?;
        Ok(Box::new(engine))
    }

    fn open_threads(&self) -> Result<Box<dyn Engine>> {
        let engine = ThreadEngine::open(&self.files, self.depth).map_err(|error| {
            Error::new(ErrorKind::Unavailable, "I/O threads cannot be started").because(error)
        })?;
        Ok(Box::new(engine))
    }
}
