//! The caller's own update that is left half-way, on one rank or on all, by mistake, by a drive's
//! failure or because the step is skipped.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

#[path = "support/handed_over.rs"]
mod handed_over;
mod support;

use std::sync::Arc;

use half::bf16;
use handed_over::{GRADIENT_BYTES, hand_over};
use optswap::internals::config::{FaultConfig, FaultKind, GradientPlace};
use optswap::{
    Communicator, Config, Gradients, MicroBatch, NO_PARAMETERS, ParamIndex, Result, StepOptions,
    SwappedOptimizer,
};
use support::Drives;
use support::by_hand::{adamw, rmsprop, rmsprop_config, sizes, small_config, update_all};
use support::world::{all, on_ranks, shard_gradients};

#[test]
fn an_update_left_before_any_change_is_an_error_on_all_and_harms_nothing() {
    let drives = Drives::new(1);
    let config = small_config(&drives, false);
    let results = all(on_ranks(2, |comm| {
        let is_first = comm.rank().0 == 0;
        let mut optimizer = support::world::start(&config, &sizes(1), comm)?;
        let before = optimizer.state_digest(NO_PARAMETERS)?;
        let shard = shard_gradients(&optimizer, 1);
        let gradients = Gradients::Shard(&shard);
        let mut params = vec![(); shard.len()];
        let mut groups = optimizer.begin_update(&gradients, &mut params, StepOptions::default())?;
        let error = if is_first {
            let mut sub_group = groups.swap_in()?.unwrap();
            assert!(sub_group.next_chunk()?.is_some_and(|chunk| chunk.state("master").is_some()));
            let error = sub_group.swap_out().unwrap_err();
            drop(groups);
            error
        } else {
            let error = groups.finish(Ok(())).unwrap_err();
            assert!(error.is_agreed());
            error
        };
        assert_eq!(optimizer.state_digest(NO_PARAMETERS)?, before);
        assert_eq!(optimizer.update_count(ParamIndex(0)), 0);
        optimizer.step(&gradients, &mut params, StepOptions::default())?;
        Ok(error.to_string())
    }));
    for text in results {
        assert!(text.contains("swapped out before its last gradient is used"), "{text}");
    }
}

#[test]
fn an_update_left_after_a_change_makes_the_optimizer_unusable_until_it_recovers() {
    for is_durable in [false, true] {
        let drives = Drives::new(1);
        let config = small_config(&drives, is_durable);
        all(on_ranks(2, |comm| {
            let is_first = comm.rank().0 == 0;
            let mut optimizer = support::world::start(&config, &sizes(1), comm)?;
            let before = optimizer.state_digest(NO_PARAMETERS)?;
            let shard = shard_gradients(&optimizer, 1);
            let gradients = Gradients::Shard(&shard);
            let mut params = vec![bf16::ZERO; shard.len()];
            let mut groups =
                optimizer.begin_update(&gradients, &mut params, StepOptions::default())?;
            if is_first {
                let mut sub_group = groups.swap_in()?.unwrap();
                sub_group.next_chunk()?.unwrap().master_mut()[0] = 1.0;
                drop(sub_group);
                let error = groups.swap_in().map(drop).unwrap_err().to_string();
                assert!(error.contains("before another is swapped out"), "{error}");
                drop(groups);
            } else {
                assert!(update_all(groups, adamw).is_err());
            }
            let error = optimizer.step(&gradients, &mut params, StepOptions::default());
            assert!(error.unwrap_err().to_string().contains("an earlier step failed"));
            if is_durable {
                optimizer.recover(&mut params)?;
                assert_eq!(optimizer.state_digest(NO_PARAMETERS)?, before);
                let options = StepOptions::default();
                update_all(optimizer.begin_update(&gradients, &mut params, options)?, adamw)?;
            }
            Ok(())
        }));
    }
}

