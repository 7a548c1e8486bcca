//! Moving bytes between aligned buffers and files.
//!
//! [`Transfers`] owns a buffer from the moment a transfer starts until its last byte has moved or
//! failed. It splits transfers into operations, resumes short ones and keeps within the depth.
//! Beneath it an [`Engine`] executes single operations: by io_uring, by a pool of threads, or by
//! either with injected faults.
//!
//! Nothing here knows chunks, ranks or tensors.

mod accounting;
mod buffer;
mod engine;
mod fault;
mod load;
mod spec;
mod stall;
mod threads;
mod transfer;
mod uring;

pub use accounting::{DriveMeters, DriveTotals, Reading};
pub use buffer::{Buffer, allocate_buffers, allocate_sized};
pub use engine::{Direction, Engine, EngineOp, OpDone, Wait, Waker};
pub use load::{Load, LoadKind, LoadResult, Loader};
pub use spec::EngineSpec;
pub use stall::{Seen, StallWatch};
pub use transfer::{Finished, IoCause, IoFault, Part, Transfer, Transfers};
pub use uring::UringTrial;
