//! The caller's end of the swapper.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;

use super::inbox::{Commands, Inbox, check_process, thread_gave_up, thread_is_gone};
use super::messages::{Command, Event, Loan, SwapperSpec, SweepTotals};
use super::pipeline::{Ending, SweepKind};
use super::spill::SpillPort;
use super::thread;
use crate::error::{Error, ErrorKind, Result};
use crate::io::Buffer;
use crate::storage::Slots;
use crate::units::ChunkIndex;

/// The swapper of one rank: one I/O thread that owns the engine, the free buffers and the chunk
/// states.
pub struct Swapper {
    pub(super) inbox: Arc<Inbox>,
    pub(super) events: Receiver<Event>,
    thread: Option<JoinHandle<()>>,
    moved: SweepTotals,
    /// The sweep under way, or the last one.
    sweep: SweepState,
    /// Events that came while another one was waited for.
    waiting: VecDeque<Event>,
    failed: bool,
    /// The I/O thread has ended because an operation never came back.
    pub(super) gave_up: bool,
    /// The process that the I/O thread belongs to.
    process: u32,
}

impl Swapper {
    /// Starts the I/O thread and opens the engine on it. Gives the port for spilled gradients, too.
    ///
    /// # Errors
    /// As [`EngineSpec::open`].
    pub fn open(spec: SwapperSpec) -> Result<(Self, SpillPort)> {
        let (events_in, events) = channel();
        let (spills_in, spill_answers) = channel();
        let (ready_in, ready) = channel();
        let commands: Arc<Commands> = Arc::default();
        let thread_commands = Arc::clone(&commands);
        let spawned = std::thread::Builder::new()
            .name("optswap-io".to_owned())
            .spawn(move || thread::run(spec, thread_commands, &ready_in, (events_in, spills_in)));
        let handle =
            spawned.map_err(|error| Error::no_thread("the I/O thread cannot be started", error))?;
        let waker = ready.recv().map_err(|_| thread_is_gone())??;
        let inbox = Arc::new(Inbox { commands, waker });
        let (thread, moved) = (Some(handle), SweepTotals::default());
        let port = SpillPort::new(Arc::clone(&inbox), spill_answers);
        let swapper = Self {
            inbox,
            events,
            thread,
            moved,
            sweep: SweepState::Ended,
            waiting: VecDeque::new(),
            failed: false,
            gave_up: false,
            process: std::process::id(),
        };
        Ok((swapper, port))
    }

