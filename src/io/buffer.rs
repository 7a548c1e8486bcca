//! Aligned memory for direct I/O: one mapping, cut into buffers that are moved by value.

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::error::{Error, ErrorKind, Result};
use crate::units::Bytes;

/// The usual size of a huge page.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// A private anonymous mapping, page aligned and zeroed.
#[derive(Debug)]
struct Arena {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the arena is plain memory without thread affinity; it gives no access by itself, only
// through `Buffer`s, whose ranges are disjoint (established in `allocate_buffers`).
unsafe impl Send for Arena {}
// SAFETY: as above; a shared reference to an arena allows nothing but knowing its base and length.
unsafe impl Sync for Arena {}

impl Arena {
    fn map(len: usize) -> std::io::Result<Self> {
        // Reserved huge pages, if there are enough; otherwise those that the kernel makes on
        // advice.
        let reserved = if len.is_multiple_of(HUGE_PAGE_BYTES) {
            map_anonymous(len, MapFlags::HUGETLB)
        } else {
            Err(rustix::io::Errno::INVAL)
        };
        let pages = if reserved.is_ok() { "reserved huge pages" } else { "huge pages on advice" };
        let base = reserved.or_else(|_| map_anonymous(len, MapFlags::empty()))?;
        tracing::info!("I/O buffers: {} in {pages}", Bytes(len as u64).human());
        for advice in [Advice::LinuxHugepage, Advice::LinuxDontFork] {
            // Only advice: huge pages make registration cheap, and a forked child must not hold
            // memory that the kernel writes into. A kernel without either still works.
            // SAFETY: the range was mapped above and neither advice changes its contents.
            let _ = unsafe { rustix::mm::madvise(base, len, advice) };
        }
        let base = NonNull::new(base.cast()).ok_or(std::io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, len })
    }
}

fn map_anonymous(len: usize, more: MapFlags) -> rustix::io::Result<*mut std::ffi::c_void> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    let flags = MapFlags::PRIVATE | more;
    // SAFETY: a new private anonymous mapping at an address of the kernel's choice aliases nothing.
    unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, protection, flags) }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this base and length; every `Buffer` holds an `Arc` of the
        // arena, so none is left.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// One buffer: exclusive access to its own range of the arena. It is moved and never copied, so
/// that only its holder can access the memory.
#[derive(Debug)]
pub struct Buffer {
    arena: Arc<Arena>,
    index: u32,
    offset: usize,
    len: usize,
}

/// Maps memory for `count` buffers of `bytes` each; `bytes` is a multiple of 4,096.
///
/// # Errors
/// Unavailable if the system refuses the memory.
pub fn allocate_buffers(count: usize, bytes: usize) -> Result<Vec<Buffer>> {
    allocate_sized(&[(count, bytes)])
}

/// Maps memory for several numbers of buffers of several sizes, in one mapping and in this order.
/// Each size in bytes is a multiple of 4,096.
///
/// # Errors
/// Unavailable if the system refuses the memory.
pub fn allocate_sized(sizes: &[(usize, usize)]) -> Result<Vec<Buffer>> {
    let lens = sizes.iter().flat_map(|(count, bytes)| std::iter::repeat_n(*bytes, *count));
    let lens: Vec<usize> = lens.filter(|len| *len > 0).collect();
    assert!(lens.iter().all(|len| len.is_multiple_of(4096)), "buffers are whole sectors");
    let total = lens.iter().sum();
    if total == 0 {
        return Ok(Vec::new());
    }
    let arena = Arena::map(total).map_err(|error| {
        Error::new(ErrorKind::Unavailable, "the system refuses memory for I/O buffers")
            .with("asked for", Bytes(total as u64).human())
            .because(error)
            .hint(
                "lower memory_budget, or give the job more memory: its control group, or the \
                 process's own limits (ulimit -v, ulimit -d)",
            )
    })?;
    let arena = Arc::new(arena);
    let mut end = 0;
    // Disjoint ranges, one buffer each: the invariant that every access below relies on.
    let buffer = |(index, len): (usize, usize)| {
        let offset = end;
        end += len;
        Buffer { arena: Arc::clone(&arena), index: index as u32, offset, len }
    };
    Ok(lens.into_iter().enumerate().map(buffer).collect())
}

impl Buffer {
    /// The buffer's number among those allocated together, for registration with the kernel.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Address and length in bytes of the mapping that this buffer and its neighbours lie in.
    pub fn arena(&self) -> (usize, usize) {
        (self.arena.base.as_ptr() as usize, self.arena.len)
    }

    /// The address of the buffer's first byte. The pointer is not bound to a borrow: its user must
    /// keep the buffer and not access it otherwise, as [`super::Transfers`] does.
    pub(super) fn as_ptr(&self) -> *mut u8 {
        // SAFETY: `offset + len` is within the arena (established in `allocate_buffers`).
        unsafe { self.arena.base.as_ptr().add(self.offset) }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the range is mapped, initialised (zeroed by the kernel) and only reachable
        // through this buffer; while the kernel uses it, `Transfers` holds the buffer and does not
        // dereference it.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.as_ptr(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_zeroed_and_disjoint() {
        let mut buffers = allocate_buffers(3, 8192).unwrap();
        for (value, buffer) in buffers.iter_mut().enumerate() {
            assert_eq!(buffer.as_ptr().align_offset(4096), 0);
            assert!(buffer.iter().all(|byte| *byte == 0));
            buffer.fill(value as u8 + 1);
        }
        assert!(
            buffers.iter().enumerate().all(|(value, b)| b.iter().all(|x| *x == value as u8 + 1))
        );
        assert!(allocate_buffers(0, 4096).unwrap().is_empty());
        let sized = allocate_sized(&[(2, 8192), (0, 4096), (1, 4096)]).unwrap();
        let seen: Vec<_> = sized.iter().map(|it| (it.index(), it.offset, it.len())).collect();
        assert_eq!(seen, [(0, 0, 8192), (1, 8192, 8192), (2, 16384, 4096)]);
    }
}
