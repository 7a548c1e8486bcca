//! The contract of an engine, which executes single operations.

use std::io;
use std::sync::Arc;
use std::time::Instant;

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
    /// Until so many results, or this moment; a wake-up may count as a result. An engine that gains
    /// nothing from waiting for several may end the wait at the first one.
    Several(usize, Instant),
}

/// Ends a wait in [`Engine::reap`] from another thread.
pub trait Waker: Send + Sync {
    /// Ends the current wait; if there is none, the next one ends at once.
    fn wake(&self);
}

/// Executes single operations. All calls come from the thread that opened the engine.
pub trait Engine {
    /// The engine and the features that it uses, for logs.
    fn describe(&self) -> String;

    /// Hands operations over without waiting for them. They are in flight at the latest when
    /// [`Engine::reap`] is called.
    ///
    /// # Safety
    /// Each operation's memory must stay valid, and untouched by anyone else, until its result has
    /// come out of [`Engine::reap`]. No more than the engine's depth may be in flight.
    ///
    /// # Errors
    /// Only if the engine itself is broken; failed operations are results.
    unsafe fn submit(&mut self, ops: &[EngineOp]) -> io::Result<()>;

    /// Adds all results to `done`. If there are none yet, waits for them as `wait` says.
    ///
    /// # Errors
    /// Only if the engine itself is broken.
    fn reap(&mut self, wait: Wait, done: &mut Vec<OpDone>) -> io::Result<()>;

    /// A handle that ends waits.
    fn waker(&self) -> Arc<dyn Waker>;
}
