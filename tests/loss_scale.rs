//! The loss scale follows what all ranks have found, and so is the same on all; it survives
//! restarts, going back, and checkpoints.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use std::sync::Arc;

use half::bf16;
use optswap::internals::config::{LossScaleConfig, LossScaleMode};
use optswap::{
    Checkpoints, Communicator, Config, Gradients, NO_PARAMETERS, NoParameters, Result, StepOptions,
    StepOutcome, SwappedOptimizer,
};
use support::Drives;
use support::world::{
    all, config_for, durable_config_for, on_ranks, shard_gradients, start, step_until,
};

const SIZES: [usize; 2] = [20_000, 4000];

fn dynamic(mut config: Config) -> Config {
    config.loss_scale = LossScaleConfig {
        mode: LossScaleMode::Dynamic,
        initial: 1024.0,
        growth_interval: 2,
        minimum: 256.0,
        ..LossScaleConfig::default()
    };
    config
}

/// A step whose loss was scaled; the last rank overflows if told so.
fn scaled_step(optimizer: &mut SwappedOptimizer, overflows: bool) -> Result<StepOutcome> {
    let scale = optimizer.loss_scaler().scale();
    let mut shard = shard_gradients(optimizer, optimizer.attempts() + 1);
    shard.iter_mut().for_each(|gradient| *gradient *= scale);
    if overflows && optimizer.communicator().rank().0 == 1 {
        shard[7] = f32::NAN;
    }
    let mut params = vec![bf16::ZERO; shard.len()];
    let gradients = Gradients::Shard(&shard);
    optimizer.step(&gradients, &mut params, StepOptions::default())
}

fn scale_after(optimizer: &mut SwappedOptimizer, overflows: bool) -> Result<f32> {
    assert_eq!(scaled_step(optimizer, overflows)?.is_skipped(), overflows);
    Ok(optimizer.loss_scaler().scale())
}

#[test]
fn a_scaled_loss_gives_the_same_steps() {
    let drives = Drives::new(1);
    let plain = config_for(&drives);
    let mut fixed = config_for(&drives);
    (fixed.loss_scale.mode, fixed.loss_scale.initial) = (LossScaleMode::Static, 4096.0);
    let digests: Vec<Vec<String>> = [plain, fixed, dynamic(config_for(&drives))]
        .iter()
        .map(|config| {
            all(on_ranks(2, |comm| {
                let mut optimizer = start(config, &SIZES, comm)?;
                for _ in 0..5 {
                    // A power of two changes no bit of the mantissa.
                    scaled_step(&mut optimizer, false)?;
                }
                optimizer.state_digest(NO_PARAMETERS)
            }))
        })
        .collect();
    assert_eq!(digests[1], digests[0]);
    assert_eq!(digests[2], digests[0]);
}

#[test]
fn all_ranks_scale_alike_when_one_overflows() {
    let drives = Drives::new(1);
    let config = dynamic(config_for(&drives));
    let seen = all(on_ranks(2, |comm| {
        let mut optimizer = start(&config, &SIZES, comm)?;
        let overflows = [false, false, true, true, true, true, false, false, false];
        overflows.iter().map(|it| scale_after(&mut optimizer, *it)).collect::<Result<Vec<f32>>>()
    }));
    let expected = [1024.0, 2048.0, 1024.0, 512.0, 256.0, 256.0, 256.0, 512.0, 512.0];
    assert_eq!(seen, [expected, expected]);
}

