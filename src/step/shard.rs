//! This rank's shard: its files on the drives, the swapper that brings chunks into memory and back,
//! and their slots and checksums.

use std::sync::Arc;

use half::bf16;

use super::checksums::Checksums;
use super::chunk_io::ChunkIo;
use super::durable::Snapshot;
use super::parameters::ParameterSink;
use super::view::upper_halves;
use crate::error::{Error, Result};
use crate::optim::ParamElem;
use crate::plan::Plan;
use crate::storage::{ShardFiles, Slots};
use crate::swap::{Ending, ResidentChunk, Swapper, SweepKind};
use crate::timers::Timers;

/// An open shard.
pub(super) struct Shard {
    /// Declared first, so dropped first: nothing is in flight when the files go.
    pub swapper: Swapper,
    pub files: ShardFiles,
    pub plan: Plan,
    /// The update threads.
    pub pool: Arc<rayon::ThreadPool>,
    pub slots: Slots,
    pub checksums: Checksums,
    /// Address and length of the mapping that all buffers lie in.
    pub arena: (usize, usize),
}

impl Shard {
    /// Divides the shard for a sweep: chunks come from the swapper, and the rest accompanies them.
    pub fn for_sweep<'a>(
        &'a mut self,
        attempt: u64,
        snapshot: Option<&'a mut Snapshot>,
        timers: &'a mut Timers,
    ) -> (&'a mut Swapper, ChunkIo<'a>) {
        let Self { swapper, plan, pool, slots, checksums, .. } = self;
        (swapper, ChunkIo { plan, pool, attempt, slots, checksums, snapshot, timers })
    }

    /// Reads every chunk back, compares it with its checksums, and calls `look` with both; not
    /// agreed. `params` are those of the shard, for masters whose upper halves are not on the
    /// drives.
    ///
    /// # Errors
    /// Usage if those are needed and missing; errors of `look` and of the drives.
    pub fn read_all(
        &mut self,
        params: &[bf16],
        mut look: impl FnMut(&Plan, &ResidentChunk, &[u32]) -> Result<()>,
    ) -> Result<()> {
        let plan = &self.plan;
        let needs_params = plan.is_halved() && !plan.config().is_durable();
        if needs_params && params.len() as u64 != plan.partition().elems() {
            return Err(Error::usage(
                "the upper halves of the masters are not on the drives, but in the parameters",
            )
            .hint("hand in the bf16 parameters of the shard that the last step emitted"));
        }
        let mut sweep = self.swapper.sweep(SweepKind::Inspect, Ending::Written, &self.slots)?;
        while let Some(resident) = sweep.next_chunk()? {
            let index = resident.index();
            let extent = self.slots.read_extent(index);
            let uppers = upper_halves(plan, index, &plan.layout(index), &resident, params);
            self.checksums.verify(&self.pool, plan, index, extent, &resident, uppers)?;
            look(plan, &resident, self.checksums.of(index))?;
        }
        sweep.finish()
    }

    /// Checks that a sink of parameters fits the shard, and is of bf16 where parameters hold the
    /// upper halves of masters.
    ///
    /// # Errors
    /// Usage.
    pub fn check_params<S: ParameterSink + ?Sized>(&self, params: &S) -> Result<()> {
        params.check(self.plan.partition().elems())?;
        if self.plan.is_halved() && !S::Elem::IS_UPPER_HALF {
            return Err(Error::usage(
                "with the codec remainder16 the parameters hold the upper halves of the masters, \
                 so they must be bf16",
            )
            .hint("hand in bf16 parameters, or set codecs.master = \"fp32\""));
        }
        Ok(())
    }

    /// Checks that parameters that hold the upper halves of the masters are those that were emitted
    /// last. With other codecs there is nothing to compare.
    ///
    /// # Errors
    /// Usage, naming the first chunk whose parameters differ.
    pub fn verify_params<S: ParameterSink + ?Sized>(
        &self,
        params: &mut S,
        attempt: u64,
    ) -> Result<()> {
        if !self.plan.is_halved() {
            return Ok(());
        }
        if let Some(whole) = params.whole() {
            let halves = S::Elem::upper_halves(whole);
            return self.checksums.verify_parameters(&self.pool, &self.plan, attempt, halves);
        }
        for (index, chunk) in self.plan.partition().indexed_chunks() {
            let halves = S::Elem::upper_halves(params.section(chunk.in_shard()));
            self.checksums.verify_parameters_of(&self.plan, index, attempt, halves)?;
        }
        Ok(())
    }
}
