//! Gradients that do not fit memory lie on the drives between backward and step: for the least
//! memory, for no more bytes than theirs, and whatever fails there costs the step, not the state.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

#[path = "support/handed_over.rs"]
mod handed_over;
mod support;

use std::sync::Arc;

use half::bf16;
use handed_over::{
    CHUNK_BYTES, GRADIENT_BYTES, batch_of, config_for, hand_over, micro_batch, step_borrowed,
    step_handed_over,
};
use optswap::internals::config::{Durability, EngineName, FaultConfig, FaultKind, GradientPlace};
use optswap::{
    Bytes, Communicator, Config, Elems, Error, Gradients, MicroBatch, NO_PARAMETERS, Result,
    StepOptions, SwappedOptimizer,
};
use support::world::{all, on_ranks, start};
use support::{Drives, one_at_a_time};

const ENGINES: [EngineName; 2] = [EngineName::Uring, EngineName::Threads];
const STEPS: u64 = 3;

fn params_of(optimizer: &SwappedOptimizer) -> Vec<bf16> {
    vec![bf16::ZERO; optimizer.partition().elems() as usize]
}

fn digest_of(
    config: &Config,
    sizes: &[usize],
    batches: u64,
    comm: Arc<dyn Communicator>,
) -> Result<String> {
    let mut optimizer = start(config, sizes, comm)?;
    let mut params = params_of(&optimizer);
    while optimizer.attempts() < STEPS {
        match config.gradients.place {
            GradientPlace::Caller => step_borrowed(&mut optimizer, batches, &mut params)?,
            _ => step_handed_over(&mut optimizer, batches, &mut params)?,
        };
    }
    let digest = optimizer.state_digest(NO_PARAMETERS)?;
    optimizer.close();
    Ok(digest)
}

#[test]
fn the_least_budget_is_stated_and_works() {
    let drives = Drives::new(1);
    let sizes = [6 * 4096 - 100];
    let plain = config_for(&drives, GradientPlace::Caller, 2);
    let expected = all(on_ranks(1, |comm| digest_of(&plain, &sizes, 3, comm)));
    let least = 2 * CHUNK_BYTES + 2 * GRADIENT_BYTES;
    let everything = 6 * (CHUNK_BYTES + GRADIENT_BYTES);
    for place in [GradientPlace::Drives, GradientPlace::Auto] {
        let mut budget = least;
        while budget <= everything + GRADIENT_BYTES {
            let mut config = config_for(&drives, place, 2);
            config.swap.memory_budget = Bytes(budget);
            config.io.engine = ENGINES[(budget / GRADIENT_BYTES % 2) as usize];
            let seen = all(on_ranks(1, |comm| digest_of(&config, &sizes, 3, comm)));
            assert_eq!(seen, expected, "{place:?}, {budget}");
            budget += GRADIENT_BYTES;
        }
        let mut config = config_for(&drives, place, 2);
        config.swap.memory_budget = Bytes(least - 4096);
        let refused = on_ranks(1, |comm| digest_of(&config, &sizes, 3, comm)).remove(0);
        let error = refused.unwrap_err();
        let text = error.to_string();
        assert_eq!(error.exit_code(), 64, "{text}");
        assert!(text.contains(&format!("minimum {}", Bytes(least))), "{text}");
        assert!(text.contains("gradients.place"), "{text}");
    }
    // Gradients that must all be in memory say so too.
    let mut config = config_for(&drives, GradientPlace::Memory, 2);
    config.swap.memory_budget = Bytes(least);
    let refused = on_ranks(1, |comm| digest_of(&config, &sizes, 3, comm)).remove(0);
    let minimum = format!("minimum {}", Bytes(2 * CHUNK_BYTES + 6 * GRADIENT_BYTES));
    assert!(refused.unwrap_err().to_string().contains(&minimum));
}

#[test]
fn auto_keeps_in_memory_what_fits() {
    let drives = Drives::new(1);
    let mut config = config_for(&drives, GradientPlace::Auto, 2);
    for (state, gradients, expected) in
        [(20, 20, 20), (20, 0, 20), (8, 19, 16), (8, 7, 4), (8, 2, 0), (3, 2, 0)]
    {
        let budget = state * CHUNK_BYTES + gradients * GRADIENT_BYTES;
        config.swap.memory_budget = Bytes(budget);
        all(on_ranks(1, |comm| {
            let optimizer = start(&config, &[20 * 4096], comm)?;
            let plan = optimizer.plan();
            assert!(plan.memory_bytes() <= budget, "{state}, {gradients}: {plan}");
            let resident = plan.gradients().resident_chunks();
            assert!(resident.abs_diff(expected) <= 2, "{state}, {gradients}: {plan}");
            optimizer.close();
            Ok(())
        }));
    }
}

