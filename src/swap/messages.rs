//! What the caller's thread and the I/O thread tell each other.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use super::pipeline::SweepKind;
use crate::error::{Error, Result};
use crate::io::{Buffer, DriveTotals, EngineSpec, Waker};
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
    pub placement: Placement,
    /// Number of chunks.
    pub chunks: usize,
    /// Bytes of each chunk that an update needs: of the first part of its extent. Other sweeps read
    /// all of it.
    pub swap_in_bytes: Vec<usize>,
    /// Buffers of the largest extent's size; at least one if there are chunks.
    pub buffers: Vec<Buffer>,
    /// No completion for this long, with operations in flight, is an error.
    pub io_timeout: Duration,
    /// Told after every batch of completed operations: how many there have been.
    pub on_progress: Box<dyn Fn(u64) + Send>,
    /// Where operations are recorded in steps that are traced.
    pub tracer: Arc<Tracer>,
    /// What a chunk holds, for messages.
    pub describe: Box<dyn Fn(ChunkIndex) -> String + Send>,
}

/// What one sweep moved, as the I/O thread saw it.
#[derive(Clone, Debug, Default)]
pub struct SweepTotals {
    /// Per drive.
    pub drives: Vec<DriveTotals>,
    /// Time with at least one swap-in in flight.
    pub swap_in_busy: Duration,
    /// Time with at least one swap-out in flight.
    pub swap_out_busy: Duration,
}

/// From the caller to the I/O thread.
pub(super) enum Command {
    Begin(SweepKind, Arc<Slots>),
    SwapOut(ChunkIndex, Buffer),
    Release(ChunkIndex, Buffer),
    Stop,
    Close,
}

/// From the I/O thread to the caller.
pub(super) enum Event {
    Lent(ChunkIndex, Buffer),
    Ended(Result<SweepTotals>),
    /// The I/O thread ends although operations are in flight.
    GaveUp(Error),
}

pub(super) type ReadySender = Sender<Result<Arc<dyn Waker>>>;
pub(super) type EventSender = Sender<Event>;
