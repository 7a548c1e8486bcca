//! The caller's end of spilled gradients: buffers to fill, and where they go. All of it between
//! sweeps; within an update, a chunk brings its spilled gradient along.

use super::handle::{Swapper, thread_gave_up, thread_is_gone};
use super::messages::{Command, Event, SpillAnswer, SpillCommand};
use crate::error::Result;
use crate::io::Buffer;
use crate::units::ChunkIndex;

impl Swapper {
    /// A buffer for gradients, with anything in it; waits for the write of an earlier one. Whoever
    /// holds all of them waits for ever.
    ///
    /// # Errors
    /// If the I/O thread is gone.
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

    /// Takes back what was spilled of a chunk, to add to it and spill it again; none if it could
    /// not be read, for a reason that [`Self::settle_spills`] gives.
    ///
    /// # Errors
    /// If the I/O thread is gone.
    pub fn read_spilled(&mut self, chunk: ChunkIndex) -> Result<Option<Buffer>> {
        match self.ask(SpillCommand::Read(chunk))? {
            SpillAnswer::Buffer(buffer) => Ok(buffer),
            SpillAnswer::Settled(_) => Err(thread_is_gone()),
        }
    }

    /// Waits until everything that was spilled is on the drives.
    ///
    /// # Errors
    /// The first failure since the last call. State has no part in it.
    pub fn settle_spills(&mut self) -> Result<()> {
        match self.ask(SpillCommand::Settle)? {
            SpillAnswer::Settled(result) => result,
            SpillAnswer::Buffer(_) => Err(thread_is_gone()),
        }
    }

    /// Forgets what was spilled. Everything has been settled before.
    pub fn discard_spills(&mut self) {
        self.inbox.send(Command::Spill(SpillCommand::Discard));
    }

    fn ask(&mut self, command: SpillCommand) -> Result<SpillAnswer> {
        self.check_process()?;
        if self.gave_up {
            return Err(thread_gave_up());
        }
        self.inbox.send(Command::Spill(command));
        let answer = self.spill_answers.recv();
        answer.map_err(|_| {
            self.gave_up = true;
            let told = self.events.try_iter().find_map(|event| match event {
                Event::GaveUp(error) => Some(error),
                Event::Lent(_) | Event::Ended(_) | Event::Written => None,
            });
            told.unwrap_or_else(thread_is_gone)
        })
    }
}
