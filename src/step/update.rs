//! The update of one resident chunk.

use super::gradients::ShardGradients;
use super::view::sections_mut;
use crate::optim::{AdamW, GradElem, ParamElem, SPLIT_ELEMS, UpdateTask, run_tasks};
use crate::storage::ExtentLayout;
use crate::units::ParamIndex;

/// What an update needs beside the chunk.
pub(super) struct ChunkUpdate<'a, 'g, G, P> {
    pub pool: &'a rayon::ThreadPool,
    pub gradients: &'a ShardGradients<'g, G>,
    /// First element of the chunk within the shard.
    pub shard_offset: usize,
    /// Live elements of the chunk.
    pub elems: usize,
    /// Parameters to emit: those of the chunk's live elements.
    pub params: &'a mut [P],
}

impl<G: GradElem, P: ParamElem> ChunkUpdate<'_, '_, G, P> {
    /// Updates the elements that have a gradient; `adamw` gives a parameter's numbers. Tells
    /// whether there were any.
    pub fn run(
        self,
        layout: &ExtentLayout,
        bytes: &mut [u8],
        adamw: impl Fn(ParamIndex) -> AdamW,
    ) -> bool {
        let mut rest = Rest::new(sections_mut(layout, bytes), self.params);
        let mut tasks = Vec::with_capacity(2 * self.elems.div_ceil(SPLIT_ELEMS));
        let shard_range = self.shard_offset..self.shard_offset + self.elems;
        for (range, fragment) in self.gradients.within(shard_range) {
            let adamw = adamw(fragment.param);
            rest.skip_to(range.start - self.shard_offset);
            for grad in fragment.grad.chunks(SPLIT_ELEMS) {
                let ([master, exp_avg, exp_avg_sq], param) = rest.take(grad.len());
                tasks.push(UpdateTask { adamw, grad, master, exp_avg, exp_avg_sq, param });
            }
        }
        let has_work = !tasks.is_empty();
        run_tasks(self.pool, tasks);
        has_work
    }
}

/// What has not been cut off yet of a chunk's arrays.
struct Rest<'a, P> {
    state: [&'a mut [f32]; 3],
    params: &'a mut [P],
    at: usize,
}

impl<'a, P> Rest<'a, P> {
    fn new(state: [&'a mut [f32]; 3], params: &'a mut [P]) -> Self {
        Self { state, params, at: 0 }
    }

    fn skip_to(&mut self, offset: usize) {
        self.take(offset - self.at);
    }

    fn take(&mut self, len: usize) -> ([&'a mut [f32]; 3], &'a mut [P]) {
        self.at += len;
        let state = self.state.each_mut().map(|slice| cut(slice, len));
        (state, cut(&mut self.params, len))
    }
}

fn cut<'a, T>(slice: &mut &'a mut [T], len: usize) -> &'a mut [T] {
    let (front, back) = std::mem::take(slice).split_at_mut(len);
    *slice = back;
    front
}
