//! Handing the state over while steps go on: by snapshot, or by sharing the blocks of the files.

use std::fs::File;

use half::bf16;

use super::super::optimizer::SwappedOptimizer;
use super::super::view::upper_halves;
use super::snapshot::{ChunkSink, Snapshot};
use crate::coord::agree;
use crate::error::{Error, ErrorKind, Result};
use crate::optim::ParamElem;
use crate::units::{ChunkIndex, DriveIndex};

impl SwappedOptimizer {
    /// Begins a snapshot of the state as it is now. The following steps hand each chunk over before
    /// they change it, so that nothing is read twice. [`Self::finish_snapshot`] reads what is
    /// missing.
    ///
    /// # Errors
    /// Usage if one is under way.
    pub(crate) fn begin_snapshot(&mut self, sink: Box<dyn ChunkSink>) -> Result<()> {
        self.check_usable()?;
        if self.snapshot.is_some() {
            return Err(Error::usage("a snapshot is under way already"));
        }
        let chunks = self.shard.plan.partition().chunks().len();
        self.snapshot = Some(Snapshot::new(sink, chunks));
        Ok(())
    }

    /// Chunks of this rank that the snapshot still lacks; `None` if none is under way.
    pub(crate) fn snapshot_left(&self) -> Option<usize> {
        self.snapshot.as_ref().map(|snapshot| snapshot.left)
    }

    /// Forgets the snapshot under way.
    pub(crate) fn drop_snapshot(&mut self) {
        self.snapshot = None;
    }

    /// Collective: reads what the snapshot still lacks from the drives, and lets go of the sink.
    /// `params` are the parameters of the shard, in shard order, as they were emitted last. Only a
    /// scratch job with the codec remainder16 needs them, since they hold the upper halves of its
    /// masters; [`NO_PARAMETERS`](crate::NO_PARAMETERS) does for all others.
    ///
    /// # Errors
    /// Agreed: the sink's first failure, or that of a drive. Training may go on after the former.
    pub(crate) fn finish_snapshot<P: ParamElem>(&mut self, params: &[P]) -> Result<()> {
        let snapshot = self.snapshot.take();
        let read = snapshot
            .ok_or_else(|| Error::usage("no snapshot is under way"))
            .and_then(|snapshot| self.read_rest(snapshot, P::upper_halves(params)));
        agree(&*self.comm, read)
    }

    fn read_rest(&mut self, mut snapshot: Snapshot, params: &[bf16]) -> Result<()> {
        self.check_usable()?;
        if snapshot.left > 0 {
            self.read_all(params, |plan, resident, checksums| {
                let chunk = resident.index();
                let layout = plan.layout(chunk);
                let uppers = upper_halves(plan, chunk, &layout, resident, params);
                snapshot.offer(chunk, &layout, resident, uppers, checksums);
                snapshot.failure.take().map_or(Ok(()), Err)
            })?;
        }
        snapshot.failure.map_or(Ok(()), Err)
    }

    /// Whether blocks of all state files can be shared with a file.
    ///
    /// # Errors
    /// Unavailable: another file system, or one that does not share blocks.
    pub(crate) fn can_clone_to(&self, file: &File) -> Result<()> {
        let refused = |message: &str| Error::new(ErrorKind::Unavailable, message);
        let target =
            file_system_of(file).map_err(|errno| refused("no file system").because(errno))?;
        // XFS and btrfs, by the magic numbers of statfs(2).
        if ![0x5846_5342, 0x9123_683e].contains(&target.1) {
            return Err(refused("the checkpoint's file system does not share blocks"));
        }
        for drive in 0..self.shard.plan.config().drives.paths.len() {
            let state = self.shard.files.file(DriveIndex::from_index(drive));
            if file_system_of(state).ok() != Some(target) {
                return Err(refused("state files and checkpoint lie in different file systems"));
            }
        }
        Ok(())
    }

    /// Copies a chunk's extent, as it lies on the drives after [`Self::write_back`], to `offset` of
    /// a file in the same file system, sharing blocks where that can; gives its checksums.
    ///
    /// # Errors
    /// I/O: the file system does not copy from one file to the other.
    pub(crate) fn clone_chunk(
        &self,
        chunk: ChunkIndex,
        to: &File,
        offset: u64,
    ) -> Result<Vec<u32>> {
        self.check_usable()?;
        if self.shard.plan.layout(chunk) != self.shard.plan.saved_layout(chunk) {
            let halved = "the upper halves of the masters are not on the drives";
            return Err(Error::new(ErrorKind::Unavailable, halved));
        }
        let extent = self.shard.slots.read_extent(chunk);
        for segment in self.shard.plan.placement().segments(extent) {
            let (mut from, mut at) = (segment.file_offset, offset + segment.extent_offset as u64);
            let mut left = segment.len;
            while left > 0 {
                let file = self.shard.files.file(segment.drive);
                let (source, target) = (Some(&mut from), Some(&mut at));
                let copied = rustix::fs::copy_file_range(file, source, to, target, left);
                let copied = copied.map_err(|errno| {
                    Error::new(ErrorKind::Io, "the file system does not share blocks")
                        .because(std::io::Error::from(errno))
                })?;
                if copied == 0 {
                    return Err(Error::new(ErrorKind::Io, "a state file has been cut"));
                }
                left -= copied;
            }
        }
        Ok(self.shard.checksums.of(chunk).to_vec())
    }
}

/// The device of a file's file system, and the magic number of its kind.
fn file_system_of(file: &File) -> rustix::io::Result<(u64, u64)> {
    let device = rustix::fs::fstat(file)?.st_dev;
    let kind = rustix::fs::fstatfs(file)?.f_type as u64 & 0xffff_ffff;
    Ok((device, kind))
}
