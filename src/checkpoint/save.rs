//! Writing one shard's data: chunks in any order, by a thread of its own, so that a step that hands
//! them over goes on while they are written.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use half::bf16;

use super::Progress;
use super::index::{ChunkEntry, ShardIndex};
use super::places::ShardEntry;
use super::private::open_private;
use crate::coord::Pulse;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::Plan;
use crate::step::ChunkSink;
use crate::storage::{check_file_size, overwrite_in_place};
use crate::timers::{CLOSING, join_within};
use crate::units::ChunkIndex;

/// After so many bytes, they are flushed.
const FLUSH_BYTES: usize = 256 << 20;

/// The data file of one shard while it is written. If the writer is dropped before a manifest names
/// the file, the file is removed.
pub(super) struct ShardWriter {
    path: PathBuf,
    index: ShardIndex,
    entry: ShardEntry,
    file: File,
    thread: Option<WriterThread>,
    is_finished: bool,
}

/// At most two buffers: one that is being written and one that is being filled or waits.
struct WriterThread {
    /// `None` when all has been handed over: then the thread flushes the file and ends.
    filled: Option<SyncSender<(u64, Vec<u8>)>>,
    empty: Receiver<Vec<u8>>,
    buffers_left: usize,
    handle: JoinHandle<std::io::Result<()>>,
}

impl ShardWriter {
    /// Creates the file for the plan's shard, which is in pieces unless there are none of them.
    pub fn create(
        path: PathBuf,
        generation: &str,
        plan: &Plan,
        pieces: Vec<[u64; 2]>,
        user_blob: &[u8],
        pulse: Pulse,
    ) -> Result<Self> {
        let (mut bytes, partition) = (0, plan.partition());
        let flat_start = if pieces.is_empty() { partition.flat().start } else { 0 };
        let chunks = partition.chunks().iter().enumerate().map(|(chunk, it)| {
            let offset = bytes;
            bytes += plan.saved_layout(ChunkIndex::from_index(chunk)).bytes();
            ChunkEntry {
                flat_start: flat_start + it.shard_offset,
                elems: it.elems,
                padded_elems: it.padded_elems,
                offset,
                checksums: Vec::new(),
            }
        });
        let index = ShardIndex {
            generation: generation.to_owned(),
            chunks: chunks.collect(),
            user_blob: user_blob.to_vec(),
        };
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let entry = ShardEntry {
            file: name.unwrap_or_default(),
            flat_start,
            elems: partition.elems(),
            bytes,
            pieces,
        };
        let refused = |error: std::io::Error| {
            Error::new(ErrorKind::CannotCreate, "a file of a checkpoint cannot be created")
                .with("path", path.display())
                .because(error)
        };
        check_file_size(&path, bytes)?;
        let file = open_private(&path, |options| options.write(true).create_new(true));
        let file = file.map_err(refused)?;
        // Padding of upper halves is never written.
        file.set_len(bytes).map_err(refused)?;
        let thread =
            WriterThread::start(file.try_clone().map_err(refused)?, pulse).map_err(refused)?;
        Ok(Self { path, index, entry, file, thread: Some(thread), is_finished: false })
    }

    /// The open file, for a copy within the file system.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Makes the file, of which nothing is written so far, such that it can share blocks with state
    /// files: btrfs shares them only between files that are marked alike.
    pub fn mark_as_state_files(&self) -> std::io::Result<()> {
        self.file.set_len(0)?;
        overwrite_in_place(&self.file, &self.path);
        self.file.set_len(self.entry.bytes)
    }

    /// Where a chunk's extent begins.
    pub fn offset(&self, chunk: ChunkIndex) -> u64 {
        self.index.chunks[chunk.index()].offset
    }

    /// Sets the checksums that a chunk must have.
    pub fn set_checksums(&mut self, chunk: ChunkIndex, checksums: &[u32]) {
        self.index.chunks[chunk.index()].checksums = checksums.to_vec();
    }

    fn put(&mut self, chunk: ChunkIndex, state: &[u8], uppers: &[u8]) -> Result<()> {
        let offset = self.offset(chunk);
        let thread = self.thread.as_mut().ok_or_else(|| Error::internal("the save has ended"))?;
        if thread.put(offset, state, uppers) {
            return Ok(());
        }
        // The thread has ended before its time: it failed.
        self.join()
    }