#[test]
fn what_the_caller_scales_by_comes_on_top() {
    let drives = Drives::new(1);
    let config = dynamic(config_for(&drives));
    let plain = config_for(&drives);
    let step = |config: &Config, by: f32| {
        all(on_ranks(2, |comm| {
            let mut optimizer = start(config, &SIZES, comm)?;
            let scale = optimizer.loss_scaler().scale();
            let mut shard = shard_gradients(&optimizer, 1);
            shard.iter_mut().for_each(|gradient| *gradient *= scale * by);
            let mut params = vec![bf16::ZERO; shard.len()];
            let gradients = Gradients::Shard(&shard);
            let options = StepOptions { loss_scale: by, ..StepOptions::default() };
            let outcome = optimizer.step(&gradients, &mut params, options)?;
            assert_eq!(optimizer.loss_scale(), scale * by);
            Ok((optimizer.state_digest(NO_PARAMETERS)?, outcome.grad_norm))
        }))
    };
    // As a mean over 8 micro-batches.
    assert_eq!(step(&config, 8.0), step(&plain, 1.0));
}

#[test]
fn a_restart_goes_on_with_the_scale() {
    let drives = Drives::new(2);
    let config = dynamic(durable_config_for(&drives, 1));
    let steps = |overflows: &[bool], from: u64| {
        all(on_ranks(2, |comm| {
            let mut optimizer = start(&config, &SIZES, comm)?;
            assert_eq!(optimizer.attempts(), from);
            overflows.iter().map(|it| scale_after(&mut optimizer, *it)).collect::<Result<Vec<_>>>()
        }))
        .remove(0)
    };
    // A skipped step is committed too. Between two starts, one good step is remembered.
    assert_eq!(steps(&[true, false], 0), [512.0, 512.0]);
    assert_eq!(steps(&[false, true], 2), [1024.0, 512.0]);
    assert_eq!(steps(&[true, true], 4), [256.0, 256.0]);
}

#[test]
fn going_back_takes_the_scale_back() {
    let drives = Drives::new(2);
    let config = dynamic(durable_config_for(&drives, 3));
    let seen = all(on_ranks(2, |comm| {
        let mut optimizer = start(&config, &SIZES, comm)?;
        let scales = [false, false, true].map(|it| scale_after(&mut optimizer, it).unwrap());
        assert_eq!(scales, [1024.0, 2048.0, 1024.0]);
        assert_eq!(scale_after(&mut optimizer, true)?, 512.0);
        let mut params = vec![bf16::ZERO; optimizer.partition().elems() as usize];
        optimizer.recover(&mut params)?;
        assert_eq!(optimizer.attempts(), 3);
        Ok(optimizer.loss_scaler().scale())
    }));
    assert_eq!(seen, [1024.0, 1024.0]);
}

#[test]
fn a_checkpoint_brings_the_scale_to_any_number_of_ranks() {
    let drives = Drives::new(2);
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut config = dynamic(config_for(&drives));
    config.checkpoint.dir = Some(folder.path().to_owned());
    let directory = all(on_ranks(2, |comm| {
        let mut optimizer = start(&config, &SIZES, Arc::clone(&comm))?;
        for overflows in [true, false, false, false] {
            scale_after(&mut optimizer, overflows)?;
        }
        let mut checkpoints = Checkpoints::open(&config, comm).unwrap().unwrap();
        let saved = checkpoints.save(&mut optimizer, None, b"", NO_PARAMETERS)?;
        optimizer.close();
        Ok(saved.directory)
    }))
    .remove(0);
    let load = |ranks: usize, config: &Config| {
        all(on_ranks(ranks, |comm: Arc<dyn Communicator>| {
            let mut optimizer = start(config, &SIZES, Arc::clone(&comm))?;
            let checkpoints = Checkpoints::open(config, comm).unwrap().unwrap();
            checkpoints.load(&mut optimizer, &directory, &mut NoParameters)?;
            let before = optimizer.loss_scaler().scale();
            step_until(&mut optimizer, 5)?;
            Ok([before, optimizer.loss_scaler().scale()])
        }))
        .remove(0)
    };
    // One good step was remembered.
    assert_eq!(load(3, &config), [1024.0, 2048.0]);
    let durable = dynamic(durable_config_for(&drives, 1));
    let durable = Config { checkpoint: config.checkpoint.clone(), ..durable };
    assert_eq!(load(1, &durable), [1024.0, 2048.0]);
}
