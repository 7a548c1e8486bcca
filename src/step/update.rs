//! The update of one resident chunk.

use super::view::sections_mut;
use crate::gradients::ShardGradients;
use crate::optim::{
    GradElem, ParamElem, Rounder, SPLIT_ELEMS, SectionMut, Segment, UpdateRule, UpdateTask,
    run_tasks,
};
use crate::plan::Plan;
use crate::state::Hyperparameters;
use crate::units::{ChunkIndex, ParamIndex};

/// What the update of any chunk needs at one step.
pub(super) struct Updates<'a> {
    pub plan: &'a Plan,
    pub pool: &'a rayon::ThreadPool,
    pub groups: &'a [Hyperparameters],
    /// The number of updates that each parameter has taken before.
    pub update_counts: &'a [u64],
    pub grad_scale: f32,
    pub rounder: Rounder,
}

impl Updates<'_> {
    /// Updates the elements of a chunk that have a gradient, and emits the parameters of the
    /// chunk's live elements into `params`. Returns whether any element had a gradient.
    pub fn run<G: GradElem, P: ParamElem>(
        &self,
        chunk: ChunkIndex,
        gradients: &ShardGradients<'_, G>,
        bytes: &mut [u8],
        mut params: &mut [P],
    ) -> bool {
        let (sections, mut uppers) = sections_mut(self.plan, chunk, bytes);
        let chunk = self.plan.partition().chunk(chunk);
        let keeps = !uppers.is_empty();
        let mut sections = sections.into_iter();
        let mut next = || sections.next().unwrap_or(SectionMut::empty());
        let (mut master, mut first, mut second) = (next(), next(), next());
        let mut has_gradients = false;
        let mut tasks = Vec::with_capacity((chunk.elems as usize).div_ceil(SPLIT_ELEMS));
        for start in (0..chunk.elems as usize).step_by(SPLIT_ELEMS) {
            let live = params.len().min(SPLIT_ELEMS);
            let (piece, rest) = std::mem::take(&mut params).split_at_mut(live);
            params = rest;
            let in_shard = chunk.shard_offset as usize + start;
            let segments: Vec<Segment<'_>> = self.segments(gradients, in_shard, live).collect();
            let moments = [first.cut(SPLIT_ELEMS), second.cut(SPLIT_ELEMS)];
            let master = master.cut(SPLIT_ELEMS);
            let (kept, rest) =
                std::mem::take(&mut uppers).split_at_mut(if keeps { live } else { 0 });
            uppers = rest;
            has_gradients |= !segments.is_empty();
            if keeps || !segments.is_empty() {
                let flat = self.plan.rounding_offset(in_shard as u64);
                let (params, rounder) = (P::slice_mut(piece), self.rounder);
                tasks.push(UpdateTask { master, moments, params, kept, segments, rounder, flat });
            }
        }
        run_tasks(self.pool, tasks);
        has_gradients
    }

    /// The gradients of some elements of the shard, with their parameters' numbers.
    fn segments<'g, G: GradElem>(
        &self,
        gradients: &ShardGradients<'g, G>,
        start: usize,
        elems: usize,
    ) -> impl Iterator<Item = Segment<'g>> {
        gradients.within(start..start + elems).map(move |(range, fragment)| Segment {
            at: range.start - start..range.end - start,
            rule: self.rule(fragment.param),
            grad: G::slice(fragment.grad),
        })
    }

    fn rule(&self, param: ParamIndex) -> UpdateRule {
        let kind = self.plan.config().optimizer.kind;
        let hyper = &self.groups[self.plan.inventory().parameter(param).group];
        UpdateRule::new(kind, hyper, self.update_counts[param.index()] + 1, self.grad_scale)
    }
}