/// How a disturbed job went on.
#[derive(Debug, PartialEq)]
enum Seen {
    Undisturbed(String),
    /// A flush or step refused the gradients; they were handed over again.
    GradientsLost(String),
    /// Went back to a commit.
    Recovered(String),
    StateLost,
}

fn disturbed(config: &Config, comm: Arc<dyn Communicator>) -> Result<(Seen, Vec<String>)> {
    let mut optimizer = start(config, &[20_000, 4000], comm)?;
    let mut params = params_of(&optimizer);
    let mut errors: Vec<String> = Vec::new();
    let mut kind = 0;
    let mut note = |error: Error, is_of_gradients: bool| {
        assert!(error.is_agreed() && error.exit_code() == 74, "{error}");
        assert!(errors.len() < 3, "{errors:?}");
        kind = kind.max(if is_of_gradients { 1 } else { 2 });
        errors.push(error.to_string());
    };
    while optimizer.attempts() < STEPS {
        let step = optimizer.attempts() + 1;
        for batch in 0..2 {
            let shard = micro_batch(&optimizer, step, batch);
            hand_over(&mut optimizer, &shard, |_| true, step + batch, batch_of(batch == 1))?;
        }
        if let Err(error) = optimizer.flush_gradients() {
            // The state is whole: the same step again.
            note(error, true);
            continue;
        }
        if let Err(error) =
            optimizer.step(&Gradients::handed_over(), &mut params, StepOptions::default())
        {
            note(error, false);
            match optimizer.recover(&mut params) {
                Ok(_) => continue,
                Err(_) => return Ok((Seen::StateLost, errors)),
            }
        }
    }
    let digest = match optimizer.state_digest(NO_PARAMETERS) {
        Ok(digest) => digest,
        Err(error) => {
            note(error, false);
            match optimizer.recover(&mut params) {
                Ok(_) => optimizer.state_digest(NO_PARAMETERS)?,
                Err(_) => return Ok((Seen::StateLost, errors)),
            }
        }
    };
    optimizer.close();
    let seen = match kind {
        0 => Seen::Undisturbed(digest),
        1 => Seen::GradientsLost(digest),
        _ => Seen::Recovered(digest),
    };
    Ok((seen, errors))
}

fn disturb(kind: FaultKind, words: &str) -> [usize; 4] {
    let plain = Drives::new(2);
    let config = config_for(&plain, GradientPlace::Caller, 3);
    let expected = all(on_ranks(2, |comm| digest_of(&config, &[20_000, 4000], 2, comm))).remove(0);
    let mut counts = [0; 4];
    // Three chunks: 9 operations for state one way, 3 for gradients, which some cross more often.
    for op in 9..9 + STEPS * (18 + 18) {
        for (turn, mode) in [Durability::Scratch, Durability::Step].into_iter().enumerate() {
            let drives = Drives::new(2);
            let mut config = config_for(&drives, GradientPlace::Drives, 2);
            (config.swap.write_behind, config.swap.prefetch) = (false, false);
            config.durability.mode = mode;
            config.io.engine = ENGINES[(op as usize + turn) % 2];
            config.faults.push(FaultConfig::at(1, op, kind));
            let name = format!("{kind:?} at operation {op}, {mode:?}, {:?}", config.io.engine);
            let results = all(on_ranks(2, |comm| disturbed(&config, comm)));
            assert_eq!(results[0], results[1], "{name}");
            let (seen, errors) = results.into_iter().next().unwrap();
            for error in &errors {
                assert!(error.contains(words) && error.contains("holding"), "{name}: {error}");
            }
            let index = match &seen {
                Seen::Undisturbed(digest) => {
                    assert_eq!(*digest, expected, "{name}");
                    0
                }
                Seen::GradientsLost(digest) => {
                    assert_eq!(*digest, expected, "{name}: {errors:?}");
                    assert!(errors[0].contains("gradient"), "{name}: {errors:?}");
                    1
                }
                Seen::Recovered(digest) => {
                    assert_eq!(*digest, expected, "{name}: {errors:?}");
                    assert_eq!(mode, Durability::Step, "{name}: {errors:?}");
                    2
                }
                Seen::StateLost => {
                    assert_eq!(mode, Durability::Scratch, "{name}: {errors:?}");
                    3
                }
            };
            counts[index] += 1;
        }
    }
    println!("{kind:?}: undisturbed, gradients lost, recovered, state lost: {counts:?}");
    counts
}

#[test]
fn a_spill_that_fails_costs_its_gradients_and_no_state() {
    let _turn = one_at_a_time();
    let [_, lost, recovered, state] = disturb(FaultKind::Eio, "os error 5");
    assert!(lost > 20 && recovered > 20 && state > 20);
}

