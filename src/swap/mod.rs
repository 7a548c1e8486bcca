//! The swapper: chunks flow from the drives through a few buffers past the caller and back.
//!
//! ```text
//!            one I/O thread per rank                          the caller's thread
//!   OnDrive --> SwappingIn --> Lent  ====== ResidentChunk =====>  update in place
//!      ^                                                                |
//!      +------- SwappingOut <====== swap_out / release =================+
//! ```
//!
//! [`pipeline`] decides what to do next, in integers; [`thread`] does it; [`Swapper`] is the
//! caller's end. A later trait, `DriveGate`, will let the ranks of a node share its drives.

mod handle;
mod messages;
mod pipeline;
mod thread;

pub use handle::{ResidentChunk, Swapper, Sweep};
pub use messages::{SwapperSpec, SweepTotals};
pub use pipeline::SweepKind;
