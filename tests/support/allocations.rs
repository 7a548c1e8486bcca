//! An allocator that counts the bytes that are held: by the process, and by each thread, which
//! holds what it has allocated and not freed.
//!
//! A test includes this file by its path, since it makes the allocator that of the whole program.

#![allow(dead_code, reason = "every test file uses its own part")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicIsize, Ordering};

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

static OF_PROCESS: AtomicIsize = AtomicIsize::new(0);

thread_local! {
    static OF_THREAD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    OF_PROCESS.fetch_add(bytes, Ordering::Relaxed);
    // A thread that ends frees a little after its own values are gone.
    let held = OF_THREAD.try_with(|held| {
        held.set(held.get() + bytes);
        held.get()
    });
    let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.unwrap_or(0))));
}

// SAFETY: every call is passed on to the system's allocator as it came; counting allocates nothing,
// since the counters are constants at the start and have nothing to drop.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(memory, layout, size) }
    }
}

/// Bytes that the process holds.
pub fn held_by_process() -> isize {
    OF_PROCESS.load(Ordering::Relaxed)
}

/// What `work` returns, the bytes that this thread holds more after it, and how many more it has
/// held meanwhile.
pub fn counted<T>(work: impl FnOnce() -> T) -> (T, isize, isize) {
    let before = OF_THREAD.get();
    PEAK.set(before);
    let value = work();
    (value, OF_THREAD.get() - before, PEAK.get() - before)
}
