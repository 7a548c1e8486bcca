//! Shards as callers have them: slices of every parameter, several inventories; synthetic state
//! that does not depend on how parameters are dealt to ranks.

#![allow(dead_code, reason = "every test file uses its own part")]

use std::collections::BTreeMap;
use std::sync::Arc;

use half::bf16;
use optswap::internals::config::GradientPlace;
use optswap::internals::step::{fill_synthetic_gradients, fill_synthetic_masters};
use optswap::{
    Communicator, Config, CreateOptions, Gradients, Inventory, MicroBatch, NO_PARAMETERS,
    NoParameters, ParamIndex, Piece, Result, Run, Sharding, StepOptions, StepOutcome,
    SwappedOptimizer, Verifier,
};

/// A slice of every parameter for one of so many ranks, the last parameter first: slices begin at
/// multiples of `align` elements, and some are shorter or empty.
pub fn slices(inventory: &Inventory, rank: usize, ranks: usize, align: u64) -> Vec<Piece> {
    let params = (0..inventory.parameters().len()).rev().map(ParamIndex::from_index);
    let slice = |param| {
        let elems = inventory.elems(param);
        let share = elems.div_ceil(ranks as u64).next_multiple_of(align);
        let start = elems.min(share * rank as u64);
        Piece::new(param, start, elems.min(start + share) - start)
    };
    params.map(slice).collect()
}

/// Seed and place of synthetic values: those of copies are alike.
fn source(inventory: &Inventory, seed: u64, run: &Run) -> (u64, u64) {
    match inventory.parameter(run.param).replicated {
        true => (1000, run.param_offset),
        false => (seed, inventory.flat_of(run.param, run.param_offset)),
    }
}

/// How a rank's model differs from others': nothing but the seeds of what is not replicated.
pub fn fill_masters(seed: u64, inventory: &Inventory) -> impl Fn(&Run, &mut [f32]) -> Result<()> {
    move |run, masters| {
        let (seed, at) = source(inventory, seed, run);
        fill_synthetic_masters(seed, at, masters);
        Ok(())
    }
}

/// Creates an optimizer with synthetic masters, unless it comes back with others.
pub fn start(
    config: &Config,
    inventory: &Inventory,
    comm: &Arc<dyn Communicator>,
    sharding: &Sharding,
    seed: u64,
) -> Result<SwappedOptimizer> {
    let comm = Arc::clone(comm);
    let mut optimizer = SwappedOptimizer::create(
        config,
        inventory.clone(),
        comm,
        CreateOptions::sharded(sharding.clone()),
    )?;
    if optimizer.resumed().is_none() {
        optimizer.initialize_parameters(&mut NoParameters, fill_masters(seed, inventory))?;
    }
    Ok(optimizer)
}

/// The synthetic gradients of this rank's shard at a step.
pub fn gradients(optimizer: &SwappedOptimizer, step: u64, seed: u64) -> Vec<f32> {
    let (partition, inventory) = (optimizer.partition(), optimizer.plan().inventory());
    let mut shard = vec![0.0; partition.elems() as usize];
    for piece in partition.pieces() {
        let (seed, at) = source(inventory, seed, piece);
        fill_synthetic_gradients(seed, step, at, &mut shard[piece.in_shard()], |it| it);
    }
    shard
}

/// The next step, followed by a scalar reference if there is one.
pub fn step(
    optimizer: &mut SwappedOptimizer,
    seed: u64,
    verifier: Option<&mut Verifier>,
) -> Result<StepOutcome> {
    let shard = gradients(optimizer, optimizer.attempts() + 1, seed);
    let mut params = vec![bf16::ZERO; shard.len()];
    let options = StepOptions { user_blob: b"where I was", ..StepOptions::default() };
    let outcome = if optimizer.plan().config().gradients.place == GradientPlace::Caller {
        let pieces = Gradients::Shard(&shard);
        optimizer.step(&pieces, &mut params, options)?
    } else {
        for piece in optimizer.partition().pieces().to_vec() {
            let grads = &shard[piece.in_shard()];
            optimizer.gradient_sink().add(
                piece.param,
                piece.param_offset,
                grads,
                MicroBatch::Last,
            )?;
        }
        optimizer.step(&Gradients::handed_over(), &mut params, options)?
    };
    if let Some(verifier) = verifier {
        verifier.step(optimizer, &outcome, &shard);
        verifier.check(optimizer, &params)?;
    }
    Ok(outcome)
}

/// Bits of master and moments, element by element: (parameter's name, element) to those.
pub type State = BTreeMap<(String, u64), Vec<u32>>;

/// This rank's part of it.
pub fn state(optimizer: &mut SwappedOptimizer) -> Result<State> {
    let mut state = State::new();
    optimizer.inspect(NO_PARAMETERS, |view| {
        for at in 0..view.master.len() {
            let values = std::iter::once(&view.master).chain(view.moments);
            let bits = values.map(|values| values[at].to_bits()).collect();
            let place = view.run.param_offset + at as u64;
            state.insert((view.parameter.name.clone(), place), bits);
        }
        Ok(())
    })?;
    Ok(state)
}

/// All ranks' parts together; copies must be alike.
pub fn joined(parts: impl IntoIterator<Item = State>) -> State {
    let mut all = State::new();
    for (place, bits) in parts.into_iter().flatten() {
        let known = all.entry(place.clone()).or_insert_with(|| bits.clone());
        assert_eq!(*known, bits, "copies of {place:?} differ");
    }
    all
}
