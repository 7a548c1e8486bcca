//! Chunks that are lent to the caller by handle. Handles are values without lifetimes, for callers
//! in other languages, so each use checks them: a handle that is no longer valid, or never was, is
//! an error that says so.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::{Error, Result};
use crate::units::ChunkIndex;

/// A chunk that is swapped in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChunkHandle {
    chunk: ChunkIndex,
    /// The number of the table, unique in this process.
    owner: u32,
    /// Counts the chunks that the table has lent, from 1.
    generation: u64,
}

impl ChunkHandle {
    /// Which chunk it is.
    pub fn chunk(self) -> ChunkIndex {
        self.chunk
    }

    /// The handle as numbers, for other languages.
    pub fn to_raw(self) -> [u64; 2] {
        [u64::from(self.owner) << 32 | u64::from(self.chunk.0), self.generation]
    }

    /// The handle of these numbers. Any numbers are safe: those of no valid handle are refused when
    /// the handle is used.
    pub fn from_raw([which, generation]: [u64; 2]) -> Self {
        Self { chunk: ChunkIndex(which as u32), owner: (which >> 32) as u32, generation }
    }
}

impl fmt::Display for ChunkHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, generation {}, optimizer {}", self.chunk, self.generation, self.owner)
    }
}

/// What the caller has of one swapper, chunk by chunk.
#[derive(Debug)]
pub struct LentChunks<T> {
    owner: u32,
    /// How many chunks there are.
    chunks: usize,
    /// The generation of the last handle.
    newest: u64,
    /// The chunks that the caller has.
    lent: BTreeMap<ChunkIndex, Lent<T>>,
}

/// A chunk that the caller has.
#[derive(Debug)]
struct Lent<T> {
    generation: u64,
    content: T,
}

impl<T> LentChunks<T> {
    /// A table of so many chunks, none of which is lent.
    pub fn new(chunks: usize) -> Self {
        static OWNERS: AtomicU32 = AtomicU32::new(1);
        let owner = OWNERS.fetch_add(1, Ordering::Relaxed);
        Self { owner, chunks, newest: 0, lent: BTreeMap::new() }
    }

    /// Lends a chunk under a new handle.
    ///
    /// # Errors
    /// Internal if the caller has it already, or if there is no such chunk.
    pub fn lend(&mut self, chunk: ChunkIndex, content: T) -> Result<ChunkHandle> {
        if chunk.index() >= self.chunks || self.lent.contains_key(&chunk) {
            return Err(Error::internal("a chunk is lent twice"));
        }
        self.newest += 1;
        self.lent.insert(chunk, Lent { generation: self.newest, content });
        Ok(self.handle(chunk, self.newest))
    }

    /// What a handle stands for.
    ///
    /// # Errors
    /// Usage if the handle is of another table, was never given out, or is not valid any more.
    pub fn get_mut(&mut self, handle: ChunkHandle) -> Result<&mut T> {
        self.check(handle)?;
        let lent = self.lent.get_mut(&handle.chunk).ok_or_else(|| stale(handle))?;
        Ok(&mut lent.content)
    }

    /// Takes a chunk back: its handle is not valid any more.
    ///
    /// # Errors
    /// Usage if the handle is of another table, was never given out, or is not valid any more;
    /// nothing has changed then.
    pub fn take(&mut self, handle: ChunkHandle) -> Result<T> {
        self.check(handle)?;
        let lent = self.lent.remove(&handle.chunk).ok_or_else(|| stale(handle))?;
        Ok(lent.content)
    }

    /// Takes all chunks back.
    pub fn clear(&mut self) {
        self.lent.clear();
    }

    /// How many chunks the caller has.
    pub fn count(&self) -> usize {
        self.lent.len()
    }

    /// What the caller has, in the order of chunks.
    pub fn contents(&self) -> impl Iterator<Item = &T> {
        self.lent.values().map(|lent| &lent.content)
    }

    /// The handles that are valid, in the order of chunks.
    pub fn handles(&self) -> impl Iterator<Item = ChunkHandle> + '_ {
        self.lent.iter().map(|(chunk, lent)| self.handle(*chunk, lent.generation))
    }

    fn handle(&self, chunk: ChunkIndex, generation: u64) -> ChunkHandle {
        ChunkHandle { chunk, owner: self.owner, generation }
    }

    fn check(&self, handle: ChunkHandle) -> Result<()> {
        if handle.owner != self.owner {
            return Err(wrong("a chunk's handle is of another optimizer", handle)
                .with("this optimizer", self.owner));
        }
        let was_given =
            handle.chunk.index() < self.chunks && (1..=self.newest).contains(&handle.generation);
        if !was_given {
            return Err(wrong("a chunk's handle stands for nothing that was swapped in", handle));
        }
        let lent = self.lent.get(&handle.chunk);
        if lent.is_none_or(|lent| lent.generation != handle.generation) {
            return Err(stale(handle));
        }
        Ok(())
    }
}

fn stale(handle: ChunkHandle) -> Error {
    wrong("a chunk's handle is stale: it was swapped out before", handle)
}

fn wrong(message: &str, handle: ChunkHandle) -> Error {
    Error::usage(message).with("handle", handle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_are_valid_once_and_for_their_own_chunk_alone() {
        let (mut mine, mut other) = (LentChunks::new(2), LentChunks::new(2));
        let first = mine.lend(ChunkIndex(1), "first").unwrap();
        assert_eq!(ChunkHandle::from_raw(first.to_raw()), first);
        assert_eq!(mine.get_mut(first).unwrap(), &"first");
        assert!(mine.lend(ChunkIndex(1), "again").is_err());
        assert_eq!((mine.count(), mine.handles().collect::<Vec<_>>()), (1, vec![first]));

        let mut refusal = |handle| mine.get_mut(handle).unwrap_err().to_string();
        let foreign = other.lend(ChunkIndex(1), "other").unwrap();
        assert!(refusal(foreign).contains("another optimizer"));
        let [which, generation] = first.to_raw();
        for never in [[which, 0], [which, generation + 1], [which + 1, generation]] {
            let text = refusal(ChunkHandle::from_raw(never));
            assert!(text.contains("nothing that was swapped in"), "{text}");
        }
        assert!(refusal(ChunkHandle::from_raw([which - 1, generation])).contains("stale"));

        assert_eq!(mine.take(first).unwrap(), "first");
        assert!(mine.take(first).unwrap_err().to_string().contains("stale"));
        let second = mine.lend(ChunkIndex(1), "second").unwrap();
        assert!(mine.take(first).unwrap_err().to_string().contains("generation 1"));
        assert_eq!(mine.get_mut(second).unwrap(), &"second");
        mine.clear();
        assert!(mine.get_mut(second).is_err());
    }
}
