//! The caller's own update: sub-groups swapped in, changed and swapped out, with the bits of the
//! same update in memory, from gradients that the program keeps or has handed over before; state
//! tensors that a program declares.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

#[path = "support/handed_over.rs"]
mod handed_over;
mod support;

use std::sync::Arc;

use half::bf16;
use handed_over::{CHUNK_BYTES, batch_of, micro_batch};
use optswap::internals::config::{AccumulateIn, EngineName, GradientPlace};
use optswap::internals::{optim::reference::Reference, state::Rounding, step::ReferenceUpdate};
use optswap::{
    Bytes, Checkpoints, Codec, Communicator, Config, CreateOptions, ErrorKind, Gradients,
    NO_PARAMETERS, NoParameters, ParamIndex, Result, StepOptions, StepOutcome, SwappedOptimizer,
    Verifier,
};
use support::Drives;
use support::by_hand::{Rule, adamw, rmsprop, rmsprop_config, sizes, small_config, update_all};
use support::world::{all, inventory, masters, on_ranks, shard_gradients};

fn create(config: &Config, ranks: usize, comm: Arc<dyn Communicator>) -> Result<SwappedOptimizer> {
    SwappedOptimizer::create(config, inventory(&sizes(ranks)), comm, CreateOptions::default())
}

fn has_gradient(param: ParamIndex, step: u64) -> bool {
    !(u64::from(param.0) + step).is_multiple_of(3)
}

/// The sums of two micro-batches, as they are kept.
fn sums_of(optimizer: &SwappedOptimizer, step: u64) -> Vec<f32> {
    let round = |sum: f32| match optimizer.plan().config().gradients.accumulate_in {
        AccumulateIn::F32 => sum,
        AccumulateIn::Bf16 => bf16::from_f32(sum).to_f32(),
    };
    let [first, second] = [0, 1].map(|batch| micro_batch(optimizer, step, batch));
    let pairs = first.into_iter().zip(second);
    pairs.map(|(first, second)| round(round(first) + second)).collect()
}

/// The same, as backward gives them: the last ones first, in pieces that fit no block.
fn back_propagate(optimizer: &mut SwappedOptimizer, step: u64) -> Result<()> {
    const PIECE: usize = 1237;
    for batch in 0..2 {
        let shard = micro_batch(optimizer, step, batch);
        let pieces = optimizer.partition().pieces().to_vec();
        for piece in pieces.iter().rev().filter(|piece| has_gradient(piece.param, step)) {
            let parts = shard[piece.in_shard()].chunks(PIECE).enumerate();
            for (number, part) in parts.collect::<Vec<_>>().into_iter().rev() {
                let offset = piece.param_offset + (number * PIECE) as u64;
                optimizer.gradient_sink().add(piece.param, offset, part, batch_of(batch == 1))?;
            }
        }
    }
    optimizer.flush_gradients()
}

/// The gradients of a step without those of every third parameter, the last ones first.
fn some_gradients<'a>(
    optimizer: &SwappedOptimizer,
    shard: &'a [f32],
    step: u64,
) -> Gradients<'a, f32> {
    let mut given = Vec::new();
    let pieces = optimizer.partition().pieces().iter().rev();
    for piece in pieces.filter(|piece| has_gradient(piece.param, step)) {
        let (first, rest) = shard[piece.in_shard()].split_at(piece.elems as usize / 3);
        given.push((piece.param, piece.param_offset + first.len() as u64, rest));
        given.push((piece.param, piece.param_offset, first));
    }
    Gradients::Pieces(given)
}

/// The same update in memory.
fn update_twin(
    rule: Rule,
    twin: &mut Reference,
    its: &ReferenceUpdate,
    outcome: &StepOutcome,
    shard: &[f32],
) -> bool {
    if !has_gradient(its.param, outcome.attempt) {
        return false;
    }
    let scaled = shard[its.at.clone()].iter().map(|grad| grad * outcome.grad_scale);
    let grads: Vec<f32> = scaled.collect();
    let arrays = twin.arrays_mut().iter_mut();
    let mut arrays: Vec<&mut [f32]> = arrays.map(|array| &mut array[its.at.clone()]).collect();
    rule(&its.hyper, its.number, &grads, &mut arrays);
    true
}

