//! The caller's end of spilled gradients: buffers to fill, and where they go. It is apart from the
//! swapper, so that gradients may come from any thread while nobody sweeps; within an update, a
//! chunk brings its spilled gradient along.

use std::sync::Arc;
use std::sync::mpsc::Receiver;

use super::inbox::{Inbox, check_process, thread_is_gone};
use super::messages::{Command, SpillAnswer, SpillCommand};
use crate::error::Result;
use crate::io::Buffer;
use crate::units::ChunkIndex;

/// Where buffers for spilled gradients come from and go to. One thread uses it at a time.
pub struct SpillPort {
    inbox: Arc<Inbox>,
    answers: Receiver<SpillAnswer>,
    /// The process that the I/O thread is of.
    process: u32,
}

impl SpillPort {
    pub(super) fn new(inbox: Arc<Inbox>, answers: Receiver<SpillAnswer>) -> Self {
        Self { inbox, answers, process: std::process::id() }
    }

    /// A buffer for gradients, with anything in it; waits for the write of an earlier one. Whoever
    /// holds all of them waits for ever.
    ///
    /// # Errors
    /// Usage in a forked child; I/O if the I/O thread has given up; internal if it is gone.
    pub fn take_gradient_buffer(&mut self) -> Result<Buffer> {
        match self.ask(SpillCommand::Take)? {
            SpillAnswer::Buffer(Some(buffer)) => Ok(buffer),
            _ => Err(thread_is_gone()),
        }
    }

    /// Gives a buffer back that is not needed.
    pub fn return_gradient_buffer(&mut self, buffer: Buffer) {
        self.inbox.send(Command::Spill(SpillCommand::Return(buffer)));
    }

    /// Begins to write a chunk's gradient. The next update reads it, unless it is read back before.
    pub fn spill(&mut self, chunk: ChunkIndex, buffer: Buffer) {
        self.inbox.send(Command::Spill(SpillCommand::Write { chunk, buffer }));
    }

    /// Takes the spilled gradient of a chunk back, to add to it and spill it again; `None` if it
    /// could not be read, for a reason that [`Self::settle_spills`] returns.
    ///
    /// # Errors
    /// Usage in a forked child; I/O if the I/O thread has given up; internal if it is gone.
    pub fn read_spilled(&mut self, chunk: ChunkIndex) -> Result<Option<Buffer>> {
        match self.ask(SpillCommand::Read(chunk))? {
            SpillAnswer::Buffer(buffer) => Ok(buffer),
            SpillAnswer::Settled(_) => Err(thread_is_gone()),
        }
    }

    /// Waits until everything that was spilled is on the drives.
    ///
    /// # Errors
    /// The first failure of a spilled gradient since the last call: I/O. Also usage in a forked
    /// child; I/O if the I/O thread has given up; internal if it is gone.
    pub fn settle_spills(&mut self) -> Result<()> {
        match self.ask(SpillCommand::Settle)? {
            SpillAnswer::Settled(result) => result,
            SpillAnswer::Buffer(_) => Err(thread_is_gone()),
        }
    }

    /// Forgets all spilled gradients. The caller has settled them before.
    pub fn discard_spills(&mut self) {
        self.inbox.send(Command::Spill(SpillCommand::Discard));
    }

    /// Gradients cannot be handed over in a forked child.
    ///
    /// # Errors
    /// Usage in one.
    pub fn check_process(&self) -> Result<()> {
        check_process(self.process)
    }

    fn ask(&mut self, command: SpillCommand) -> Result<SpillAnswer> {
        self.check_process()?;
        self.inbox.send(Command::Spill(command));
        self.answers.recv().map_err(|_| self.inbox.commands.end_of_thread())
    }
}
