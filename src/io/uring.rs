//! The io_uring engine: registered files and buffers, one issuer, batched submission.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::types::{Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use super::buffer::{Buffer, allocate_buffers};
use super::engine::{Direction, Engine, EngineOp, OpDone, Wait, Waker};

/// The id of the read that waits for the eventfd; operations count from zero.
const WAKE_ID: u64 = u64::MAX;

struct EventWaker {
    event: OwnedFd,
}

impl Waker for EventWaker {
    fn wake(&self) {
        // Fails only if the counter is about to overflow, and then a wake-up is pending anyway.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }
}

pub(super) struct UringEngine {
    ring: IoUring,
    waker: Arc<EventWaker>,
    /// The kernel writes the eventfd's counter here; boxed, so that it does not move.
    wake_count: Box<[u8; 8]>,
    wake_armed: bool,
    setup: &'static str,
    registered: bool,
}

/// Tries the set-up modes from the best to the plainest; older kernels refuse the first ones with
/// EINVAL.
fn build_ring(entries: u32) -> io::Result<(IoUring, &'static str)> {
    let deferred = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(entries)
        .map(|ring| (ring, "single issuer, deferred task run"));
    let cooperative = || {
        let ring = IoUring::builder().setup_coop_taskrun().build(entries);
        ring.map(|ring| (ring, "cooperative task run"))
    };
    let plain = || IoUring::builder().build(entries).map(|ring| (ring, "plain"));
    let is_old_kernel = |error: &io::Error| error.raw_os_error() == Some(22);
    match deferred {
        Err(error) if is_old_kernel(&error) => match cooperative() {
            Err(error) if is_old_kernel(&error) => plain(),
            result => result,
        },
        result => result,
    }
}

impl UringEngine {
    pub fn open(files: &[File], buffers: &[Buffer], depth: usize) -> io::Result<Self> {
        // One entry more for the wake-up read, so that the submission queue cannot be full.
        let (ring, setup) = build_ring(depth as u32 + 1)?;
        // Waits with a deadline need this feature of Linux 5.11.
        if !ring.params().is_feature_ext_arg() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "it cannot wait with a timeout",
            ));
        }
        let fds: Vec<_> = files.iter().map(AsRawFd::as_raw_fd).collect();
        if !fds.is_empty() {
            ring.submitter().register_files(&fds)?;
        }
        let registered = match register(&ring, buffers) {
            Ok(registered) => registered,
            Err(error) => {
                tracing::warn!(
                    "registered buffers refused ({error}), falling back to unregistered ones; \
                     raise the locked-memory limit (ulimit -l) to use them"
                );
                false
            }
        };
        let event = eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok(Self {
            ring,
            waker: Arc::new(EventWaker { event }),
            wake_count: Box::default(),
            wake_armed: false,
            setup,
            registered,
        })
    }

    fn entry(&self, op: &EngineOp) -> squeue::Entry {
        let file = Fixed(op.file);
        let entry = match (op.direction, self.registered) {
            (Direction::SwapIn, true) => {
                opcode::ReadFixed::new(file, op.memory, op.len, op.buffer_index as u16)
                    .offset(op.offset)
                    .build()
            }
            (Direction::SwapIn, false) => {
                opcode::Read::new(file, op.memory, op.len).offset(op.offset).build()
            }
            (Direction::SwapOut, true) => {
                opcode::WriteFixed::new(file, op.memory, op.len, op.buffer_index as u16)
                    .offset(op.offset)
                    .build()
            }
            (Direction::SwapOut, false) => {
                opcode::Write::new(file, op.memory, op.len).offset(op.offset).build()
            }
        };
        entry.user_data(op.id)
    }

    /// Queues the read that ends a wait when another thread calls `wake`.
    fn arm_wake(&mut self) {
        if self.wake_armed {
            return;
        }
        let event = io_uring::types::Fd(self.waker.event.as_fd().as_raw_fd());
        let read = opcode::Read::new(event, self.wake_count.as_mut_ptr(), 8);
        // SAFETY: `wake_count` is boxed and lives as long as the engine, whose drop waits for this
        // read; nobody else touches it.
        unsafe { self.push(&read.build().user_data(WAKE_ID)) };
        self.wake_armed = true;
    }

    /// # Safety
    /// As for [`Engine::submit`].
    unsafe fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: the caller keeps the operation's memory valid.
        let pushed = unsafe { self.ring.submission().push(entry) };
        // Depth + 1 entries, at most depth operations and one wake-up read: there is always room.
        assert!(pushed.is_ok(), "more operations in flight than the engine's depth");
    }

    fn collect(&mut self, done: &mut Vec<OpDone>) {
        for completion in self.ring.completion() {
            if completion.user_data() == WAKE_ID {
                self.wake_armed = false;
                continue;
            }
            // The kernel answers with a count or a negated errno.
            let result = u32::try_from(completion.result()).map_err(|_| -completion.result());
            done.push(OpDone { id: completion.user_data(), result });
        }
    }
}

