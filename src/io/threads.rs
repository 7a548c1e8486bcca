//! The thread-pool engine: pread and pwrite, which work everywhere. It is the fallback where
//! io_uring is refused, and the io_uring engine is tested against it.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use super::engine::{Direction, Engine, EngineOp, OpDone, Wait, Waker};

/// More threads than this on one drive gain nothing, since each moves whole stripe units.
const THREADS_PER_FILE_MAX: usize = 8;
/// The most threads of all drives together, unless drives would have fewer than two each.
const THREADS_MAX: usize = 16;

#[derive(Default)]
struct Inbox {
    ops: VecDeque<EngineOp>,
    closed: bool,
}

#[derive(Default)]
struct Outbox {
    done: Vec<OpDone>,
    woken: bool,
}

/// The queue of one file. Each file has threads of its own, so that a slow drive does not delay the
/// others.
#[derive(Default)]
struct FileQueue {
    inbox: Mutex<Inbox>,
    work: Condvar,
}

#[derive(Default)]
struct Shared {
    queues: Vec<FileQueue>,
    outbox: Mutex<Outbox>,
    changed: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code can panic while it holds these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Waker for Shared {
    fn wake(&self) {
        lock(&self.outbox).woken = true;
        self.changed.notify_one();
    }
}

pub(super) struct ThreadEngine {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl ThreadEngine {
    pub fn open(files: &[File], depth: usize) -> io::Result<Self> {
        let queues = files.iter().map(|_| FileQueue::default()).collect();
        let shared = Arc::new(Shared { queues, ..Shared::default() });
        let mut engine = Self { shared, threads: Vec::new() };
        let per_file = (THREADS_MAX / files.len().max(1)).clamp(2, THREADS_PER_FILE_MAX);
        for (number, file) in files.iter().enumerate() {
            for _ in 0..per_file.min(depth.max(1)) {
                let (shared, file) = (Arc::clone(&engine.shared), file.try_clone()?);
                let name = format!("optswap-pio{}", engine.threads.len());
                let builder = std::thread::Builder::new().name(name);
                engine.threads.push(builder.spawn(move || work(&shared, number, &file))?);
            }
        }
        Ok(engine)
    }
}

fn work(shared: &Shared, number: usize, file: &File) {
    let queue = &shared.queues[number];
    loop {
        let mut inbox = lock(&queue.inbox);
        let op = loop {
            match inbox.ops.pop_front() {
                Some(op) => break op,
                None if inbox.closed => return,
                None => inbox = queue.work.wait(inbox).unwrap_or_else(PoisonError::into_inner),
            }
        };
        drop(inbox);
        let result = execute(&op, file);
        let result = result.map(|moved| moved as u32).map_err(|error| {
            // Errors of pread and pwrite always carry an errno.
            error.raw_os_error().unwrap_or(rustix::io::Errno::IO.raw_os_error())
        });
        lock(&shared.outbox).done.push(OpDone { id: op.id, result });
        shared.changed.notify_one();
    }
}

fn execute(op: &EngineOp, file: &File) -> io::Result<usize> {
    let len = op.len as usize;
    match op.direction {
        Direction::SwapIn => {
            // SAFETY: valid and ours alone until the result is reaped (contract of `submit`).
            let memory = unsafe { std::slice::from_raw_parts_mut(op.memory, len) };
            file.read_at(memory, op.offset)
        }
        Direction::SwapOut => {
            // SAFETY: valid and unchanged until the result is reaped (contract of `submit`).
            let memory = unsafe { std::slice::from_raw_parts(op.memory, len) };
            file.write_at(memory, op.offset)
        }
    }
}

impl Engine for ThreadEngine {
    fn describe(&self) -> String {
        format!("threads ({} with pread and pwrite)", self.threads.len())
    }

    unsafe fn submit(&mut self, ops: &[EngineOp]) -> io::Result<()> {
        for op in ops {
            let queue = &self.shared.queues[op.file as usize];
            lock(&queue.inbox).ops.push_back(*op);
            queue.work.notify_one();
        }
        Ok(())
    }

    fn reap(&mut self, wait: Wait, done: &mut Vec<OpDone>) -> io::Result<()> {
        let mut outbox = lock(&self.shared.outbox);
        if let Wait::Until(deadline) | Wait::Several(_, deadline) = wait {
            while outbox.done.is_empty() && !outbox.woken {
                let now = Instant::now();
                if now >= deadline {
                    break;
                }
                let waited = self.shared.changed.wait_timeout(outbox, deadline - now);
                outbox = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            outbox.woken = false;
        }
        done.append(&mut outbox.done);
        Ok(())
    }

    fn waker(&self) -> Arc<dyn Waker> {
        Arc::clone(&self.shared) as Arc<dyn Waker>
    }
}

impl Drop for ThreadEngine {
    fn drop(&mut self) {
        for queue in &self.shared.queues {
            lock(&queue.inbox).closed = true;
            queue.work.notify_all();
        }
        for thread in self.threads.drain(..) {
            // A worker cannot panic, and a drop could not report it.
            let _ = thread.join();
        }
    }
}
