//! The caller's end of the swapper.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::messages::{Command, Event, SwapperSpec, SweepTotals};
use super::pipeline::SweepKind;
use super::thread;
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Buffer, Waker};
use crate::storage::Slots;
use crate::units::ChunkIndex;

/// Commands and the means to have them noticed.
pub(super) struct Inbox {
    pub commands: Arc<Mutex<VecDeque<Command>>>,
    pub waker: Arc<dyn Waker>,
}

impl Inbox {
    fn send(&self, command: Command) {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).push_back(command);
        self.waker.wake();
    }
}

/// The swapper of one rank: one I/O thread that owns the engine, the free buffers and the chunk
/// states.
pub struct Swapper {
    inbox: Arc<Inbox>,
    events: Receiver<Event>,
    thread: Option<JoinHandle<()>>,
    failed: bool,
    /// The I/O thread has ended, because an operation did not.
    gave_up: bool,
}

impl Swapper {
    /// Starts the I/O thread and opens the engine on it.
    ///
    /// # Errors
    /// As [`EngineSpec::open`].
    pub fn open(spec: SwapperSpec) -> Result<Self> {
        let (events_in, events) = channel();
        let (ready_in, ready) = channel();
        let commands: Arc<Mutex<VecDeque<Command>>> = Arc::default();
        let thread_commands = Arc::clone(&commands);
        let spawned = std::thread::Builder::new()
            .name("optswap-io".to_owned())
            .spawn(move || thread::run(spec, thread_commands, &ready_in, events_in));
        let handle = spawned.map_err(|error| {
            Error::new(ErrorKind::Unavailable, "the I/O thread cannot be started").because(error)
        })?;
        let waker = ready.recv().map_err(|_| thread_is_gone())??;
        let inbox = Arc::new(Inbox { commands, waker });
        Ok(Self { inbox, events, thread: Some(handle), failed: false, gave_up: false })
    }

    /// Begins a sweep over all chunks, which are read from and written to where `slots` says.
    /// Swap-ins start at once, before the first is asked for.
    ///
    /// # Errors
    /// If an earlier sweep failed: what lies on the drives is then of no step.
    pub fn sweep(&mut self, kind: SweepKind, slots: &Slots) -> Result<Sweep<'_>> {
        if self.gave_up {
            let gave_up = "the I/O thread has given up: an operation never came back";
            return Err(Error::new(ErrorKind::Io, gave_up).hint(
                "end this process and start the job again: if it is durable, it goes on from its \
                 last commit",
            ));
        }
        if self.failed {
            return Err(Error::new(ErrorKind::Io, "the swapper stopped after an earlier failure"));
        }
        self.inbox.send(Command::Begin(kind, Arc::new(slots.clone())));
        Ok(Sweep { swapper: self, state: SweepState::UnderWay })
    }

    /// Allows sweeps again after a failure, for a caller who knows which slots are whole. If the
    /// I/O thread has given up, the next sweep says so.
    pub fn recover(&mut self) {
        self.failed = false;
    }
}

impl Drop for Swapper {
    fn drop(&mut self) {
        self.inbox.send(Command::Close);
        if let Some(thread) = self.thread.take() {
            // A panic of the I/O thread has been reported through its events.
            let _ = thread.join();
        }
    }
}

fn thread_is_gone() -> Error {
    Error::internal("the I/O thread is gone")
}

/// A sweep under way. Dropped early, it stops and waits for what is in flight.
pub struct Sweep<'a> {
    swapper: &'a mut Swapper,
    state: SweepState,
}

enum SweepState {
    UnderWay,
    Ended(SweepTotals),
    /// The error has been handed out.
    Failed,
}

impl Sweep<'_> {
    /// Waits for the next chunk, in order of arrival; `None` when there is no more.
    ///
    /// # Errors
    /// The first failure of the sweep; it is over then.
    pub fn next_chunk(&mut self) -> Result<Option<ResidentChunk>> {
        if !matches!(self.state, SweepState::UnderWay) {
            return Ok(None);
        }
        let event = self.swapper.events.recv();
        let event = event.unwrap_or_else(|_| Event::Ended(Err(thread_is_gone())));
        self.swapper.gave_up |= matches!(event, Event::GaveUp(_));
        match event {
            Event::Lent(index, buffer) => {
                let inbox = Arc::clone(&self.swapper.inbox);
                Ok(Some(ResidentChunk { index, buffer: Some(buffer), inbox }))
            }
            Event::Ended(Ok(totals)) => {
                self.state = SweepState::Ended(totals);
                Ok(None)
            }
            Event::Ended(Err(error)) | Event::GaveUp(error) => {
                self.state = SweepState::Failed;
                self.swapper.failed = true;
                Err(error)
            }
        }
    }

    /// Waits until everything is on the drives.
    ///
    /// # Errors
    /// The first failure of the sweep.
    pub fn finish(mut self) -> Result<SweepTotals> {
        while let Some(chunk) = self.next_chunk()? {
            chunk.release();
        }
        match &mut self.state {
            SweepState::Ended(totals) => Ok(std::mem::take(totals)),
            _ => Err(Error::new(ErrorKind::Io, "the sweep has failed before")),
        }
    }

    /// Ends the sweep early: no chunk starts any more, those swapped in are dropped unchanged.
    ///
    /// # Errors
    /// The first failure of the sweep.
    pub fn abandon(self) -> Result<SweepTotals> {
        self.swapper.inbox.send(Command::Stop);
        self.finish()
    }
}

impl Drop for Sweep<'_> {
    fn drop(&mut self) {
        if matches!(self.state, SweepState::UnderWay) {
            self.swapper.inbox.send(Command::Stop);
            while let Ok(Some(chunk)) = self.next_chunk() {
                chunk.release();
            }
        }
    }
}

/// A chunk in memory, the caller's until it is given back. Giving it back takes it away, so nothing
/// can be read or changed behind the swapper's back.
///
/// ```compile_fail
/// fn keep(chunk: optswap::swap::ResidentChunk) {
///     let bytes = &chunk[..8];
///     chunk.swap_out();
///     println!("{bytes:?}"); // does not compile: the bytes went with the chunk
/// }
/// ```
pub struct ResidentChunk {
    index: ChunkIndex,
    /// `None` only while being given back.
    buffer: Option<Buffer>,
    inbox: Arc<Inbox>,
}

impl ResidentChunk {
    /// Which chunk it is.
    pub fn index(&self) -> ChunkIndex {
        self.index
    }

    /// Gives the chunk back to be written to the drives.
    pub fn swap_out(mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.inbox.send(Command::SwapOut(self.index, buffer));
        }
    }

    /// Gives the chunk back unwritten; what lies on the drives stays. Dropping it does the same.
    pub fn release(self) {
        drop(self);
    }
}

impl Deref for ResidentChunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.buffer.as_deref().unwrap_or_default()
    }
}

impl DerefMut for ResidentChunk {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.buffer.as_deref_mut().unwrap_or_default()
    }
}

impl Drop for ResidentChunk {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.inbox.send(Command::Release(self.index, buffer));
        }
    }
}
