//! The caller's end of spilled gradients: it takes buffers, fills them and has them written. All of
//! this happens between sweeps; within an update, each chunk comes with its spilled gradient.

use super::handle::{Swapper, thread_gave_up, thread_is_gone};
use super::messages::{Command, Event, SpillAnswer, SpillCommand};
use crate::error::Result;
use crate::io::Buffer;
use crate::units::ChunkIndex;

impl Swapper {
    /// A buffer for gradients, with undefined contents. If none is free, this waits until the write
    /// of an earlier gradient has ended; a caller that holds all buffers waits for ever.
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

    fn ask(&mut self, command: SpillCommand) -> Result<SpillAnswer> {
        self.check_process()?;
        if self.gave_up {
            return Err(thread_gave_up());
        }
        self.inbox.send(Command::Spill(command));
        let answer = self.spill_answers.recv();
        answer.map_err(|_| {
            self.gave_up = true;
            let reason = self.events.try_iter().find_map(|event| match event {
                Event::GaveUp(error) => Some(error),
                Event::Lent(_) | Event::Ended(_) | Event::Written => None,
            });
            reason.unwrap_or_else(thread_is_gone)
        })
    }
}