/// Registers the buffers; false if there are none.
fn register(ring: &IoUring, buffers: &[Buffer]) -> io::Result<bool> {
    let describe = |buffer: &Buffer| libc_iovec(buffer);
    let vectors: Vec<_> = buffers.iter().map(describe).collect();
    if vectors.is_empty() {
        return Ok(false);
    }
    // SAFETY: the buffers' arena outlives the ring: `Transfers` holds the engine and all buffers
    // in flight, and dropping the engine waits for the ring to be idle; a trial submits nothing.
    unsafe { ring.submitter().register_buffers(&vectors) }.map(|()| true)
}

/// What the kernel allows, tried with a small ring that is closed afterwards.
#[derive(Debug)]
pub struct UringTrial {
    /// The set-up mode that was accepted.
    pub setup: &'static str,
    /// Whether a buffer of [`UringTrial::BUFFER_BYTES`] could be registered.
    pub registered: io::Result<()>,
}

impl UringTrial {
    /// Bytes that are locked during the trial.
    pub const BUFFER_BYTES: usize = 4 << 20;

    /// Tries io_uring as the engine would use it.
    ///
    /// # Errors
    /// The kernel's answer, if it refuses io_uring.
    pub fn run() -> io::Result<Self> {
        let buffers = allocate_buffers(1, Self::BUFFER_BYTES).map_err(io::Error::other)?;
        let (ring, setup) = build_ring(8)?;
        Ok(Self { setup, registered: register(&ring, &buffers).map(|_| ()) })
    }
}

fn libc_iovec(buffer: &Buffer) -> libc::iovec {
    libc::iovec { iov_base: buffer.as_ptr().cast(), iov_len: buffer.len() }
}

impl Engine for UringEngine {
    fn describe(&self) -> String {
        let buffers = if self.registered { "registered" } else { "unregistered" };
        format!("io_uring ({}; registered files, {buffers} buffers)", self.setup)
    }

    unsafe fn submit(&mut self, ops: &[EngineOp]) -> io::Result<()> {
        for op in ops {
            let entry = self.entry(op);
            // SAFETY: our caller's promise, passed on.
            unsafe { self.push(&entry) };
        }
        // The call that waits for results submits them.
        Ok(())
    }

    fn reap(&mut self, wait: Wait, done: &mut Vec<OpDone>) -> io::Result<()> {
        let (before, was_armed) = (done.len(), self.wake_armed);
        self.collect(done);
        // A wake-up that is the only result also ends the wait: arming again first would lose it.
        let was_woken = was_armed && !self.wake_armed;
        let has_results = done.len() > before || was_woken;
        if has_results && self.ring.submission().is_empty() {
            return Ok(());
        }
        // With deferred task run, results appear only in a call that waits, if for no time at all.
        let (count, deadline) = match wait {
            _ if has_results => (0, None),
            Wait::No => (1, None),
            Wait::Until(deadline) => (1, Some(deadline)),
            Wait::Several(count, deadline) => (count, Some(deadline)),
        };
        let now = Instant::now();
        let left = deadline.map_or(Duration::ZERO, |it| it.saturating_duration_since(now));
        self.arm_wake();
        let timeout = Timespec::from(left);
        let arguments = SubmitArgs::new().timespec(&timeout);
        // Entries that are not accepted now stay queued for the next call.
        match self.ring.submitter().submit_with_args(count, &arguments) {
            Err(error) if !is_transient(&error) => return Err(error),
            _ => {}
        }
        self.collect(done);
        Ok(())
    }

    fn waker(&self) -> Arc<dyn Waker> {
        Arc::clone(&self.waker) as Arc<dyn Waker>
    }
}

/// Answers that only mean "ask again": the deadline has passed (ETIME), a signal came (EINTR),
/// results must be collected first (EBUSY), memory is short for a moment (EAGAIN).
fn is_transient(error: &io::Error) -> bool {
    let transient = [Errno::TIME, Errno::INTR, Errno::BUSY, Errno::AGAIN];
    transient.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

impl Drop for UringEngine {
    fn drop(&mut self) {
        // The wake-up read is the only operation that `Transfers` does not wait for. It must end
        // before `wake_count` is freed.
        let mut ignored = Vec::new();
        while self.wake_armed {
            self.waker.wake();
            if self.ring.submit_and_wait(1).is_err_and(|error| !is_transient(&error)) {
                // The kernel may still write there: leak those eight bytes.
                std::mem::forget(std::mem::take(&mut self.wake_count));
                return;
            }
            self.collect(&mut ignored);
        }
        // Releases the files, and with them their locks, now: the kernel frees a closed ring later,
        // on a busy machine seconds later.
        let _ = self.ring.submitter().unregister_files();
    }
}
