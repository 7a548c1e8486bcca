//! What a step reads from the store.

use std::any::{TypeId, type_name};
use std::borrow::Cow;

use half::bf16;

use super::super::accumulate::checksum_of;
use super::super::given::{Fragment, ShardGradients, missing_gradient, zeros_for};
use super::GradientStore;
use crate::config::{AccumulateIn, MissingGradient, VerifyChecksums};
use crate::error::{Error, ErrorKind, Result};
use crate::optim::{BlockNorm, GradElem};
use crate::plan::Plan;
use crate::units::{ChunkIndex, ParamIndex};

impl GradientStore {
    /// Checks that every parameter has a gradient, if `gradients.missing` demands it.
    ///
    /// # Errors
    /// Usage, naming the first.
    pub fn check_missing(&self, plan: &Plan) -> Result<()> {
        if plan.config().gradients.missing != MissingGradient::Error {
            return Ok(());
        }
        match self.coverage.params().find(|(param, _)| !self.coverage.has_gradient(*param)) {
            None => Ok(()),
            Some((param, share)) => Err(missing_gradient(plan.inventory(), param, share)),
        }
    }

    /// Checks that sums are kept in the format `A`.
    ///
    /// # Errors
    /// Usage, naming the setting.
    pub fn check_format<A: GradElem>(&self) -> Result<()> {
        let (kept, is_kept) = match self.format {
            AccumulateIn::F32 => ("f32", TypeId::of::<A>() == TypeId::of::<f32>()),
            AccumulateIn::Bf16 => ("bf16", TypeId::of::<A>() == TypeId::of::<bf16>()),
        };
        if is_kept {
            return Ok(());
        }
        Err(Error::usage("an update asks for gradients in another format than they are kept in")
            .with("asked for", type_name::<A>())
            .with("gradients.accumulate_in", kept)
            .hint("begin it with that type, or set gradients.accumulate_in"))
    }

    /// Whether any parameter in a chunk has a gradient, so that it is updated.
    pub fn has_gradient(&self, plan: &Plan, chunk: ChunkIndex) -> bool {
        let has_all = plan.config().gradients.missing == MissingGradient::Zero;
        let mut runs = plan.partition().runs_of(chunk).iter();
        runs.any(|run| has_all || self.coverage.has_gradient(run.param))
    }

    /// Whether the gradient of a chunk comes from the drives.
    pub fn is_spilled(&self, chunk: ChunkIndex) -> bool {
        self.sums.get(chunk.index()).is_some_and(|sums| sums.is_spilled)
    }

    /// Norm and overflows of all gradients. They must have been flushed.
    pub fn norm(&self) -> BlockNorm {
        let mut all = BlockNorm::default();
        let norms = self.sums.iter().filter_map(|sums| sums.norm.as_ref());
        norms.for_each(|norm| all.merge(norm.unpacked()));
        all
    }

    /// The parameters that are updated, each once, in order.
    pub fn params(&self, plan: &Plan) -> Vec<ParamIndex> {
        let has_all = plan.config().gradients.missing == MissingGradient::Zero;
        let params = self.coverage.params().map(|(param, _)| param);
        params.filter(|param| has_all || self.coverage.has_gradient(*param)).collect()
    }

    /// The gradients of one chunk; `spilled` is what came with it from the drives.
    ///
    /// # Errors
    /// Internal if that did not come although it was spilled.
    pub fn of_chunk<'s, A: GradElem>(
        &'s self,
        plan: &Plan,
        chunk: ChunkIndex,
        spilled: &'s [u8],
    ) -> Result<Cow<'s, ShardGradients<'s, A>>> {
        let sums = &self.sums[chunk.index()];
        let values: &[A] = match (&sums.buffer, sums.is_spilled) {
            (Some(buffer), _) if sums.is_touched => bytemuck::cast_slice(buffer),
            (_, true) if spilled.is_empty() => {
                return Err(Error::internal("a spilled gradient did not come with its chunk")
                    .with("chunk", chunk));
            }
            (_, true) => bytemuck::cast_slice(spilled),
            _ => &[],
        };
        let partition = plan.partition();
        let at = partition.chunk(chunk);
        let has_zeros = plan.config().gradients.missing == MissingGradient::Zero;
        let mut fragments = Vec::new();
        for run in partition.runs_of(chunk) {
            if self.coverage.has_gradient(run.param) {
                let (param, shard_offset) = (run.param, run.shard_offset as usize);
                let grad = &values[run.in_chunk(at)];
                fragments.push(Fragment { param, shard_offset, grad });
            } else if has_zeros {
                fragments.extend(zeros_for(run));
            }
        }
        Ok(Cow::Owned(ShardGradients::of_fragments(fragments)))
    }

    /// Checks that what came back from the drives is what was spilled.
    ///
    /// # Errors
    /// I/O.
    pub fn verify(
        &self,
        plan: &Plan,
        pool: &rayon::ThreadPool,
        chunk: ChunkIndex,
        spilled: &[u8],
    ) -> Result<()> {
        let bytes = plan.gradient_bytes(chunk.index());
        let is_on = plan.config().durability.verify != VerifyChecksums::Off;
        if !is_on || checksum_of(pool, &spilled[..bytes]) == self.sums[chunk.index()].checksum {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Io, "a spilled gradient is corrupt: it is not what was written")
            .with("holding", plan.describe(chunk))
            .hint("a drive gives other bytes than it was given; see which with optswap doctor"))
    }
}
