//! The thread-pool engine: pread and pwrite, the plainest thing that works everywhere. It is the
//! fallback where io_uring is refused, and the specification that the io_uring engine is tested
//! against.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use super::engine::{Direction, Engine, EngineOp, OpDone, Wait, Waker};

/// More threads than this gain nothing: each moves whole stripe units.
const THREADS_MAX: usize = 8;

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

#[derive(Default)]
struct Shared {
    inbox: Mutex<Inbox>,
    work: Condvar,
    outbox: Mutex<Outbox>,
    news: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing under these locks can panic half-way through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Waker for Shared {
    fn wake(&self) {
        lock(&self.outbox).woken = true;
        self.news.notify_one();
    }
}

pub(super) struct ThreadEngine {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl ThreadEngine {
    pub fn open(files: &[File], depth: usize) -> io::Result<Self> {
        let mut engine = Self { shared: Arc::default(), threads: Vec::new() };
        let files: Vec<File> = files.iter().map(File::try_clone).collect::<io::Result<_>>()?;
        let files: Arc<[File]> = files.into();
        for index in 0..depth.clamp(1, THREADS_MAX) {
            let (shared, files) = (Arc::clone(&engine.shared), Arc::clone(&files));
            let builder = std::thread::Builder::new().name(format!("optswap-pio{index}"));
            engine.threads.push(builder.spawn(move || work(&shared, &files))?);
        }
        Ok(engine)
    }
}

fn work(shared: &Shared, files: &[File]) {
    loop {
        let mut inbox = lock(&shared.inbox);
        let op = loop {
            match inbox.ops.pop_front() {
                Some(op) => break op,
                None if inbox.closed => return,
                None => inbox = shared.work.wait(inbox).unwrap_or_else(PoisonError::into_inner),
            }
        };
        drop(inbox);
        let result = execute(&op, &files[op.file as usize]);
        let result = result.map(|moved| moved as u32).map_err(|error| {
            // Errors of pread and pwrite always carry an errno.
            error.raw_os_error().unwrap_or(rustix::io::Errno::IO.raw_os_error())
        });
        lock(&shared.outbox).done.push(OpDone { id: op.id, result });
        shared.news.notify_one();
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
        lock(&self.shared.inbox).ops.extend(ops);
        self.shared.work.notify_all();
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
                let waited = self.shared.news.wait_timeout(outbox, deadline - now);
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
        lock(&self.shared.inbox).closed = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A worker cannot panic; there is nothing to report in a drop anyway.
            let _ = thread.join();
        }
    }
}
