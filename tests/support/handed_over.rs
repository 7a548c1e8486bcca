//! Gradients handed over in many pieces, as a backward pass does.

#![allow(dead_code, reason = "every test file uses its own part")]

use half::bf16;
use optswap::internals::config::GradientPlace;
use optswap::internals::step::fill_synthetic_gradients;
use optswap::{
    Bytes, Config, GradElem, Gradients, MicroBatch, ParamIndex, Result, StepOptions, StepOutcome,
    SwappedOptimizer,
};

use crate::support::Drives;
use crate::support::world;

/// Bytes of the state and of the gradients of one chunk.
pub const CHUNK_BYTES: u64 = 4096 * 12;
pub const GRADIENT_BYTES: u64 = 4096 * 4;

/// As [`world::config_for`], with so many buffers for state beside the least that gradients need.
pub fn config_for(drives: &Drives, place: GradientPlace, buffers: u64) -> Config {
    let mut config = world::config_for(drives);
    config.gradients.place = place;
    let gradients = if place == GradientPlace::Caller { 0 } else { 2 * GRADIENT_BYTES };
    config.swap.memory_budget = Bytes(buffers * CHUNK_BYTES + gradients);
    if matches!(place, GradientPlace::Memory) {
        config.swap.memory_budget = Bytes(64 << 20);
    }
    config
}

/// The shard's gradients of one micro-batch.
pub fn micro_batch(optimizer: &SwappedOptimizer, step: u64, batch: u64) -> Vec<f32> {
    let range = optimizer.partition().flat();
    let mut shard = vec![0.0; (range.end - range.start) as usize];
    fill_synthetic_gradients(5 + 1000 * batch, step, range.start, &mut shard, |gradient| gradient);
    shard
}

pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) as usize % end
    }
}

/// The shard in pieces of any length, in any order: parameter, offset, range of the shard.
pub fn pieces_of(
    optimizer: &SwappedOptimizer,
    has_gradient: impl Fn(ParamIndex) -> bool,
    seed: u64,
) -> Vec<(ParamIndex, u64, std::ops::Range<usize>)> {
    let mut dice = Dice(seed);
    let mut pieces = Vec::new();
    for run in optimizer.partition().pieces().iter().filter(|run| has_gradient(run.param)) {
        let (mut at, shard) = (0, run.in_shard());
        while at < shard.len() {
            let longest = [1, 7, 4096, 10_000][dice.below(4)];
            let len = (1 + dice.below(longest)).min(shard.len() - at);
            let offset = run.param_offset + at as u64;
            pieces.push((run.param, offset, shard.start + at..shard.start + at + len));
            at += len;
        }
    }
    for last in (1..pieces.len()).rev() {
        pieces.swap(last, dice.below(last + 1));
    }
    pieces
}

/// Hands a micro-batch over, except for parameters without a gradient.
pub fn hand_over<G: GradElem>(
    optimizer: &mut SwappedOptimizer,
    shard: &[G],
    has_gradient: impl Fn(ParamIndex) -> bool,
    seed: u64,
    micro_batch: MicroBatch,
) -> Result<()> {
    for (param, offset, range) in pieces_of(optimizer, has_gradient, seed) {
        // Gone when the call returns: nothing may hold on to it.
        let piece = shard[range].to_vec();
        optimizer.gradient_sink().add(param, offset, &piece, micro_batch)?;
    }
    Ok(())
}

/// Whether more follow this micro-batch.
pub fn batch_of(is_last: bool) -> MicroBatch {
    if is_last { MicroBatch::Last } else { MicroBatch::More }
}

/// The next step, with gradients of so many micro-batches handed over.
pub fn step_handed_over(
    optimizer: &mut SwappedOptimizer,
    batches: u64,
    params: &mut [bf16],
) -> Result<StepOutcome> {
    let step = optimizer.attempts() + 1;
    for batch in 0..batches {
        let shard = micro_batch(optimizer, step, batch);
        hand_over(optimizer, &shard, |_| true, step + batch, batch_of(batch + 1 == batches))?;
    }
    optimizer.step(&Gradients::handed_over(), params, StepOptions::default())
}

/// The same with their sum, borrowed.
pub fn step_borrowed(
    optimizer: &mut SwappedOptimizer,
    batches: u64,
    params: &mut [bf16],
) -> Result<StepOutcome> {
    let step = optimizer.attempts() + 1;
    let mut sum = micro_batch(optimizer, step, 0);
    for batch in 1..batches {
        let more = micro_batch(optimizer, step, batch);
        sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
    }
    let gradients = Gradients::Shard(&sum);
    optimizer.step(&gradients, params, StepOptions::default())
}
