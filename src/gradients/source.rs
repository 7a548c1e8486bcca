//! Where a step takes its gradients from.

use std::borrow::Cow;

use super::given::ShardGradients;
use super::norm::shard_norm;
use super::store::GradientStore;
use crate::error::Result;
use crate::optim::{BlockNorm, GradElem};
use crate::partition::NormBlocks;
use crate::plan::Plan;
use crate::units::{ChunkIndex, ParamIndex};

/// The gradients of one step.
pub enum StepGradients<'a, G> {
    /// In the caller's memory.
    Borrowed(ShardGradients<'a, G>),
    /// Handed over before.
    Stored(&'a GradientStore),
}

impl<G: GradElem> StepGradients<'_, G> {
    /// Norm and overflows of all gradients. A store has computed them already.
    pub fn norm(&self, pool: &rayon::ThreadPool, blocks: &NormBlocks) -> BlockNorm {
        match self {
            Self::Borrowed(gradients) => shard_norm(pool, gradients, blocks),
            Self::Stored(store) => store.norm(),
        }
    }

    /// The parameters that have one.
    pub fn params(&self, plan: &Plan) -> Vec<ParamIndex> {
        match self {
            Self::Borrowed(gradients) => gradients.params(),
            Self::Stored(store) => store.params(plan),
        }
    }

    /// The gradients of one chunk, and possibly others; `spilled` is what came with the chunk from
    /// the drives.
    ///
    /// # Errors
    /// Internal if gradients that were spilled did not come with the chunk.
    pub fn of_chunk<'s>(
        &'s self,
        plan: &Plan,
        chunk: ChunkIndex,
        spilled: &'s [u8],
    ) -> Result<Cow<'s, ShardGradients<'s, G>>> {
        match self {
            Self::Borrowed(gradients) => Ok(Cow::Borrowed(gradients)),
            Self::Stored(store) => store.of_chunk(plan, chunk, spilled),
        }
    }
}
