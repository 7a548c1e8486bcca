//! Where a step takes its gradients from.

use std::borrow::Cow;

use super::gradient_store::GradientStore;
use super::gradients::ShardGradients;
use super::norm::shard_norm;
use super::plan::Plan;
use crate::error::Result;
use crate::optim::{BlockNorm, GradElem};
use crate::partition::NormBlocks;
use crate::units::{ChunkIndex, ParamIndex};

/// The gradients of one step.
pub(super) enum StepGradients<'a, G> {
    /// In the caller's memory.
    Borrowed(ShardGradients<'a, G>),
    /// Handed over before.
    Stored(&'a GradientStore),
}

impl<G: GradElem> StepGradients<'_, G> {
    /// Norm and overflows of all of them. What was stored knows its own.
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

    /// Those of one chunk at least; `spilled` is what came with it from the drives, and is compared
    /// with its checksum if `verifies`.
    pub fn of_chunk<'s>(
        &'s self,
        (plan, pool): (&Plan, &rayon::ThreadPool),
        chunk: ChunkIndex,
        spilled: &'s [u8],
        verifies: bool,
    ) -> Result<Cow<'s, ShardGradients<'s, G>>> {
        match self {
            Self::Borrowed(gradients) => Ok(Cow::Borrowed(gradients)),
            Self::Stored(store) => {
                if verifies && !spilled.is_empty() {
                    store.verify(plan, pool, chunk, spilled)?;
                }
                store.of_chunk(plan, chunk, spilled)
            }
        }
    }
}
