//! The swapper: it reads chunks from the drives into a few buffers, hands them to the caller one by
//! one, and writes back what has changed.
//!
//! ```text
//!            one I/O thread per rank                          the caller's thread
//!   OnDrive --> SwappingIn --> Resident --> Lent  == ResidentChunk ==>  update in place
//!      ^                          ^                                          |
//!      +------- SwappingOut <-----+------------- swap_out / release =========+
//! ```
//!
//! [`pipeline`] decides what to do next. It is pure and keeps one table of chunk states, which
//! outlives sweeps: writes of one step go on, and reads of the next one begin, while no sweep is
//! under way. [`thread`] does what the pipeline decides, and [`Swapper`] is the caller's end.
//!
//! Gradients that do not fit into memory are spilled to the drives: [`spill`] is the caller's end
//! of that, [`spills`] the I/O thread's. Spilled gradients and state have buffers of their own, so
//! that neither waits for the other's.

mod handle;
mod inbox;
mod lent;
mod messages;
mod pipeline;
mod spill;
mod spills;
mod thread;

pub use handle::{ResidentChunk, Swapper, Sweep};
pub use lent::{ChunkHandle, LentChunks};
pub use messages::{SwapperSpec, SweepTotals};
pub use pipeline::{Action, Fate, Pipeline};
pub use pipeline::{Ending, Overlap, SweepKind};
pub use spill::SpillPort;