/// Without a flush of its own: the step says it, before anything has moved.
#[test]
fn a_step_whose_spills_failed_can_be_taken_again() {
    let other = Drives::new(1);
    let plain = config_for(&other, GradientPlace::Caller, 3);
    let expected = all(on_ranks(2, |comm| digest_of(&plain, &[20_000, 4000], 2, comm)));
    for engine in ENGINES {
        let drives = Drives::new(2);
        let mut config = config_for(&drives, GradientPlace::Drives, 2);
        (config.swap.write_behind, config.swap.prefetch) = (false, false);
        config.io.engine = engine;
        config.faults.push(FaultConfig::at(1, 9, FaultKind::Enospc));
        let seen = all(on_ranks(2, |comm| {
            let mut optimizer = start(&config, &[20_000, 4000], comm)?;
            let mut params = params_of(&optimizer);
            let error = step_handed_over(&mut optimizer, 2, &mut params).unwrap_err();
            let text = error.to_string();
            assert!(error.is_agreed() && error.exit_code() == 74, "{text}");
            for words in ["a gradient cannot be spilled", "rank 1 of 2", "shard-00001/state"] {
                assert!(text.contains(words), "{text}");
            }
            assert_eq!(optimizer.attempts(), 0);
            while optimizer.attempts() < STEPS {
                step_handed_over(&mut optimizer, 2, &mut params)?;
            }
            optimizer.state_digest(NO_PARAMETERS)
        }));
        assert_eq!(seen, expected, "{engine:?}");
    }
}

#[test]
fn a_spill_that_never_ends_is_an_error_of_all_ranks() {
    let _turn = one_at_a_time();
    // Initialisation is 9 operations; the first of what follows are spills.
    for op in [9, 12] {
        for engine in ENGINES {
            let drives = Drives::new(2);
            let mut config = config_for(&drives, GradientPlace::Drives, 2);
            (config.swap.write_behind, config.swap.prefetch) = (false, false);
            (config.io.engine, config.timeouts.io_timeout) = (engine, 1.0);
            config.faults.push(FaultConfig::at(1, op, FaultKind::Stall));
            let errors = all(on_ranks(2, |comm| {
                let mut optimizer = start(&config, &[20_000, 4000], comm)?;
                let mut params = params_of(&optimizer);
                let shard = micro_batch(&optimizer, 1, 0);
                hand_over(&mut optimizer, &shard, |_| true, 1, MicroBatch::Last)?;
                let error = optimizer.flush_gradients().unwrap_err();
                assert!(error.is_agreed() && error.exit_code() == 74, "{error}");
                // The I/O thread is gone; the step that finds out says why.
                for words in ["no I/O completed", "an earlier step failed"] {
                    let later = step_borrowed(&mut optimizer, 1, &mut params).unwrap_err();
                    assert!(later.to_string().contains(words), "{later}");
                }
                Ok(error.to_string())
            }));
            for error in errors {
                assert!(error.contains("no I/O completed for 1 s"), "{op}, {engine:?}: {error}");
            }
        }
    }
}

#[test]
fn interrupted_and_short_operations_go_unseen() {
    let _turn = one_at_a_time();
    for kind in [FaultKind::Short, FaultKind::Eintr] {
        let [undisturbed, rest @ ..] = disturb(kind, "nothing");
        assert!(undisturbed > 0 && rest == [0; 3]);
    }
}

/// What comes back from a drive changed is never trained on.
#[test]
fn a_flipped_bit_in_a_spilled_gradient_is_found() {
    let _turn = one_at_a_time();
    let plain = Drives::new(2);
    let config = config_for(&plain, GradientPlace::Caller, 3);
    let expected = all(on_ranks(1, |comm| digest_of(&config, &[20_000], 2, comm))).remove(0);
    let (mut found, mut passed) = (0, 0);
    for op in 15..15 + 40 {
        let drives = Drives::new(2);
        let mut config = config_for(&drives, GradientPlace::Drives, 2);
        config.durability.mode = Durability::Step;
        config.io.engine = ENGINES[op as usize % 2];
        config.faults.push(FaultConfig::at(0, op, FaultKind::Bitflip));
        let result = on_ranks(1, |comm| digest_of(&config, &[20_000], 2, comm)).remove(0);
        match result {
            Ok(digest) => {
                assert_eq!(digest, expected, "operation {op}");
                passed += 1;
            }
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("corrupt"), "operation {op}: {text}");
                found += usize::from(text.contains("spilled gradient"));
            }
        }
    }
    println!("{found} flips in gradients found, {passed} passed");
    assert!(found > 3);
}

