//! The messages between the caller's thread and the I/O thread.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use super::pipeline::{Ending, Overlap, SweepKind};
use crate::error::{Error, Result};
use crate::io::{Buffer, DriveMeters, DriveTotals, EngineSpec, Waker};
use crate::storage::{Placement, Slots};
use crate::timers::Tracer;
use crate::units::ChunkIndex;

/// Everything the I/O thread needs.
pub struct SwapperSpec {
    /// How to open the engine; its files are the shard's files in drive order.
    pub engine: EngineSpec,
    /// Paths of those files, for messages.
    pub paths: Vec<PathBuf>,
    /// Where the slots of chunks lie.
    pub placement: Arc<Placement>,
    /// The meters of the drives, which other threads read.
    pub meters: Arc<DriveMeters>,
    /// The sub-group of every chunk, ascending.
    pub sub_groups: Vec<u32>,
    /// Bytes of each chunk that an update needs: of the first part of its extent. Other sweeps read
    /// all of it.
    pub swap_in_bytes: Vec<usize>,
    /// Buffers of the largest extent's size; at least one more than are pinned, unless all are.
    /// Behind them come buffers for spilled gradients.
    pub buffers: Vec<Buffer>,
    /// How many of the buffers are for spilled gradients.
    pub gradient_buffers: usize,
    /// Where the spilled gradients of chunks lie; none if there are no buffers for them.
    pub gradient_placement: Option<Arc<Placement>>,
    /// So many chunks, the first ones, stay in memory from one sweep to the next.
    pub pinned: usize,
    /// What may go on at the same time.
    pub overlap: Overlap,
    /// Whether `swap_in_bytes` are all bytes of every chunk.
    pub reads_whole: bool,
    /// No completion for this long, with operations in flight, is an error.
    pub io_timeout: Duration,
    /// Called after every batch of completed operations, with their number so far.
    pub on_progress: Box<dyn Fn(u64) + Send>,
    /// Where operations are recorded in steps that are traced.
    pub tracer: Arc<Tracer>,
    /// What a chunk holds, for messages.
    pub describe: Box<dyn Fn(ChunkIndex) -> String + Send>,
}

/// What was moved, and for how long.
#[derive(Clone, Debug, Default)]
pub struct SweepTotals {
    /// Per drive.
    pub drives: Vec<DriveTotals>,
    /// Time with at least one swap-in in flight.
    pub swap_in_busy: Duration,
    /// Time with at least one swap-out in flight.
    pub swap_out_busy: Duration,
}

impl SweepTotals {
    /// Adds what was moved later.
    pub fn add(&mut self, later: &Self) {
        self.drives.resize(self.drives.len().max(later.drives.len()), DriveTotals::default());
        for (sum, drive) in self.drives.iter_mut().zip(&later.drives) {
            sum.add(drive);
        }
        self.swap_in_busy += later.swap_in_busy;
        self.swap_out_busy += later.swap_out_busy;
    }
}

/// From the caller to the I/O thread.
pub(super) enum Command {
    /// A sweep; with slots if it reads or writes other places than the one before.
    Begin(SweepKind, Ending, Option<Slots>),
    GiveBack {
        chunk: ChunkIndex,
        buffer: Buffer,
        gradient: Option<Buffer>,
        has_changed: bool,
    },
    Stop,
    Spill(SpillCommand),
    /// Send [`Event::Written`] when no write is in flight.
    ReportWritten,
    /// Forget all chunks in memory. Nothing is in flight when this comes.
    Forget,
    Close,
}

/// A chunk that is lent to the caller.
pub(super) struct Loan {
    pub chunk: ChunkIndex,
    pub buffer: Buffer,
    /// Its spilled gradient, if there is one.
    pub gradient: Option<Buffer>,
    /// Whether it was read from the drives since the caller last had it.
    pub is_fresh: bool,
}

/// From the caller to the I/O thread, about spilled gradients. After `Take`, `Read` and `Settle`
/// the caller waits for the answer before it sends another command.
pub(super) enum SpillCommand {
    /// Ask for a free buffer.
    Take,
    /// Write this buffer as the gradient of a chunk.
    Write { chunk: ChunkIndex, buffer: Buffer },
    /// Ask for a chunk's gradient back, to add to it.
    Read(ChunkIndex),
    /// Give back a buffer that is not needed.
    Return(Buffer),
    /// Wait until all writes have ended.
    Settle,
    /// Forget all spilled gradients.
    Discard,
}

/// The answer to a [`SpillCommand`].
pub(super) enum SpillAnswer {
    /// To `Take`; to `Read`, with the gradient, or none if it could not be read.
    Buffer(Option<Buffer>),
    /// To `Settle`: the first failure since the last one.
    Settled(Result<()>),
}

/// From the I/O thread to the caller.
pub(super) enum Event {
    Lent(Loan),
    Ended(Result<SweepTotals>),
    /// No write is in flight.
    Written,
    /// The I/O thread ends although operations are in flight.
    GaveUp(Error),
}

pub(super) type ReadySender = Sender<Result<Arc<dyn Waker>>>;
pub(super) type EventSender = Sender<Event>;
pub(super) type SpillSender = Sender<SpillAnswer>;