    /// Begins a sweep over all chunks, which are read and written where `slots` says. Swap-ins
    /// start at once, before the first chunk is asked for. An inspection or a fill begins when
    /// nothing is in flight any more.
    ///
    /// # Errors
    /// If anything has failed since the last sweep, late writes and reads ahead included: the
    /// drives then hold the state of no single step. Usage in a forked child.
    pub fn sweep(&mut self, kind: SweepKind, ending: Ending, slots: &Slots) -> Result<Sweep<'_>> {
        if matches!(kind, SweepKind::Inspect | SweepKind::Fill) {
            self.settle()?;
        }
        self.begin(kind, ending, Some(slots.clone()))
    }

    /// Writes every chunk that is newer in memory than on the drives. Reads ahead may go on.
    ///
    /// # Errors
    /// The first failure since the last sweep; usage in a forked child.
    pub fn flush(&mut self) -> Result<()> {
        self.begin(SweepKind::Flush, Ending::Flushed, None)?.finish()
    }

    /// Waits until nothing is in flight.
    ///
    /// # Errors
    /// The first failure since the last sweep; usage in a forked child.
    pub fn settle(&mut self) -> Result<()> {
        self.begin(SweepKind::Settle, Ending::Behind, None)?.finish()
    }

    fn begin(
        &mut self,
        kind: SweepKind,
        ending: Ending,
        slots: Option<Slots>,
    ) -> Result<Sweep<'_>> {
        self.check_process()?;
        if matches!(self.sweep, SweepState::UnderWay(_)) {
            return Err(Error::internal("a sweep is under way"));
        }
        if self.gave_up {
            return Err(thread_gave_up());
        }
        if self.failed {
            return Err(Error::new(ErrorKind::Io, "the swapper stopped after an earlier failure"));
        }
        self.inbox.send(Command::Begin(kind, ending, slots));
        self.sweep = SweepState::UnderWay(kind);
        Ok(Sweep { swapper: self, is_kept: false })
    }

    /// The sweep that [`Sweep::keep`] left under way. If it has ended since, it has no more chunks.
    ///
    /// # Errors
    /// Usage in a forked child.
    pub fn resume(&mut self) -> Result<Sweep<'_>> {
        self.check_process()?;
        Ok(Sweep { swapper: self, is_kept: false })
    }

    /// Waits until no write is in flight. A write that has failed is an error of the sweep, not of
    /// this call.
    ///
    /// # Errors
    /// Usage in a forked child; I/O if the I/O thread has given up.
    pub fn wait_written(&mut self) -> Result<()> {
        self.check_process()?;
        self.inbox.send(Command::ReportWritten);
        loop {
            match self.events.recv() {
                Ok(Event::Written) => return Ok(()),
                Ok(event @ (Event::Lent(_) | Event::Ended(_))) => self.waiting.push_back(event),
                Ok(Event::GaveUp(error)) => return Err(self.end_failed(error)),
                Err(_) => return Err(self.end_failed(thread_is_gone())),
            }
        }
    }

    fn end_failed(&mut self, error: Error) -> Error {
        (self.sweep, self.failed, self.gave_up) = (SweepState::Failed, true, true);
        error
    }

    /// Checks that this is the process that opened the swapper: a forked child has neither the I/O
    /// thread nor the buffers.
    ///
    /// # Errors
    /// Usage in a forked child.
    pub fn check_process(&self) -> Result<()> {
        check_process(self.process)
    }

    fn next_chunk(&mut self) -> Result<Option<ResidentChunk>> {
        let SweepState::UnderWay(kind) = self.sweep else { return Ok(None) };
        let event = self.waiting.pop_front().map_or_else(|| self.events.recv(), Ok);
        let event = event.unwrap_or_else(|_| Event::Ended(Err(thread_is_gone())));
        self.gave_up |= matches!(event, Event::GaveUp(_));
        match event {
            Event::Lent(Loan { chunk: index, buffer, gradient, is_fresh }) => {
                let (inbox, buffer) = (Arc::clone(&self.inbox), Some(buffer));
                Ok(Some(ResidentChunk { index, buffer, gradient, is_fresh, inbox }))
            }
            Event::Ended(Ok(totals)) => {
                self.sweep = SweepState::Ended;
                if !matches!(kind, SweepKind::Inspect | SweepKind::Fill) {
                    self.moved.add(&totals);
                }
                Ok(None)
            }
            Event::Written => Err(Error::internal("nobody has asked what is written")),
            Event::Ended(Err(error)) | Event::GaveUp(error) => {
                (self.sweep, self.failed) = (SweepState::Failed, true);
                Err(error)
            }
        }
    }

    /// Ends a sweep that was kept under way; its errors do not matter.
    fn end_kept_sweep(&mut self) {
        drop(Sweep { swapper: self, is_kept: false });
    }

    /// Allows sweeps again after a failure of this rank or another. The caller must know which
    /// slots hold whole state; all chunks in memory are forgotten. If the I/O thread has given up,
    /// the next sweep returns that error.
    pub fn recover(&mut self) {
        self.end_kept_sweep();
        self.failed = false;
        // These bytes are forgotten, so failures to move them do not matter.
        let _ = self.settle();
        if !self.gave_up {
            self.failed = false;
            self.inbox.send(Command::Forget);
        }
    }

    /// What updates have moved since the last call. Inspections and fills are not counted.
    pub fn take_moved(&mut self) -> SweepTotals {
        std::mem::take(&mut self.moved)
    }
}

