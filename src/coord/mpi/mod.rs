//! The MPI communicator, over rsmpi. This folder alone knows MPI.
//!
//! Collectives are the non-blocking ones of MPI-3 (chapter 5.12), tested until a deadline: a dead
//! link is never detected by MPI itself, and a rank must not wait for ever. rsmpi ties a request to
//! a scope that cannot be left before the request is complete; a deadline has to leave, so the
//! requests here are raw, and abandoned with their buffers when the deadline passes.

mod inspector;
mod mail;
mod thread;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use mpi::Threading;
use mpi::environment::Universe;
use mpi::ffi;
use mpi::topology::{Color, SimpleCommunicator};
use mpi::traits::{Communicator as _, Group as _};

use self::inspector::{Inspector, timed_out};
use self::mail::Mail;
use self::thread::Handle;
use super::local::host_name;
use super::presence::{Collective, Presence, Waits};
use super::stall::Limits;
use super::{Communicator, agree};
use crate::error::{Error, ErrorKind, Result};
use crate::timers::Patience;
use crate::units::Rank;

/// MPI, started by this process. Dropping it finalises MPI, so it outlives every communicator.
pub struct World {
    universe: Universe,
}

impl World {
    /// Initialises MPI for use by one thread at a time.
    ///
    /// # Errors
    /// Usage if MPI is already initialised: then whoever did it hands in a communicator.
    pub fn start() -> Result<Self> {
        let started = mpi::initialize_with_threading(Threading::Serialized);
        let (universe, provided) =
            started.ok_or_else(|| Error::usage("MPI is already initialised in this process"))?;
        thread::allow_threads(provided);
        Ok(Self { universe })
    }

    /// A communicator of all ranks, apart from MPI_COMM_WORLD so that messages cannot meet.
    /// Collectives give up after `timeout`.
    pub fn communicator(&self, timeout: Duration) -> MpiCommunicator {
        let world = self.universe.world();
        let comm = world.duplicate();
        // MPI 3.1, section 6.4.2: ranks that can share memory. The first of them names the node.
        let local = world.split_shared(world.rank());
        let first = local.group().translate_rank(0, &world.group());
        let node = first.map(|rank| rank as u32);
        MpiCommunicator::of(comm, host_name(), node, timeout)
    }

    /// Collective, once: from now on the ranks find out who is late, say so in the log after
    /// `stall_warning`, and wait on as long as the late ones make progress.
    ///
    /// # Errors
    /// Peer, not agreed, if another rank does not come in time.
    pub fn watch_stalls(&self, comm: &MpiCommunicator, stall_warning: Duration) -> Result<()> {
        if comm.size() == 1 {
            return Ok(());
        }
        let presence = Presence::share(comm)?;
        let limits = Limits::new(stall_warning, comm.timeout);
        let mail = Mail::new(self.universe.world().duplicate());
        let inspector = Inspector::new(presence, comm.rank(), limits, mail);
        comm.inspector.set(inspector).map_err(|_| Error::internal("stalls are watched already"))
    }
}

/// The MPI library's name and version, such as `Open MPI v4.1.4, ...`; known before MPI starts.
pub fn library_version() -> String {
    mpi::environment::library_version().unwrap_or_default()
}

/// Ends all ranks at once with this exit code, from whichever thread. Does nothing if MPI is not
/// running. If MPI does not manage within ten seconds, this process at least ends.
pub fn abort_world(exit_code: u8) {
    let (mut initialised, mut finalised) = (0, 0);
    // SAFETY: both may be called at any time (MPI 3.1, 8.7) and write one int each.
    unsafe {
        ffi::MPI_Initialized(&raw mut initialised);
        ffi::MPI_Finalized(&raw mut finalised);
    }
    if initialised == 0 || finalised != 0 {
        return;
    }
    let end = move || {
        std::thread::sleep(Duration::from_secs(10));
        // SAFETY: ends the process without running anything that might wait for MPI.
        unsafe { libc::_exit(i32::from(exit_code)) }
    };
    // Where no more threads are allowed, MPI_Abort has to do.
    let _ = std::thread::Builder::new().spawn(end);
    // SAFETY: MPI is running; the world communicator is valid as long as it is.
    unsafe {
        ffi::MPI_Abort(ffi::RSMPI_COMM_WORLD, i32::from(exit_code));
    }
}

/// All ranks of an MPI job. Used by one thread at a time.
pub struct MpiCommunicator {
    comm: Handle,
    rank: Rank,
    size: usize,
    host: String,
    node: Option<u32>,
    timeout: Duration,
    inspector: OnceLock<Inspector>,
}

