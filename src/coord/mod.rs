//! Ranks as one job: the [`Communicator`], collectives for small and for many values, and agreement
//! on errors.
//!
//! There are three communicators: MPI, a single rank, and threads of one process (for tests, and to
//! try many ranks without a launcher). A program may bring its own, since the trait only moves
//! bytes.

mod agree;
mod alike;
mod bulk;
mod checked;
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
pub use alike::{ALIKE_WORDS, Alike, agree_on_values, differing_values, rank_words};
pub use bulk::{OwnedRanges, all_gather_ranges, mean_over_ranks, reduce_scatter_ranges};
pub use checked::{Call, Calls, Checked};
pub use gather::{
    OfRanks, draw_id, gather_alike, gather_all, gather_to_first, scatter_from_first, send_to_first,
    share,
};
pub use group::Group;
pub use local::{Solo, ThreadCommunicator};
pub use presence::{Activity, Collective, Phase, Presence, Pulse, Waits};
pub use topology::Topology;

/// The target of stall warnings in the log. They come from any rank that knows which one is late,
/// so a program that silences ranks other than rank 0 should let this target through.
pub const STALL_TARGET: &str = "optswap::stall";

/// The ranks of a job and what they can do together. Every method but the first four and the last
/// is collective: all ranks call it, in the same order, and it returns on all of them, or gives an
/// error within the communicator's deadline.
///
/// Sums are taken in rank order wherever order matters, so every communicator gives the same bits.
///
/// A communicator may be handed from thread to thread, but its collectives are called by one thread
/// at a time, since all ranks must call them in the same order.
pub trait Communicator: Send + Sync {
    /// The number of this process among the ranks, from 0.
    fn rank(&self) -> Rank;

    /// Number of ranks.
    fn size(&self) -> usize;

    /// The name of the host that this rank runs on.
    fn host(&self) -> &str;

    /// A number that all ranks of this rank's node have in common, and no others. `None` if that is
    /// not known: then ranks whose hosts have the same name count as one node.
    fn node(&self) -> Option<u32> {
        None
    }

    /// Waits for all ranks.
    ///
    /// # Errors
    /// [`Peer`](crate::ErrorKind::Peer) if a rank does not come in time.
    fn barrier(&self) -> Result<()>;

    /// Replaces every value by its sum over all ranks; wraps around beyond 2^64.
    ///
    /// # Errors
    /// [`Peer`](crate::ErrorKind::Peer) if a rank does not come in time.
    fn all_reduce_sum(&self, values: &mut [u64]) -> Result<()>;

    /// Gives every rank the bytes of all: `all` gets `counts[r]` bytes of rank r, end to end in
    /// rank order. All ranks give the same `counts`, of which their own is the length of `mine`.
    ///
    /// # Errors
    /// [`Peer`](crate::ErrorKind::Peer) if a rank does not come in time.
    fn all_gather_bytes(&self, mine: &[u8], counts: &[usize], all: &mut [u8]) -> Result<()>;

    /// Sends `send_counts[r]` bytes to rank r and receives `recv_counts[r]` bytes from it; `send`
    /// and `recv` hold them end to end in rank order.
    ///
    /// # Errors
    /// [`Peer`](crate::ErrorKind::Peer) if a rank does not come in time.
    fn all_to_all_bytes(
        &self,
        send: &[u8],
        send_counts: &[usize],
        recv: &mut [u8],
        recv_counts: &[usize],
    ) -> Result<()>;

    /// Divides the ranks: those that give the same `color` get a communicator of their own, in
    /// which they keep their order. A caller's own communicator need not offer this: where ranks
    /// share several inventories, communicators that were made otherwise may be handed in.
    ///
    /// # Errors
    /// [`Peer`](crate::ErrorKind::Peer) if a rank does not come in time. Usage if this communicator
    /// cannot be divided.
    fn split(&self, color: u32) -> Result<Arc<dyn Communicator>> {
        Err(Error::usage("this communicator cannot be divided")
            .with("color", color)
            .hint("hand in a communicator of your own for those who share an inventory"))
    }

    /// Where this rank publishes what it is doing, for ranks that wait for it. `None` if this
    /// communicator publishes nothing.
    fn presence(&self) -> Option<&Arc<Presence>> {
        None
    }

    /// The calls that this rank is in, if this communicator compares them with the other ranks'.
    /// The library does that for any communicator that it is given.
    #[doc(hidden)]
    fn calls(&self) -> Option<&Arc<Calls>> {
        None
    }
}
