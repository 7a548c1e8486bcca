//! Ranks as one job: the [`Communicator`], small and bulk collectives over it, and agreement on
//! errors.
//!
//! Three communicators exist: MPI, solo, and threads in one process (for tests and for a look at
//! many ranks without a launcher). A caller may bring its own: the trait moves bytes only.

mod agree;
mod bulk;
mod gather;
mod group;
mod local;
#[cfg(feature = "mpi")]
pub mod mpi;
mod page;
mod presence;
#[cfg(feature = "mpi")]
mod stall;
mod topology;

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::units::Rank;

pub use agree::agree;
pub use bulk::{all_gather_ranges, mean_over_ranks, reduce_scatter_ranges};
pub use gather::gather_all;
pub use group::Group;
pub use local::{Solo, ThreadCommunicator};
pub use presence::{Activity, Collective, Phase, Presence, Waits};
pub use topology::Topology;

/// The target of stall warnings in the log. They come from any rank that knows which one is late,
/// so a program that silences ranks other than rank 0 should let this target through.
pub const STALL_TARGET: &str = "optswap::stall";

/// The ranks of a job and what they can do together. Every method but the first four and the last
/// is collective: all ranks call it, in the same order, and it ends on all of them or gives an
/// error within the communicator's deadline.
///
/// Sums are taken in rank order wherever order matters, so every communicator gives the same bits.
///
/// A communicator may be handed from thread to thread, but its collectives are called by one thread
/// at a time, since all ranks must call them in the same order.
pub trait Communicator: Send + Sync {
    /// This process.
    fn rank(&self) -> Rank;

    /// Number of ranks.
    fn size(&self) -> usize;

    /// The host's name.
    fn host(&self) -> &str;

    /// A number that the ranks of this rank's node have in common, and no others; none if ranks
    /// share a node where their hosts have one name.
    fn node(&self) -> Option<u32> {
        None
    }

    /// Waits for all ranks.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Peer`] if a rank does not come in time.
    fn barrier(&self) -> Result<()>;

    /// Replaces every value by its sum over all ranks; wraps around beyond 2^64.
    ///
    /// # Errors
    /// As [`Self::barrier`].
    fn all_reduce_sum(&self, values: &mut [u64]) -> Result<()>;

    /// Gives every rank the bytes of all: `counts[r]` bytes of rank r, end to end in rank order.
    ///
    /// # Errors
    /// As [`Self::barrier`].
    fn all_gather_bytes(&self, mine: &[u8], counts: &[usize], all: &mut [u8]) -> Result<()>;

    /// Sends `send_counts[r]` bytes to rank r and receives `recv_counts[r]` bytes from it; both
    /// buffers hold them end to end in rank order.
    ///
    /// # Errors
    /// As [`Self::barrier`].
    fn all_to_all_bytes(
        &self,
        send: &[u8],
        send_counts: &[usize],
        recv: &mut [u8],
        recv_counts: &[usize],
    ) -> Result<()>;

    /// Divides the ranks: one communicator for all that give the same `color`, in rank order. A
    /// caller's own communicator need not offer it: who has others may hand those in.
    ///
    /// # Errors
    /// As [`Self::barrier`]; usage where it is not offered.
    fn split(&self, color: u32) -> Result<Arc<dyn Communicator>> {
        Err(Error::usage("this communicator cannot be divided")
            .with("color", color)
            .hint("hand in a communicator of your own for those who share an inventory"))
    }

    /// Where this rank says what it is doing, for those who wait for it. None where a communicator
    /// has no use for it.
    fn presence(&self) -> Option<&Arc<Presence>> {
        None
    }
}