/// The buffers of a collective, owned by it until it is complete.
struct Pending<B> {
    request: ffi::MPI_Request,
    buffers: B,
}

impl MpiCommunicator {
    fn of(comm: SimpleCommunicator, host: String, node: Option<u32>, timeout: Duration) -> Self {
        let (rank, size) = (Rank(comm.rank() as u32), comm.size() as usize);
        let comm = Handle::new(comm);
        Self { comm, rank, size, host, node, timeout, inspector: OnceLock::new() }
    }

    /// Starts a collective with `start` and waits for it. The buffers are boxed, and so stay where
    /// they are; they come back when MPI no longer uses them, and never if the deadline passes.
    fn collective<B>(
        &self,
        name: Collective,
        buffers: B,
        start: impl FnOnce(&mut B, ffi::MPI_Comm, *mut ffi::MPI_Request) -> i32,
    ) -> Result<B> {
        thread::check_thread()?;
        // SAFETY: a constant of the MPI library, set before main.
        let null = unsafe { ffi::RSMPI_REQUEST_NULL };
        let mut pending = Box::new(Pending { request: null, buffers });
        let request = &raw mut pending.request;
        let mut watch = self.inspector.get().map(|it| (it, it.begin(name)));
        let code = {
            let _turn = thread::turn();
            start(&mut pending.buffers, self.comm.as_raw(), request)
        };
        if code != ffi::MPI_SUCCESS as i32 {
            let failed = format!("{} failed", name.name());
            return Err(Error::new(ErrorKind::Peer, failed).with("MPI error", code));
        }
        let begin = Instant::now();
        let (mut looked, mut paused) = (begin, Duration::ZERO);
        let mut patience = Patience::new(self.timeout, begin);
        let mut polls = 0u32;
        loop {
            let now = Instant::now();
            // Between two polls the rank sleeps for a small part of `NOT_RUNNING` at most.
            paused += Some(now - looked).filter(|gap| *gap > NOT_RUNNING).unwrap_or_default();
            looked = now;
            let mut done = 0;
            // SAFETY: `request` is valid until `done`; MPI_STATUS_IGNORE asks for no status.
            unsafe {
                let _turn = thread::turn();
                ffi::MPI_Test(request, &raw mut done, ffi::RSMPI_STATUS_IGNORE)
            };
            if done != 0 {
                watch.inspect(|(inspector, _)| {
                    inspector.end();
                    let inside = begin.elapsed();
                    inspector.presence().add_waits(Waits { inside, paused });
                });
                return Ok(pending.buffers);
            }
            let error = match &mut watch {
                Some((inspector, wait)) => inspector.look(wait),
                None if patience.look(now) => {
                    Some(timed_out(name, self.timeout.as_millis() as u64))
                }
                None => None,
            };
            if let Some(error) = error {
                // MPI may still write into the buffers: they are never freed.
                Box::leak(pending);
                return Err(error);
            }
            polls = polls.saturating_add(1);
            back_off(polls);
        }
    }
}

/// A waiting rank that has not polled for this long was not running.
const NOT_RUNNING: Duration = Duration::from_millis(50);