/// One step by the door, and beside it in memory; compared bit for bit.
fn step(
    optimizer: &mut SwappedOptimizer,
    verifier: &mut Verifier,
    rule: Rule,
    params: &mut [bf16],
) -> Result<Vec<usize>> {
    let (number, options) = (optimizer.attempts() + 1, StepOptions::default());
    let shard = sums_of(optimizer, number);
    let kept = optimizer.plan().config().gradients.clone();
    let (outcome, chunks) = match (kept.place, kept.accumulate_in) {
        (GradientPlace::Caller, _) => {
            let gradients = some_gradients(optimizer, &shard, number);
            update_all(optimizer.begin_update(&gradients, params, options)?, rule)?
        }
        (_, AccumulateIn::F32) => {
            back_propagate(optimizer, number)?;
            let gradients = Gradients::<f32>::HandedOver;
            update_all(optimizer.begin_update(&gradients, params, options)?, rule)?
        }
        (_, AccumulateIn::Bf16) => {
            back_propagate(optimizer, number)?;
            let gradients = Gradients::<bf16>::HandedOver;
            update_all(optimizer.begin_update(&gradients, params, options)?, rule)?
        }
    };
    verifier
        .step_with(optimizer, &outcome, |twin, its| update_twin(rule, twin, its, &outcome, &shard));
    verifier.check(optimizer, params)?;
    let mut emitted = params.to_vec();
    optimizer.emit_parameters(&mut emitted)?;
    assert_eq!(params, emitted, "the parameters are the rounded masters");
    Ok(chunks)
}

/// Writes the masters; gives a twin in memory and the parameters.
fn begin(optimizer: &mut SwappedOptimizer) -> Result<(Verifier, Vec<bf16>)> {
    let fill = masters(optimizer.partition().flat().start);
    optimizer.initialize_parameters(&mut NoParameters, &fill)?;
    let verifier = Verifier::new(optimizer, &fill)?;
    verifier.check(optimizer, NO_PARAMETERS)?;
    let mut params = vec![bf16::ZERO; optimizer.partition().elems() as usize];
    optimizer.emit_parameters(&mut params)?;
    Ok((verifier, params))
}

/// A warm first step, gradients out, swap in with the next one prefetched, update, swap out.
fn train_as_stage_3_does(config: &Config, comm: Arc<dyn Communicator>) -> Result<String> {
    let ranks = comm.size();
    let mut optimizer = create(config, ranks, comm)?;
    let (mut verifier, mut params) = begin(&mut optimizer)?;
    let kept = optimizer.plan().gradients().resident_chunks();
    let is_auto = config.gradients.place == GradientPlace::Auto;
    assert!(!is_auto || (1..16).contains(&kept), "a part in memory: {kept}");
    for number in 1..=5 {
        // A learning-rate schedule, per group.
        optimizer.param_groups_mut()[1].lr = 0.01 / number as f64;
        let chunks = step(&mut optimizer, &mut verifier, adamw, &mut params)?;
        assert_eq!(chunks, [2; 8], "eight sub-groups of two chunks");
    }
    let digest = optimizer.state_digest(NO_PARAMETERS)?;
    optimizer.close();
    Ok(digest)
}

#[test]
fn all_four_modes_give_the_bits_of_memory_on_one_to_four_ranks() {
    for ranks in 1..=4 {
        let mut digests = Vec::new();
        for case in 0..16 {
            let [read, write, is_uring, is_durable] = [0, 1, 2, 3].map(|bit| case >> bit & 1 == 0);
            for place in PLACES {
                let drives = Drives::new(2);
                let mut config = small_config(&drives, is_durable);
                keep_gradients(&mut config, place, 5);
                (config.swap.pipeline_read, config.swap.pipeline_write) = (read, write);
                config.io.engine = if is_uring { EngineName::Uring } else { EngineName::Threads };
                digests.extend(all(on_ranks(ranks, |comm| train_as_stage_3_does(&config, comm))));
            }
        }
        digests.dedup();
        assert_eq!(digests.len(), 1, "{ranks} ranks: {digests:?}");
    }
}