impl Drop for Swapper {
    fn drop(&mut self) {
        if self.check_process().is_err() {
            return;
        }
        self.inbox.send(Command::Close);
        if let Some(thread) = self.thread.take() {
            // A panic of the I/O thread has been reported through its events.
            let _ = thread.join();
        }
    }
}

/// A sweep under way. Dropped early, it stops and waits for what is in flight.
pub struct Sweep<'a> {
    swapper: &'a mut Swapper,
    /// Whether the sweep goes on when this is dropped.
    is_kept: bool,
}

enum SweepState {
    UnderWay(SweepKind),
    Ended,
    /// It has ended with an error, which has been returned.
    Failed,
}

impl Sweep<'_> {
    /// Waits for the next chunk, in order of arrival; `None` at the end of the sweep.
    ///
    /// # Errors
    /// The first failure of the sweep, which has then ended.
    pub fn next_chunk(&mut self) -> Result<Option<ResidentChunk>> {
        self.swapper.next_chunk()
    }

    /// Leaves the sweep under way, for [`Swapper::resume`].
    pub fn keep(mut self) {
        self.is_kept = true;
    }

    /// Waits for the end of the sweep; chunks that are still handed over are given back unchanged.
    ///
    /// # Errors
    /// The first failure of the sweep.
    pub fn finish(mut self) -> Result<()> {
        while let Some(chunk) = self.next_chunk()? {
            chunk.release();
        }
        match self.swapper.sweep {
            SweepState::Ended => Ok(()),
            _ => Err(Error::new(ErrorKind::Io, "the sweep has failed before")),
        }
    }

    /// Ends the sweep early: no more chunks are handed over. Chunks that were swapped in for an
    /// update stay in memory for the next one, if reading ahead is allowed.
    ///
    /// # Errors
    /// The first failure of the sweep.
    pub fn abandon(self) -> Result<()> {
        self.swapper.inbox.send(Command::Stop);
        self.finish()
    }
}

impl Drop for Sweep<'_> {
    fn drop(&mut self) {
        let is_under_way = matches!(self.swapper.sweep, SweepState::UnderWay(_));
        if is_under_way && !self.is_kept && self.swapper.check_process().is_ok() {
            self.swapper.inbox.send(Command::Stop);
            while let Ok(Some(chunk)) = self.next_chunk() {
                chunk.release();
            }
        }
    }
}

/// A chunk in memory that the caller has until it gives it back. Giving it back consumes this
/// value, so that nothing can be read or changed afterwards.
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
    gradient: Option<Buffer>,
    is_fresh: bool,
    inbox: Arc<Inbox>,
}

impl ResidentChunk {
    /// Which chunk it is.
    pub fn index(&self) -> ChunkIndex {
        self.index
    }

    /// Whether it was read from the drives since the caller last gave it back, so that its bytes
    /// may differ from those, if the drive is faulty.
    pub fn is_fresh(&self) -> bool {
        self.is_fresh
    }

    /// The chunk's bytes, and those of its spilled gradient: empty unless this is an update and one
    /// has been spilled.
    pub fn with_gradient(&mut self) -> (&mut [u8], &[u8]) {
        let bytes = self.buffer.as_deref_mut().unwrap_or_default();
        (bytes, self.gradient.as_deref().unwrap_or_default())
    }

    /// The bytes of its spilled gradient; see [`Self::with_gradient`].
    pub fn gradient(&self) -> &[u8] {
        self.gradient.as_deref().unwrap_or_default()
    }

    /// Gives the chunk back to be written to the drives.
    pub fn swap_out(mut self) {
        self.give_back(true);
    }

    fn give_back(&mut self, has_changed: bool) {
        if let Some(buffer) = self.buffer.take() {
            let (chunk, gradient) = (self.index, self.gradient.take());
            self.inbox.send(Command::GiveBack { chunk, buffer, gradient, has_changed });
        }
    }

    /// Gives the chunk back without writing it; the drives keep what they have. Dropping does the
    /// same.
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
        self.give_back(false);
    }
}
