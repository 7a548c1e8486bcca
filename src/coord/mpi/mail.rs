//! Short messages from rank to rank beside the collectives, without ever waiting for one.

use std::mem::MaybeUninit;

use mpi::ffi;
use mpi::topology::SimpleCommunicator;

use super::thread::{Handle, turn};

const TAG: i32 = 0;

/// Messages that are longer might not come whole with their envelope, and then receiving one would
/// wait for its sender. Every MPI sends this much eagerly.
pub(super) const MESSAGE_BYTES_MAX: usize = 3 << 10;

/// A message on its way: MPI reads the bytes until the request is complete.
struct Outgoing {
    request: ffi::MPI_Request,
    bytes: Vec<u8>,
}

// SAFETY: a request is a handle of the MPI library, which any thread may use whose turn it is; all
// uses in this file take one.
unsafe impl Send for Outgoing {}

/// Messages over a communicator of their own.
pub(super) struct Mail {
    comm: Handle,
    outgoing: Vec<Outgoing>,
}

impl Mail {
    pub fn new(comm: SimpleCommunicator) -> Self {
        Self { comm: Handle::new(comm), outgoing: Vec::new() }
    }

    /// Sends a message on its way, whether or not the other rank ever looks. One that is too long,
    /// or that MPI refuses, is lost: a warning then says less.
    pub fn send(&mut self, to: u32, bytes: Vec<u8>) {
        self.forget_sent();
        let _turn = turn();
        if bytes.len() > MESSAGE_BYTES_MAX {
            return;
        }
        // SAFETY: a constant of the MPI library, set before main.
        let mut request = unsafe { ffi::RSMPI_REQUEST_NULL };
        let (start, len, comm) = (bytes.as_ptr(), bytes.len() as i32, self.comm.as_raw());
        // SAFETY: the bytes lie on the heap and stay there, in `outgoing`, until MPI is done with
        // them, or for ever. The request is a handle, which may be moved.
        let code = unsafe {
            let kind = ffi::RSMPI_UINT8_T;
            ffi::MPI_Isend(start.cast(), len, kind, to as i32, TAG, comm, &raw mut request)
        };
        if code == ffi::MPI_SUCCESS as i32 {
            self.outgoing.push(Outgoing { request, bytes });
        }
    }

    /// A message that has come, and from whom.
    pub fn receive(&mut self) -> Option<(u32, Vec<u8>)> {
        let _turn = turn();
        let mut has_come = 0;
        let mut status = MaybeUninit::<ffi::MPI_Status>::zeroed();
        let comm = self.comm.as_raw();
        // SAFETY: `has_come` and `status` are ours; the call returns at once.
        let code = unsafe {
            let any = ffi::RSMPI_ANY_SOURCE;
            ffi::MPI_Iprobe(any, TAG, comm, &raw mut has_come, status.as_mut_ptr())
        };
        if code != ffi::MPI_SUCCESS as i32 || has_come == 0 {
            return None;
        }
        // SAFETY: filled in by the probe, and a plain structure of integers in every MPI.
        let status = unsafe { status.assume_init() };
        let mut len = 0;
        // SAFETY: the status is that of the probe; one integer is written.
        unsafe { ffi::MPI_Get_count(&raw const status, ffi::RSMPI_UINT8_T, &raw mut len) };
        let from = status.MPI_SOURCE;
        let mut bytes = vec![0u8; usize::try_from(len).unwrap_or(0)];
        // SAFETY: the buffer has the length that the probe gave for this very message: nobody else
        // receives on this communicator, and messages from one rank do not overtake each other. It
        // has come whole (MESSAGE_BYTES_MAX), so the call does not wait.
        let code = unsafe {
            let (start, kind) = (bytes.as_mut_ptr().cast(), ffi::RSMPI_UINT8_T);
            ffi::MPI_Recv(start, len, kind, from, TAG, comm, ffi::RSMPI_STATUS_IGNORE)
        };
        (code == ffi::MPI_SUCCESS as i32).then_some((from as u32, bytes))
    }

    fn forget_sent(&mut self) {
        let _turn = turn();
        self.outgoing.retain_mut(|message| {
            let mut done = 0;
            // SAFETY: the request is that of a send which has not been seen complete before.
            unsafe {
                let ignore = ffi::RSMPI_STATUS_IGNORE;
                ffi::MPI_Test(&raw mut message.request, &raw mut done, ignore);
            }
            done == 0
        });
    }
}

impl Drop for Mail {
    fn drop(&mut self) {
        // What has come late is taken, so that MPI has nothing left when the communicator goes.
        while self.receive().is_some() {}
        self.forget_sent();
        // MPI may still read the others.
        for message in self.outgoing.drain(..) {
            message.bytes.leak();
        }
    }
}