const PLACES: [GradientPlace; 4] =
    [GradientPlace::Caller, GradientPlace::Memory, GradientPlace::Drives, GradientPlace::Auto];

/// A budget of so many buffers for state, and what gradients need of sixteen chunks.
fn keep_gradients(config: &mut Config, place: GradientPlace, buffers: u64) {
    config.gradients.place = place;
    let state = buffers * CHUNK_BYTES;
    let gradients = 4096 * config.gradients.accumulate_in.elem_bytes();
    config.swap.memory_budget = Bytes(match place {
        GradientPlace::Caller => state,
        GradientPlace::Memory => state + 16 * gradients,
        GradientPlace::Drives => state + 2 * gradients,
        // Some in memory, some on the drives.
        GradientPlace::Auto => 8 * CHUNK_BYTES + 8 * gradients,
    });
}

#[test]
fn gradients_summed_in_bf16_come_as_bf16() {
    let mut digests = Vec::new();
    for (number, place) in PLACES.into_iter().enumerate() {
        let drives = Drives::new(2);
        let mut config = small_config(&drives, false);
        config.gradients.accumulate_in = AccumulateIn::Bf16;
        keep_gradients(&mut config, place, 5);
        config.io.engine = [EngineName::Uring, EngineName::Threads][number % 2];
        digests.extend(all(on_ranks(2, |comm| train_as_stage_3_does(&config, comm))));
    }
    digests.dedup();
    assert_eq!(digests.len(), 1, "{digests:?}");
}

#[test]
fn the_smallest_budget_the_largest_and_a_cache_give_the_same_bits() {
    let mut digests = Vec::new();
    for (buffers, cached) in [(2, 0), (3, 1), (7, 4), (16, 0), (16, 16)] {
        for case in 0..8 {
            let [read, write, is_spilled] = [0, 1, 2].map(|bit| case >> bit & 1 == 0);
            let drives = Drives::new(2);
            let mut config = small_config(&drives, false);
            let place = if is_spilled { GradientPlace::Drives } else { GradientPlace::Caller };
            keep_gradients(&mut config, place, buffers);
            config.swap.cache = format!("{}KiB", cached * 48).parse().unwrap();
            (config.swap.pipeline_read, config.swap.pipeline_write) = (read, write);
            digests.extend(all(on_ranks(1, |comm| train_as_stage_3_does(&config, comm))));
        }
    }
    digests.dedup();
    assert_eq!(digests.len(), 1, "{digests:?}");
}

#[test]
fn modes_act_on_steps_too_and_change_no_bit() {
    let mut digests = Vec::new();
    for [read, write] in [[true, true], [true, false], [false, true], [false, false]] {
        let drives = Drives::new(2);
        let mut config = small_config(&drives, false);
        (config.swap.pipeline_read, config.swap.pipeline_write) = (read, write);
        digests.extend(all(on_ranks(2, |comm| {
            let mut optimizer = support::world::start(&config, &sizes(2), comm)?;
            support::world::step_until(&mut optimizer, 4)?;
            optimizer.state_digest(NO_PARAMETERS)
        })));
    }
    digests.dedup();
    assert_eq!(digests.len(), 1, "{digests:?}");
}