#[test]
fn a_restart_drops_what_was_spilled() {
    let drives = Drives::new(2);
    let other = Drives::new(2);
    let plain = config_for(&other, GradientPlace::Caller, 3);
    let sizes = [20_000, 4000];
    let expected = all(on_ranks(2, |comm| digest_of(&plain, &sizes, 2, comm)));
    // Created without room for gradients; every start keeps them elsewhere.
    let places = [
        GradientPlace::Caller,
        GradientPlace::Drives,
        GradientPlace::Memory,
        GradientPlace::Drives,
    ];
    for (turn, place) in places.into_iter().enumerate() {
        let mut config = config_for(&drives, place, 2);
        config.durability.mode = Durability::Step;
        let digests = all(on_ranks(2, |comm| {
            let mut optimizer = start(&config, &sizes, comm)?;
            let mut params = params_of(&optimizer);
            let step = optimizer.attempts() + 1;
            assert_eq!(step, (turn as u64).max(1), "each start takes one step, the first none");
            if turn > 0 {
                step_handed_over_or_borrowed(&mut optimizer, place, &mut params)?;
            }
            if place != GradientPlace::Caller {
                // Half a backward pass later it is gone.
                let shard = vec![1e9f32; params.len()];
                hand_over(&mut optimizer, &shard, |_| true, 77, MicroBatch::More)?;
                hand_over(&mut optimizer, &shard, |param| param.0 == 0, 78, MicroBatch::Last)?;
            }
            if turn == 3 { Ok(Some(optimizer.state_digest(NO_PARAMETERS)?)) } else { Ok(None) }
        }));
        if turn == 3 {
            let digests: Vec<String> = digests.into_iter().flatten().collect();
            assert_eq!(digests, expected);
        }
    }
}

fn step_handed_over_or_borrowed(
    optimizer: &mut SwappedOptimizer,
    place: GradientPlace,
    params: &mut [bf16],
) -> Result<()> {
    match place {
        GradientPlace::Caller => step_borrowed(optimizer, 2, params)?,
        _ => step_handed_over(optimizer, 2, params)?,
    };
    Ok(())
}

#[test]
fn looking_at_the_state_during_backward_disturbs_nothing() {
    let drives = Drives::new(2);
    let plain = config_for(&drives, GradientPlace::Caller, 3);
    let sizes = [20_000, 4000];
    let expected = all(on_ranks(2, |comm| digest_of(&plain, &sizes, 2, comm)));
    let config = config_for(&drives, GradientPlace::Drives, 2);
    let seen = all(on_ranks(2, |comm| {
        let mut optimizer = start(&config, &sizes, comm)?;
        let mut params = params_of(&optimizer);
        while optimizer.attempts() < STEPS {
            let step = optimizer.attempts() + 1;
            for batch in 0..2 {
                let shard = micro_batch(&optimizer, step, batch);
                hand_over(
                    &mut optimizer,
                    &shard,
                    |param| param.0 == 0,
                    step,
                    batch_of(batch == 1),
                )?;
                optimizer.state_digest(NO_PARAMETERS)?;
                hand_over(
                    &mut optimizer,
                    &shard,
                    |param| param.0 == 1,
                    step,
                    batch_of(batch == 1),
                )?;
                optimizer.write_back()?;
            }
            optimizer.flush_gradients()?;
            optimizer.emit_parameters(&mut params)?;
            optimizer.step(&Gradients::handed_over(), &mut params, StepOptions::default())?;
        }
        optimizer.state_digest(NO_PARAMETERS)
    }));
    assert_eq!(seen, expected);
}

/// Chunks that stay in memory, chunks that come, and two buffers for the gradients of all of them.
#[test]
fn gradients_come_for_chunks_in_memory_too_in_every_mode() {
    let other = Drives::new(1);
    let plain = config_for(&other, GradientPlace::Caller, 3);
    let sizes = [16 * 4096 - 100];
    let expected = all(on_ranks(1, |comm| digest_of(&plain, &sizes, 1, comm)));
    for (buffers, cached) in [(3, 1), (4, 2), (5, 3), (7, 4), (7, 5), (12, 8)] {
        for case in 0..4 {
            let [read, write] = [0, 1].map(|bit| case >> bit & 1 == 0);
            let drives = Drives::new(1);
            let mut config = config_for(&drives, GradientPlace::Drives, buffers);
            config.swap.sub_group_elements = Elems(8192);
            config.swap.cache = Bytes(cached * CHUNK_BYTES).to_string().parse().unwrap();
            (config.swap.pipeline_read, config.swap.pipeline_write) = (read, write);
            config.io.engine = ENGINES[case % 2];
            println!("{buffers} buffers, {cached} cached, read {read}, write {write}");
            let seen = all(on_ranks(1, |comm| digest_of(&config, &sizes, 1, comm)));
            assert_eq!(seen, expected, "{buffers}, {cached}, {read}, {write}");
        }
    }
}
