//! MPI from any thread, one at a time: MPI_THREAD_SERIALIZED (MPI 3.1, section 12.4.3). Every call
//! of MPI takes its turn, and waiting is done between two turns.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::ThreadId;

use mpi::Threading;
use mpi::ffi;
use mpi::topology::SimpleCommunicator;
use mpi::traits::AsRaw;

use crate::error::{Error, Result};

static TURN: Mutex<()> = Mutex::new(());

/// The only thread that may call MPI, where the library allows no others.
static ONLY_THREAD: OnceLock<ThreadId> = OnceLock::new();

/// Waits until no other thread calls MPI.
pub(super) fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes which threads may call MPI, by what the library provides.
pub(super) fn allow_threads(provided: Threading) {
    if provided < Threading::Serialized {
        ONLY_THREAD.get_or_init(|| std::thread::current().id());
    }
}

/// Whether this thread may call MPI.
///
/// # Errors
/// Usage, if the MPI library wants all calls from the thread that started it.
pub(super) fn check_thread() -> Result<()> {
    match ONLY_THREAD.get() {
        Some(only) if *only != std::thread::current().id() => {
            Err(Error::usage("this MPI library may be called by the thread that started it only")
                .hint("call optswap from that thread, or use an MPI with MPI_THREAD_SERIALIZED"))
        }
        _ => Ok(()),
    }
}

/// A communicator of MPI, freed in a turn of its own.
pub(super) struct Handle(Option<SimpleCommunicator>);

// SAFETY: the handle is an integer or a pointer into the MPI library, which any thread may use
// whose turn it is. Its methods are called by `World` and `MpiCommunicator` under `turn`, and so is
// the free in `drop`.
unsafe impl Send for Handle {}
// SAFETY: as for `Send`; a shared handle is used by one thread at a time, since `turn` is taken.
unsafe impl Sync for Handle {}

impl Handle {
    pub fn new(comm: SimpleCommunicator) -> Self {
        Self(Some(comm))
    }

    /// The communicator, for one call in a turn.
    pub fn get(&self) -> Option<&SimpleCommunicator> {
        self.0.as_ref()
    }

    /// The handle in MPI's own terms.
    pub fn as_raw(&self) -> ffi::MPI_Comm {
        match &self.0 {
            Some(comm) => comm.as_raw(),
            // SAFETY: a constant of the MPI library, set before main.
            None => unsafe { ffi::RSMPI_COMM_NULL },
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let _turn = turn();
        drop(self.0.take());
    }
}
