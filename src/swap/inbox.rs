//! What the I/O thread is told, and what is known of it when it has ended.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::messages::Command;
use crate::error::{Error, ErrorKind, Result};
use crate::io::Waker;

/// Commands, as the I/O thread finds them.
#[derive(Default)]
pub(super) struct Commands {
    pub queue: Mutex<VecDeque<Command>>,
    /// So many operations are in flight that the thread looks here soon anyway: buffers that come
    /// back need not wake it.
    pub looks_soon: AtomicBool,
    /// Why the thread has given up, if it has.
    pub gave_up: Mutex<Option<(ErrorKind, String)>>,
}

impl Commands {
    /// The error of who asks a thread that has ended.
    pub(super) fn end_of_thread(&self) -> Error {
        let reason = self.gave_up.lock().unwrap_or_else(PoisonError::into_inner);
        match &*reason {
            Some((kind, sentence)) => thread_gave_up().because(Error::new(*kind, sentence.clone())),
            None => thread_is_gone(),
        }
    }
}

/// Commands and the means to have them noticed.
pub(super) struct Inbox {
    pub commands: Arc<Commands>,
    pub waker: Arc<dyn Waker>,
}

impl Inbox {
    pub(super) fn send(&self, command: Command) {
        let can_wait = matches!(command, Command::GiveBack { .. });
        self.commands.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(command);
        if !(can_wait && self.commands.looks_soon.load(Ordering::SeqCst)) {
            self.waker.wake();
        }
    }
}

/// Whether this is the process that the I/O thread is of: a forked child has neither it nor the
/// buffers.
///
/// # Errors
/// Usage in one.
pub(super) fn check_process(process: u32) -> Result<()> {
    let here = std::process::id();
    if here == process {
        return Ok(());
    }
    Err(Error::usage(
        "an optimizer cannot be used in a forked child: its buffers and its I/O thread are the \
         parent's",
    )
    .with("process", here)
    .with("of the parent", process)
    .hint("create the optimizer after the fork, or use it in the parent alone"))
}

pub(super) fn thread_gave_up() -> Error {
    Error::new(ErrorKind::Io, "the I/O thread has given up: an operation never came back").hint(
        "end this process and start the job again: if it is durable, it goes on from its last \
         commit",
    )
}

pub(super) fn thread_is_gone() -> Error {
    Error::internal("the I/O thread is gone")
}