    fn join(&mut self) -> Result<()> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        drop(thread.filled);
        let written = thread.handle.join();
        let written = written.unwrap_or_else(|_| Err(std::io::Error::other("a thread panicked")));
        written.map_err(|error| {
            Error::new(ErrorKind::CannotCreate, "a checkpoint cannot be written")
                .with("path", self.path.display())
                .because(error)
                .hint("training goes on without it; free space where checkpoints go")
        })
    }

    /// Whether the thread is still writing, after everything has been handed over.
    pub fn is_writing(&mut self) -> bool {
        let Some(thread) = &mut self.thread else { return false };
        thread.filled = None;
        !thread.handle.is_finished()
    }

    /// Waits until everything is in the file and durable.
    pub fn finish(&mut self) -> Result<ShardEntry> {
        self.join()?;
        if self.index.chunks.iter().any(|chunk| chunk.checksums.is_empty()) {
            return Err(Error::internal("a checkpoint lacks a chunk"));
        }
        self.index.write(&self.path)?;
        Ok(self.entry.clone())
    }

    /// Whether a manifest names this file, so that it stays.
    pub fn keep(&mut self, keep: bool) {
        self.is_finished = keep;
    }
}

impl Drop for ShardWriter {
    fn drop(&mut self) {
        // A writer that is dropped unfinished has failed already, so an error here adds nothing.
        // Its file system may hang, and the error that ends the job is still to be said.
        if let Some(thread) = self.thread.take() {
            drop(thread.filled);
            if join_within(thread.handle, CLOSING).is_none() {
                let path = self.path.display();
                tracing::warn!("a checkpoint is not written, and left behind: {path}");
                return;
            }
        }
        if !self.is_finished {
            let _ = std::fs::remove_file(&self.path);
            let _ = std::fs::remove_file(ShardIndex::path(&self.path));
        }
    }
}

impl WriterThread {
    fn start(file: File, pulse: Pulse) -> std::io::Result<Self> {
        let (filled, to_write) = sync_channel::<(u64, Vec<u8>)>(1);
        let (written, empty) = channel();
        let work = move || {
            let mut unflushed = 0;
            for (offset, buffer) in to_write {
                file.write_all_at(&buffer, offset)?;
                unflushed += buffer.len();
                // At the end nothing receives the buffer any more.
                let _ = written.send(buffer);
                pulse.beat();
                // The last flush has little left, so that nobody waits long without a sign of life.
                if unflushed > FLUSH_BYTES {
                    file.sync_data()?;
                    unflushed = 0;
                    pulse.beat();
                }
            }
            file.sync_all()?;
            pulse.beat();
            Ok(())
        };
        let handle = std::thread::Builder::new().name("optswap-save".to_owned()).spawn(work)?;
        Ok(Self { filled: Some(filled), empty, buffers_left: 2, handle })
    }

    /// Hands bytes over to the thread; returns false if it has ended.
    fn put(&mut self, offset: u64, state: &[u8], uppers: &[u8]) -> bool {
        let mut buffer = if self.buffers_left > 0 {
            self.buffers_left -= 1;
            Vec::with_capacity(state.len() + uppers.len())
        } else {
            let Ok(buffer) = self.empty.recv() else { return false };
            buffer
        };
        buffer.clear();
        buffer.extend_from_slice(state);
        buffer.extend_from_slice(uppers);
        self.filled.as_ref().is_some_and(|filled| filled.send((offset, buffer)).is_ok())
    }
}

/// The writer as the end of a snapshot, shared with whoever finishes the checkpoint.
pub(super) struct WriterSink {
    pub writer: Arc<Mutex<ShardWriter>>,
    pub progress: Option<Progress>,
    pub put_bytes: u64,
}

impl ChunkSink for WriterSink {
    fn put(
        &mut self,
        chunk: ChunkIndex,
        state: &[u8],
        uppers: &[bf16],
        checksums: &[u32],
    ) -> Result<()> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.set_checksums(chunk, checksums);
        writer.put(chunk, state, bytemuck::cast_slice(uppers))?;
        self.put_bytes += (state.len() + 2 * uppers.len()) as u64;
        if let Some(progress) = &self.progress {
            progress(self.put_bytes, writer.entry.bytes);
        }
        Ok(())
    }
}