#[test]
fn a_drive_that_fails_under_the_door_is_an_error_on_all_ranks() {
    for kind in [FaultKind::Eio, FaultKind::Bitflip] {
        let drives = Drives::new(1);
        let mut config = small_config(&drives, false);
        // After eight first writes, the second read, on rank 1 alone.
        config.faults.push(FaultConfig::at(1, 9, kind));
        let results = on_ranks(2, |comm| {
            let mut optimizer = support::world::start(&config, &sizes(1), comm)?;
            let shard = shard_gradients(&optimizer, 1);
            let gradients = Gradients::Shard(&shard);
            let mut params = vec![(); shard.len()];
            let options = StepOptions::default();
            update_all(optimizer.begin_update(&gradients, &mut params, options)?, adamw).map(drop)
        });
        assert!(results.iter().all(|result| result.is_err()), "{kind:?}");
        let text = results[0].as_ref().unwrap_err().to_string();
        assert!(text.contains("rank 1"), "{text}");
    }
}

/// A job before its first step, its digest, and gradients, among them one of the first rank with
/// which no step can be taken.
fn before_a_skipped_step(
    config: &Config,
    comm: Arc<dyn Communicator>,
    wrong: f32,
) -> Result<(SwappedOptimizer, String, Vec<f32>)> {
    let is_first = comm.rank().0 == 0;
    let mut optimizer = support::world::start(config, &sizes(1), comm)?;
    let before = optimizer.state_digest(NO_PARAMETERS)?;
    let mut shard = shard_gradients(&optimizer, 1);
    if is_first {
        shard[3] = wrong;
    }
    Ok((optimizer, before, shard))
}

#[test]
fn a_skipped_step_has_no_sub_groups() {
    let drives = Drives::new(1);
    let config = rmsprop_config(&drives, true);
    all(on_ranks(2, |comm| {
        let (mut optimizer, before, shard) = before_a_skipped_step(&config, comm, f32::NAN)?;
        let gradients = Gradients::Shard(&shard);
        let mut params = vec![7.0f32; shard.len()];
        let groups = optimizer.begin_update(&gradients, &mut params, StepOptions::default())?;
        assert!(groups.outcome().is_skipped());
        let (outcome, chunks) = update_all(groups, rmsprop)?;
        assert!(outcome.is_skipped() && chunks.is_empty());
        assert_eq!(optimizer.state_digest(NO_PARAMETERS)?, before);
        assert!(params.iter().all(|param| *param == 7.0));
        Ok(())
    }));
}

const PLACES: [GradientPlace; 3] =
    [GradientPlace::Memory, GradientPlace::Drives, GradientPlace::Auto];

/// As [`small_config`], with room for gradients.
fn config_with_gradients(drives: &Drives, is_durable: bool, place: GradientPlace) -> Config {
    let mut config = small_config(drives, is_durable);
    config.gradients.place = place;
    config.swap.memory_budget.0 += 9 * GRADIENT_BYTES;
    config
}

fn hand_over_all(optimizer: &mut SwappedOptimizer) -> Result<()> {
    let shard = shard_gradients(optimizer, optimizer.attempts() + 1);
    hand_over(optimizer, &shard, |_| true, 3, MicroBatch::Last)
}

/// What an update has left in the store is not used by the next one.
fn is_store_empty(optimizer: &mut SwappedOptimizer) -> Result<bool> {
    // Borrowed gradients are refused as long as others are there.
    let mut params = vec![(); optimizer.partition().elems() as usize];
    let step =
        optimizer.step(&Gradients::<f32>::Pieces(Vec::new()), &mut params, StepOptions::default());
    match step {
        Ok(outcome) => Ok(outcome.grad_norm == 0.0),
        Err(error) if error.to_string().contains("handed over before") => Ok(false),
        Err(error) => Err(error),
    }
}

