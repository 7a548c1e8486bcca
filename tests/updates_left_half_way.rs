//! The caller's own update that is left half-way, on one rank or on all, by mistake, by a drive's
//! failure or because the step is skipped.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use half::bf16;
use optswap::config::{FaultConfig, FaultKind};
use optswap::step::{Gradients, StepOptions};
use optswap::units::ParamIndex;
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
        let before = optimizer.state_digest()?;
        let shard = shard_gradients(&optimizer, 1);
        let gradients = Gradients::of_shard(optimizer.partition(), &shard)?;
        let mut params = vec![(); shard.len()];
        let mut groups = optimizer.begin_update(&gradients, &mut params, StepOptions::default())?;
        let error = if is_first {
            let mut sub_group = groups.swap_in()?.unwrap();
            assert!(sub_group.next_chunk()?.is_some_and(|chunk| chunk.state("master").is_some()));
            let error = sub_group.swap_out().unwrap_err();
            drop(groups);
            error
        } else {
            let error = groups.finish().unwrap_err();
            assert!(error.is_agreed());
            error
        };
        assert_eq!(optimizer.state_digest()?, before);
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
            let before = optimizer.state_digest()?;
            let shard = shard_gradients(&optimizer, 1);
            let gradients = Gradients::of_shard(optimizer.partition(), &shard)?;
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
                assert_eq!(optimizer.state_digest()?, before);
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
            let gradients = Gradients::of_shard(optimizer.partition(), &shard)?;
            let mut params = vec![(); shard.len()];
            let options = StepOptions::default();
            update_all(optimizer.begin_update(&gradients, &mut params, options)?, adamw).map(drop)
        });
        assert!(results.iter().all(|result| result.is_err()), "{kind:?}");
        let text = results[0].as_ref().unwrap_err().to_string();
        assert!(text.contains("rank 1"), "{text}");
    }
}

#[test]
fn a_skipped_step_has_no_sub_groups() {
    let drives = Drives::new(1);
    let config = rmsprop_config(&drives, true);
    all(on_ranks(2, |comm| {
        let is_first = comm.rank().0 == 0;
        let mut optimizer = support::world::start(&config, &sizes(1), comm)?;
        let before = optimizer.state_digest()?;
        let mut shard = shard_gradients(&optimizer, 1);
        if is_first {
            shard[3] = f32::NAN;
        }
        let gradients = Gradients::of_shard(optimizer.partition(), &shard)?;
        let mut params = vec![7.0f32; shard.len()];
        let groups = optimizer.begin_update(&gradients, &mut params, StepOptions::default())?;
        assert!(groups.outcome().skipped);
        let (outcome, chunks) = update_all(groups, rmsprop)?;
        assert!(outcome.skipped && chunks.is_empty());
        assert_eq!(optimizer.state_digest()?, before);
        assert!(params.iter().all(|param| *param == 7.0));
        Ok(())
    }));
}