#[test]
fn state_in_every_codec_is_rounded_as_a_step_rounds_it() {
    for (master, moments, rounding) in [
        (Codec::Fp32, Codec::Bf16, Rounding::Nearest),
        (Codec::Fp32, Codec::Int8, Rounding::Stochastic),
        (Codec::Remainder16, Codec::Fp32, Rounding::Nearest),
        (Codec::Remainder16, Codec::Bf16, Rounding::Stochastic),
    ] {
        for is_durable in [false, true] {
            let run = |by_door: bool| {
                let drives = Drives::new(2);
                let mut config = small_config(&drives, is_durable);
                config.codecs.master = master;
                (config.codecs.exp_avg, config.codecs.exp_avg_sq) = (moments, moments);
                (config.codecs.rounding, config.codecs.seed) = (rounding, 7);
                all(on_ranks(2, |comm| {
                    let sizes = sizes(1);
                    let mut optimizer = SwappedOptimizer::create(
                        &config,
                        inventory(&sizes),
                        comm,
                        CreateOptions::default(),
                    )?;
                    let mut params = vec![bf16::ZERO; optimizer.partition().elems() as usize];
                    let fill = masters(optimizer.partition().flat().start);
                    optimizer.initialize_parameters(&mut params, &fill)?;
                    for number in 1..=3 {
                        let shard = shard_gradients(&optimizer, number);
                        let gradients = some_gradients(&optimizer, &shard, number);
                        let options = StepOptions::default();
                        if by_door {
                            let groups =
                                optimizer.begin_update(&gradients, &mut params, options)?;
                            update_all(groups, adamw)?;
                        } else {
                            optimizer.step(&gradients, &mut params, options)?;
                        }
                    }
                    Ok((optimizer.state_digest(&params)?, params))
                }))
            };
            assert!(run(true) == run(false), "{master:?} {moments:?} {rounding:?} {is_durable}");
        }
    }
}

#[test]
fn an_own_optimizer_has_the_bits_of_a_loop_and_survives_its_process() {
    let drives = Drives::new(2);
    let mut config = rmsprop_config(&drives, true);
    config.durability.commit_every = 1;
    let twins = all(on_ranks(2, |comm| {
        let mut optimizer = create(&config, 2, comm)?;
        let (mut verifier, mut params) = begin(&mut optimizer)?;
        for _ in 1..=3 {
            step(&mut optimizer, &mut verifier, rmsprop, &mut params)?;
        }
        // Dropped, as by a crash between two steps.
        Ok((verifier, params))
    }));
    let twins = std::sync::Mutex::new(twins.into_iter().map(Some).collect::<Vec<_>>());
    all(on_ranks(2, |comm| {
        let rank = comm.rank().index();
        let mut optimizer = create(&config, 2, comm)?;
        assert_eq!(optimizer.resumed().map(|resumed| resumed.attempt), Some(3));
        let (mut verifier, mut params) = twins.lock().unwrap()[rank].take().unwrap();
        verifier.check(&mut optimizer, NO_PARAMETERS)?;
        step(&mut optimizer, &mut verifier, rmsprop, &mut params)?;
        let names: Vec<_> = optimizer.plan().tensors().iter().map(|it| it.name.clone()).collect();
        assert_eq!(names, ["master", "square_avg", "momentum_buffer"]);
        Ok(())
    }));

    // What lies there is of this optimizer alone.
    let mut other = config.clone();
    other.optimizer.own.as_mut().unwrap().state.pop();
    for config in [&other, &{ small_config(&drives, true) }] {
        let refused = on_ranks(2, |comm| create(config, 2, comm).map(drop));
        for result in refused {
            let error = result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage);
            let text = error.to_string();
            for words in ["of another optimizer", "square_avg, momentum_buffer"] {
                assert!(text.contains(words), "{text}");
            }
        }
    }
    // Whoever looks at the drives sees its names.
    let paths = drives.paths().into_iter().map(|path| path.display().to_string());
    let arguments: Vec<String> = std::iter::once("inspect".to_owned()).chain(paths).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let shown = support::alone(&support::optswap(), &arguments);
    assert!(shown.stdout.contains("square_avg (fp32)"), "{}{}", shown.stdout, shown.stderr);
}