#[test]
fn stored_gradients_are_gone_when_their_update_is_left_half_way() {
    for place in PLACES {
        for changes in [false, true] {
            let drives = Drives::new(1);
            let config = config_with_gradients(&drives, true, place);
            all(on_ranks(2, |comm| {
                let is_first = comm.rank().0 == 0;
                let mut optimizer = support::world::start(&config, &sizes(1), comm)?;
                let before = optimizer.state_digest(NO_PARAMETERS)?;
                hand_over_all(&mut optimizer)?;
                let mut params = vec![bf16::ZERO; optimizer.partition().elems() as usize];
                let options = StepOptions::default();
                let mut groups =
                    optimizer.begin_update(&Gradients::<f32>::HandedOver, &mut params, options)?;
                if is_first {
                    let mut sub_group = groups.swap_in()?.unwrap();
                    let mut chunk = sub_group.next_chunk()?.unwrap();
                    assert!(chunk.runs().iter().all(|run| run.gradient.is_some()));
                    if changes {
                        chunk.master_mut()[0] = 1.0;
                    }
                    drop(sub_group);
                    drop(groups);
                } else if changes {
                    assert!(update_all(groups, adamw).is_err());
                } else {
                    assert!(groups.finish(Ok(())).is_err());
                }
                if changes {
                    optimizer.recover(&mut params)?;
                }
                assert_eq!(optimizer.state_digest(NO_PARAMETERS)?, before);
                assert_eq!(optimizer.update_count(ParamIndex(0)), 0);
                assert!(is_store_empty(&mut optimizer)?, "{place:?}");
                assert_eq!(optimizer.state_digest(NO_PARAMETERS)?, before);
                hand_over_all(&mut optimizer)?;
                let groups =
                    optimizer.begin_update(&Gradients::<f32>::HandedOver, &mut params, options)?;
                let (outcome, _) = update_all(groups, adamw)?;
                assert!(outcome.grad_norm > 0.0);
                assert!(is_store_empty(&mut optimizer)?, "{place:?}");
                Ok(())
            }));
        }
    }
}

#[test]
fn a_skipped_step_has_no_sub_groups_and_drops_stored_gradients() {
    for place in PLACES {
        let drives = Drives::new(1);
        let config = config_with_gradients(&drives, false, place);
        all(on_ranks(2, |comm| {
            let (mut optimizer, before, shard) =
                before_a_skipped_step(&config, comm, f32::INFINITY)?;
            hand_over(&mut optimizer, &shard, |_| true, 3, MicroBatch::Last)?;
            let mut params = vec![7.0f32; shard.len()];
            let options = StepOptions::default();
            let groups =
                optimizer.begin_update(&Gradients::<f32>::HandedOver, &mut params, options)?;
            let (outcome, chunks) = update_all(groups, adamw)?;
            assert!(outcome.is_skipped() && chunks.is_empty());
            assert!(is_store_empty(&mut optimizer)?, "{place:?}");
            assert_eq!(optimizer.state_digest(NO_PARAMETERS)?, before);
            assert!(params.iter().all(|param| *param == 7.0));
            Ok(())
        }));
    }
}

/// A flipped bit in a gradient, or one that cannot be read, on one rank.
#[test]
fn a_spilled_gradient_that_is_lost_under_the_door_is_an_error_on_all_ranks() {
    for (kind, words) in [(FaultKind::Eio, "cannot be read back"), (FaultKind::Bitflip, "corrupt")]
    {
        let mut found = 0;
        // After eight first writes and eight spills.
        for op in 16..32 {
            let drives = Drives::new(1);
            let mut config = config_with_gradients(&drives, true, GradientPlace::Drives);
            (config.swap.write_behind, config.swap.prefetch) = (false, false);
            config.faults.push(FaultConfig::at(1, op, kind));
            let texts = all(on_ranks(2, |comm| {
                let mut optimizer = support::world::start(&config, &sizes(1), comm)?;
                let before = optimizer.state_digest(NO_PARAMETERS)?;
                let mut params = vec![bf16::ZERO; optimizer.partition().elems() as usize];
                let options = StepOptions::default();
                hand_over_all(&mut optimizer)?;
                let groups =
                    optimizer.begin_update(&Gradients::<f32>::HandedOver, &mut params, options);
                let updated = groups.and_then(|groups| update_all(groups, adamw));
                let Err(error) = updated else { return Ok(String::new()) };
                optimizer.recover(&mut params)?;
                assert_eq!(optimizer.state_digest(NO_PARAMETERS)?, before);
                assert!(is_store_empty(&mut optimizer)?);
                Ok(error.to_string())
            }));
            assert_eq!(texts[0].is_empty(), texts[1].is_empty(), "{kind:?}, {op}: {texts:?}");
            let is_of_gradient = texts[1].contains("gradient") && texts[1].contains(words);
            found += usize::from(is_of_gradient && texts[1].contains("holding"));
        }
        assert!(found > 1, "{kind:?}: {found}");
    }
}