/// Yields at first, for latency; then sleeps, so that ranks that share cores get on.
fn back_off(polls: u32) {
    if polls < 2000 {
        std::thread::yield_now();
    } else {
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Counts and displacements as MPI wants them; bulk collectives keep them below 2^31.
fn counts_and_offsets(counts: &[usize]) -> Result<(Vec<i32>, Vec<i32>)> {
    let too_large = |_| Error::internal("a collective moves more than 2^31 bytes at once");
    let mut end = 0usize;
    let mut offsets = Vec::with_capacity(counts.len());
    for count in counts {
        offsets.push(i32::try_from(end).map_err(too_large)?);
        end += count;
    }
    let counts = counts.iter().map(|count| i32::try_from(*count).map_err(too_large));
    Ok((counts.collect::<Result<_>>()?, offsets))
}

impl Communicator for MpiCommunicator {
    fn rank(&self) -> Rank {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn host(&self) -> &str {
        &self.host
    }

    fn node(&self) -> Option<u32> {
        self.node
    }

    fn presence(&self) -> Option<&Arc<Presence>> {
        self.inspector.get().map(Inspector::presence)
    }

    /// MPI_Comm_split, MPI 3.1 section 6.4.2. The call has no deadline, so all ranks agree first,
    /// which has one, and no rank calls it unless all do. In collectives of the new communicator
    /// late ranks are not named.
    fn split(&self, color: u32) -> Result<Arc<dyn Communicator>> {
        let number = i32::try_from(color)
            .map_err(|_| Error::usage("a color is not below 2^31").with("color", color));
        let color = agree(self, number)?;
        let turn = thread::turn();
        let comm = self.comm.get().and_then(|comm| comm.split_by_color(Color::with_value(color)));
        let comm = comm.ok_or_else(|| Error::internal("MPI has divided a rank from all others"))?;
        let part = Self::of(comm, self.host.clone(), self.node, self.timeout);
        drop(turn);
        Ok(Arc::new(part))
    }

    /// MPI_Ibarrier, MPI 3.1 section 5.12.1.
    fn barrier(&self) -> Result<()> {
        self.collective(Collective::Barrier, (), |(), comm, request| {
            // SAFETY: no buffers; `request` lives until the collective is complete.
            unsafe { ffi::MPI_Ibarrier(comm, request) }
        })
    }

    /// MPI_Iallreduce, MPI 3.1 section 5.12.8. Integers: the order of addition does not matter.
    fn all_reduce_sum(&self, values: &mut [u64]) -> Result<()> {
        let buffers = (values.to_vec(), vec![0u64; values.len()]);
        let (_, sums) =
            self.collective(Collective::AllReduce, buffers, |(send, recv), comm, request| {
                // SAFETY: both buffers hold `len` u64 and are kept by `collective` until complete.
                unsafe {
                    ffi::MPI_Iallreduce(
                        send.as_ptr().cast(),
                        recv.as_mut_ptr().cast(),
                        send.len() as i32,
                        ffi::RSMPI_UINT64_T,
                        ffi::RSMPI_SUM,
                        comm,
                        request,
                    )
                }
            })?;
        values.copy_from_slice(&sums);
        Ok(())
    }

    /// MPI_Iallgatherv, MPI 3.1 section 5.12.5.
    fn all_gather_bytes(&self, mine: &[u8], counts: &[usize], all: &mut [u8]) -> Result<()> {
        let (counts, offsets) = counts_and_offsets(counts)?;
        let buffers = (mine.to_vec(), vec![0u8; all.len()], counts, offsets);
        let name = Collective::AllGather;
        let (_, recv, ..) = self.collective(name, buffers, |buffers, comm, request| {
            let (send, recv, counts, offsets) = buffers;
            // SAFETY: `recv` holds the sum of `counts` bytes; all four are kept by `collective`.
            unsafe {
                ffi::MPI_Iallgatherv(
                    send.as_ptr().cast(),
                    send.len() as i32,
                    ffi::RSMPI_UINT8_T,
                    recv.as_mut_ptr().cast(),
                    counts.as_ptr(),
                    offsets.as_ptr(),
                    ffi::RSMPI_UINT8_T,
                    comm,
                    request,
                )
            }
        })?;
        all.copy_from_slice(&recv);
        Ok(())
    }

    /// MPI_Ialltoallv, MPI 3.1 section 5.12.6.
    fn all_to_all_bytes(
        &self,
        send: &[u8],
        send_counts: &[usize],
        recv: &mut [u8],
        recv_counts: &[usize],
    ) -> Result<()> {
        let (send_layout, recv_layout) =
            (counts_and_offsets(send_counts)?, counts_and_offsets(recv_counts)?);
        // Also an empty buffer has a place of its own: Open MPI refuses two at the same address.
        let mut received = Vec::with_capacity(recv.len().max(1));
        received.resize(recv.len(), 0u8);
        let buffers = (send.to_vec(), send_layout, received, recv_layout);
        let (.., received, _) =
            self.collective(Collective::AllToAll, buffers, |buffers, comm, request| {
                let (send, send_layout, recv, recv_layout) = buffers;
                // SAFETY: both buffers hold the sum of their counts; all are kept by `collective`.
                unsafe {
                    ffi::MPI_Ialltoallv(
                        send.as_ptr().cast(),
                        send_layout.0.as_ptr(),
                        send_layout.1.as_ptr(),
                        ffi::RSMPI_UINT8_T,
                        recv.as_mut_ptr().cast(),
                        recv_layout.0.as_ptr(),
                        recv_layout.1.as_ptr(),
                        ffi::RSMPI_UINT8_T,
                        comm,
                        request,
                    )
                }
            })?;
        recv.copy_from_slice(&received);
        Ok(())
    }
}
