//! The swapper: chunks flow from the drives through a few buffers past the caller and back.
//!
//! ```text
//!            one I/O thread per rank                          the caller's thread
//!   OnDrive --> SwappingIn --> Resident --> Lent  == ResidentChunk ==>  update in place
//!      ^                          ^                                          |
//!      +------- SwappingOut <-----+------------- swap_out / release =========+
//! ```
//!
//! [`pipeline`] decides what to do next, in integers: one table of chunk states, which outlives
//! sweeps, so that writes of one step go on, and reads of the next one begin, while nobody sweeps.
//! [`thread`] does it; [`Swapper`] is the caller's end.
//!
//! Gradients that do not fit memory are spilled: [`spill`] is the caller's end of that, [`spills`]
//! the I/O thread's. They have buffers of their own, so that neither waits for the other.

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