#[test]
fn an_update_in_another_format_is_refused_and_the_gradients_stay() {
    let drives = Drives::new(1);
    let config = config_with_gradients(&drives, false, GradientPlace::Drives);
    all(on_ranks(2, |comm| {
        let mut optimizer = support::world::start(&config, &sizes(1), comm)?;
        let mut params = vec![(); optimizer.partition().elems() as usize];
        let options = StepOptions::default();
        hand_over_all(&mut optimizer)?;
        let refused = optimizer.begin_update(&Gradients::<bf16>::HandedOver, &mut params, options);
        let error = refused.map(drop).unwrap_err();
        assert_eq!(error.exit_code(), 64);
        assert!(error.to_string().contains("gradients.accumulate_in"), "{error}");
        let gradients = Gradients::<f32>::Pieces(Vec::new());
        let refused = optimizer.begin_update(&gradients, &mut params, options).map(drop);
        assert!(refused.unwrap_err().to_string().contains("Gradients::HandedOver"));
        let groups = optimizer.begin_update(&Gradients::<f32>::HandedOver, &mut params, options)?;
        assert!(update_all(groups, adamw)?.0.grad_norm > 0.0);
        Ok(())
    }));
}

#[test]
fn a_missing_gradient_means_the_same_in_a_step_and_in_a_stored_update() {
    use optswap::internals::config::MissingGradient::{Error, Skip, Zero};
    for missing in [Skip, Zero, Error] {
        let run = |by_door: bool, place| {
            let drives = Drives::new(1);
            let mut config = config_with_gradients(&drives, false, place);
            config.gradients.missing = missing;
            all(on_ranks(2, |comm| {
                let mut optimizer = support::world::start(&config, &sizes(1), comm)?;
                let mut params = vec![bf16::ZERO; optimizer.partition().elems() as usize];
                // The door emits whole chunks.
                optimizer.emit_parameters(&mut params)?;
                for step in 1..=2 {
                    let shard = shard_gradients(&optimizer, step);
                    let has_one =
                        |param: ParamIndex| !u64::from(param.0 + 1).is_multiple_of(step + 1);
                    hand_over(&mut optimizer, &shard, has_one, step, MicroBatch::Last)?;
                    let options = StepOptions::default();
                    let taken = if by_door {
                        let groups = optimizer.begin_update(
                            &Gradients::<f32>::HandedOver,
                            &mut params,
                            options,
                        );
                        groups.and_then(|groups| Ok(update_all(groups, adamw)?.0))
                    } else {
                        optimizer.step(&Gradients::handed_over(), &mut params, options)
                    };
                    if missing == Error {
                        assert!(taken.unwrap_err().to_string().contains("has no gradient"));
                        optimizer.discard_gradients();
                    } else {
                        taken?;
                    }
                }
                let counts: Vec<u64> =
                    (0..6).map(|it| optimizer.update_count(ParamIndex(it))).collect();
                Ok((optimizer.state_digest(NO_PARAMETERS)?, counts, params))
            }))
        };
        for place in PLACES {
            assert!(run(true, place) == run(false, place), "{missing:?}, {place:?}");
        }
    }
}