#[test]
fn checkpoints_hold_declared_state_and_load_on_other_ranks() {
    let drives = Drives::new(2);
    let mut config = rmsprop_config(&drives, false);
    config.checkpoint.dir = Some(drives.path().join("checkpoints"));
    let saved = all(on_ranks(2, |comm| {
        let mut optimizer = support::world::start(&config, &sizes(1), Arc::clone(&comm))?;
        let shard = shard_gradients(&optimizer, 1);
        let gradients = some_gradients(&optimizer, &shard, 1);
        let mut params = vec![(); shard.len()];
        let options = StepOptions::default();
        update_all(optimizer.begin_update(&gradients, &mut params, options)?, rmsprop)?;
        let mut checkpoints = Checkpoints::open(&config, comm).unwrap().unwrap();
        let saved = checkpoints.save(&mut optimizer, None, b"", NO_PARAMETERS)?;
        let digest = optimizer.state_digest(NO_PARAMETERS)?;
        optimizer.close();
        Ok((saved.directory, digest))
    }));
    let (directory, digest) = &saved[0];
    let load = |config: &Config, comm: Arc<dyn Communicator>| {
        let mut optimizer = create(config, 1, Arc::clone(&comm))?;
        let checkpoints = Checkpoints::open(config, comm).unwrap().unwrap();
        checkpoints.load(&mut optimizer, directory, &mut NoParameters)?;
        optimizer.state_digest(NO_PARAMETERS)
    };
    let loaded = all(on_ranks(3, |comm| load(&config, comm)));
    assert!(loaded.iter().all(|loaded| loaded == digest));
    config.optimizer.own.as_mut().unwrap().state.swap(0, 1);
    for refused in on_ranks(1, |comm| load(&config, comm)) {
        let text = refused.unwrap_err().to_string();
        assert!(text.contains("master, square_avg, momentum_buffer"), "{text}");
    }
}

#[test]
fn a_step_of_an_own_optimizer_names_the_door() {
    let drives = Drives::new(1);
    let results = on_ranks(2, |comm| {
        let config = rmsprop_config(&drives, false);
        let mut optimizer = support::world::start(&config, &sizes(1), comm)?;
        support::world::step_until(&mut optimizer, 1)
    });
    for result in results {
        let error = result.unwrap_err();
        assert!(error.to_string().contains("begin_update"), "{error}");
        assert_eq!(error.kind(), ErrorKind::Usage);
    }
}

#[test]
fn purged_state_begins_anew_and_masters_stay() {
    for is_durable in [false, true] {
        let drives = Drives::new(2);
        let config = rmsprop_config(&drives, is_durable);
        all(on_ranks(2, |comm| {
            let mut optimizer = create(&config, 2, comm)?;
            let (mut verifier, mut params) = begin(&mut optimizer)?;
            step(&mut optimizer, &mut verifier, rmsprop, &mut params)?;
            let mut before = vec![0.0; params.len()];
            optimizer.inspect(NO_PARAMETERS, |view| {
                before[view.run.in_shard()].copy_from_slice(view.master);
                Ok(())
            })?;
            optimizer.purge_state(&mut NoParameters)?;
            let from_here = |run: &optswap::internals::partition::Run, masters: &mut [f32]| {
                masters.copy_from_slice(&before[run.in_shard()]);
                Ok(())
            };
            // A twin that begins here has other state and counts of 0.
            let mut verifier = Verifier::new(&optimizer, from_here)?;
            verifier.check(&mut optimizer, NO_PARAMETERS)?;
            step(&mut optimizer, &mut verifier, rmsprop, &mut params)?;
            Ok(())
        }));
    }
}

#[test]
fn without_write_overlap_a_sub_group_is_on_the_drives_when_it_is_swapped_out() {
    let drives = Drives::new(1);
    let mut config = small_config(&drives, false);
    config.swap.pipeline_write = false;
    all(on_ranks(1, |comm| {
        let mut optimizer = support::world::start(&config, &sizes(1), comm)?;
        let shard = shard_gradients(&optimizer, 1);
        let gradients = Gradients::Shard(&shard);
        let mut params = vec![0.0f32; shard.len()];
        let mut groups = optimizer.begin_update(&gradients, &mut params, StepOptions::default())?;
        let mut offset = 0;
        while let Some(mut sub_group) = groups.swap_in()? {
            let mut chunks = Vec::new();
            while let Some(mut chunk) = sub_group.next_chunk()? {
                chunk.master_mut()[0] = 100.0 + chunks.len() as f32;
                chunks.push(chunk.elems());
            }
            sub_group.swap_out()?;
            let file = std::fs::read(drives.shard("default", 0).join("state")).unwrap();
            for (number, elems) in chunks.into_iter().enumerate() {
                let first = f32::from_le_bytes(file[offset..][..4].try_into().unwrap());
                assert_eq!(first, 100.0 + number as f32);
                offset += elems.div_ceil(4096) * 4096 * 12;
            }
        }
        groups.finish(Ok(()))
    }));
}
