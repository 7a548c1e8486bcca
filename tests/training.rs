//! A job from its start to its end: the same steps however gradients come, what is refused, steps
//! with a rule of the program's own, and what comes back after a kill.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use std::sync::Arc;

use optswap::internals::config::GradientPlace;
use optswap::internals::step::fill_synthetic_gradients;
use optswap::{
    Communicator, Config, CreateOptions, Error, ErrorKind, Gradients, NO_PARAMETERS, NoParameters,
    Origin, ParamIndex, Result, Sharding, StepOptions, SwappedOptimizer, Training,
};
use support::Drives;
use support::by_hand::{rmsprop, rmsprop_config};
use support::shards::fill_masters;
use support::world::{
    all, config_for, durable_config_for, inventory, on_ranks, shard_gradients, start, step_until,
};

const SIZES: [usize; 4] = [9000, 37, 12_000, 4099];
const STEPS: u64 = 3;

/// What this rank's backward pass gives at a step, for all parameters.
fn backward(comm: &dyn Communicator, step: u64) -> Vec<f32> {
    let mut full = vec![0.0; SIZES.iter().sum()];
    fill_synthetic_gradients(11 + u64::from(comm.rank().0), step, 0, &mut full, |it| it);
    full
}

/// A job of synthetic masters.
fn job(config: &Config, comm: &Arc<dyn Communicator>, sharding: Sharding) -> Result<Training<f32>> {
    let inventory = inventory(&SIZES);
    Training::builder(config, Arc::clone(comm))
        .parameters(inventory.parameters().to_vec())
        .sharding(sharding)
        .start::<f32>(fill_masters(3, &inventory))
}

/// How gradients come to a job.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// All at once.
    Whole,
    /// Parameter by parameter, the last one first.
    ByParameter,
    /// Reduced by the program.
    Set,
}

fn reduce(job: &mut Training<f32>, way: Way, full: &[f32]) -> Result<()> {
    match way {
        Way::Whole => job.reduce_gradients(full),
        Way::ByParameter => {
            let inventory = job.optimizer().plan().inventory().clone();
            for param in (0..SIZES.len()).rev().map(ParamIndex::from_index) {
                let start = inventory.flat_start(param) as usize;
                job.reduce_gradient(param, &full[start..start + SIZES[param.index()]])?;
            }
            Ok(())
        }
        Way::Set => {
            let mut shard = vec![0.0; job.params().len()];
            job.optimizer_mut().reduce_gradients(full, &mut shard)?;
            job.set_gradients(&shard)
        }
    }
}

/// The digest of a job after some steps, and all of its parameters.
fn train(
    config: &Config,
    comm: &Arc<dyn Communicator>,
    sharding: Sharding,
    way: Way,
) -> Result<(String, Vec<f32>)> {
    let mut job = job(config, comm, sharding)?;
    let mut params = vec![0.0; job.total_elems()];
    while let Some(step) = job.next_step(STEPS) {
        job.set_lr_factor(1.0 / step as f64)?;
        reduce(&mut job, way, &backward(&**comm, step))?;
        assert!(job.step()?.is_taken());
        job.gather_parameters(&mut params)?;
    }
    let digest = job.optimizer_mut().element_digest(NO_PARAMETERS)?;
    job.finish()?;
    Ok((digest, params))
}

/// The same as a loop over the optimizer.
fn train_in_a_loop(config: &Config, comm: &Arc<dyn Communicator>) -> Result<(String, Vec<f32>)> {
    let inventory = inventory(&SIZES);
    let options = CreateOptions::default();
    let mut optimizer =
        SwappedOptimizer::create(config, inventory.clone(), Arc::clone(comm), options)?;
    let mut shard = vec![0.0; optimizer.partition().elems() as usize];
    let mut params = shard.clone();
    optimizer.initialize_parameters(&mut params, fill_masters(3, &inventory))?;
    for step in 1..=STEPS {
        optimizer.set_lr_factor(1.0 / step as f64)?;
        optimizer.reduce_gradients(&backward(&**comm, step), &mut shard)?;
        optimizer.step(&Gradients::Shard(&shard), &mut params, StepOptions::default())?;
    }
    let mut full = vec![0.0; SIZES.iter().sum()];
    optimizer.gather_parameters(&params, &mut full)?;
    let digest = optimizer.element_digest(NO_PARAMETERS)?;
    comm.barrier()?;
    optimizer.close();
    Ok((digest, full))
}

#[test]
fn a_job_takes_the_steps_of_a_loop_however_gradients_come() {
    for ranks in 1..=3 {
        let drives = Drives::new(1);
        let mut config = config_for(&drives);
        // The norm is added up in another order for another cut.
        config.optimizer.clip_norm = 0.0;
        let expected = all(on_ranks(ranks, |comm| train_in_a_loop(&config, &comm)));
        for place in [GradientPlace::Caller, GradientPlace::Memory, GradientPlace::Drives] {
            config.gradients.place = place;
            for way in [Way::Whole, Way::ByParameter, Way::Set] {
                for sharding in [Sharding::default(), Sharding::slices()] {
                    let train = |comm| train(&config, &comm, sharding.clone(), way);
                    let seen = all(on_ranks(ranks, train));
                    assert!(seen == expected, "{ranks} ranks, {place:?}, {way:?}");
                }
            }
        }
        assert!(drives.are_empty());
    }
}

#[test]
fn a_parameter_that_is_not_given_has_no_gradient_and_none_is_given_twice() {
    let drives = Drives::new(1);
    let mut config = config_for(&drives);
    for place in [GradientPlace::Caller, GradientPlace::Memory] {
        config.gradients.place = place;
        all(on_ranks(2, |comm| {
            let mut job = job(&config, &comm, Sharding::default())?;
            let full = backward(&*comm, 1);
            job.reduce_gradient(ParamIndex(2), &full[9037..21_037])?;
            // Refused on all ranks, whichever of them own a part.
            for result in [
                job.reduce_gradient(ParamIndex(2), &full[9037..21_037]),
                job.reduce_gradients(&full),
                job.set_gradients(&vec![0.0; job.params().len()]),
            ] {
                let error = result.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Usage);
                assert!(error.to_string().contains("reduced twice before a step"), "{error}");
            }
            job.step()?;
            // The next step takes others.
            job.reduce_gradient(ParamIndex(0), &full[..9000])?;
            job.step()?;
            let optimizer = job.optimizer();
            for piece in optimizer.partition().pieces() {
                let expected = u64::from(piece.param.0 % 2 == 0);
                assert_eq!(optimizer.update_count(piece.param), expected);
            }
            job.finish()
        }));
    }
}

#[test]
fn hyper_parameters_that_are_no_numbers_are_refused() {
    let drives = Drives::new(1);
    let config = config_for(&drives);
    all(on_ranks(2, |comm| {
        let mut job = job(&config, &comm, Sharding::default())?;
        let before = job.optimizer_mut().state_digest(NO_PARAMETERS)?;
        for factor in [f64::NAN, f64::INFINITY, -0.5] {
            let error = job.set_lr_factor(factor).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert!(error.to_string().contains("factor"), "{error}");
        }
        job.set_lr_factor(0.5)?;
        assert_eq!(job.optimizer().param_groups()[1].lr, 0.005);

        let shard = shard_gradients(job.optimizer(), 1);
        for set in [
            |optimizer: &mut SwappedOptimizer| optimizer.param_groups_mut()[0].lr = f64::NAN,
            |optimizer: &mut SwappedOptimizer| optimizer.param_groups_mut()[1].eps = f64::NAN,
            |optimizer: &mut SwappedOptimizer| {
                optimizer.param_groups_mut()[0].weight_decay = f64::NAN;
            },
            |optimizer: &mut SwappedOptimizer| optimizer.param_groups_mut()[1].betas[1] = f64::NAN,
        ] {
            let good = job.optimizer().param_groups().to_vec();
            if comm.rank().0 == 1 {
                set(job.optimizer_mut());
            }
            let error = job.step_on(&Gradients::Shard(&shard)).unwrap_err();
            assert!(error.is_agreed() && error.kind() == ErrorKind::Usage, "{error}");
            assert!(error.to_string().contains("rank 1 of 2"), "{error}");
            job.optimizer_mut().param_groups_mut().clone_from_slice(&good);
        }
        assert_eq!(job.optimizer_mut().state_digest(NO_PARAMETERS)?, before);
        assert_eq!(job.step_on(&Gradients::Shard(&shard))?.attempt, 1);
        job.finish()
    }));
}

#[test]
fn an_initialisation_over_committed_steps_is_refused_unless_training_is_to_begin_anew() {
    let drives = Drives::new(1);
    let config = durable_config_for(&drives, 1);
    let undisturbed = all(on_ranks(2, |comm| {
        let mut optimizer = start(&config, &SIZES, comm)?;
        step_until(&mut optimizer, 2)?;
        let digest = optimizer.state_digest(NO_PARAMETERS)?;
        step_until(&mut optimizer, 3)?;
        Ok(digest)
    }));
    let fill =
        |optimizer: &SwappedOptimizer| support::world::masters(optimizer.partition().flat().start);
    let create =
        |comm| SwappedOptimizer::create(&config, inventory(&SIZES), comm, CreateOptions::default());
    let texts = all(on_ranks(2, |comm| {
        let mut optimizer = create(comm)?;
        let before = (optimizer.epoch(), optimizer.state_digest(NO_PARAMETERS)?);
        let fill = fill(&optimizer);
        let error = optimizer.initialize_parameters(&mut NoParameters, fill).unwrap_err();
        assert!(error.is_agreed() && error.kind() == ErrorKind::Usage, "{error}");
        assert_eq!((optimizer.epoch(), optimizer.state_digest(NO_PARAMETERS)?), before);
        let own = optimizer.partition().pieces()[0].param;
        assert_eq!((optimizer.attempts(), optimizer.update_count(own)), (3, 3));
        Ok(error.to_string())
    }));
    for text in texts {
        for word in ["committed steps", "job default", "step 3", "restart_training"] {
            assert!(text.contains(word), "`{word}` is not in: {text}");
        }
    }
    all(on_ranks(2, |comm| {
        let mut optimizer = create(comm)?;
        assert_eq!(optimizer.resumed().map(|resumed| resumed.attempt), Some(3), "all is there");
        let fill = fill(&optimizer);
        optimizer.restart_training(&mut NoParameters, fill)?;
        let own = optimizer.partition().pieces()[0].param;
        assert_eq!((optimizer.attempts(), optimizer.update_count(own)), (0, 0));
        step_until(&mut optimizer, 2)
    }));
    let again = all(on_ranks(2, |comm| {
        let mut optimizer = create(comm)?;
        assert_eq!(optimizer.resumed().map(|resumed| resumed.attempt), Some(2));
        let digest = optimizer.state_digest(NO_PARAMETERS)?;
        optimizer.close();
        Ok(digest)
    }));
    assert_eq!(again, undisturbed);
}

/// Steps with RMSprop as the program's own until so many have been taken, from wherever the job is.
/// Gives where that was, and the digest. Then it is dropped, as by a kill.
fn train_with_a_rule(config: &Config, until: u64) -> (Origin, String) {
    let mut results = all(on_ranks(2, |comm| {
        let mut job = job(config, &comm, Sharding::default())?;
        let (origin, state) = (job.origin().clone(), job.user_state::<(u64, String)>()?);
        let expected = (origin.attempt(), format!("batch {}", 10 * origin.attempt()));
        assert_eq!(state, (origin != Origin::Fresh).then_some(expected), "of the commit");
        while let Some(step) = job.next_step(until) {
            job.set_user_state(&(step, format!("batch {}", 10 * step)))?;
            job.reduce_gradients(&backward(&*comm, step))?;
            let outcome = job.step_with(|run, grads, arrays| {
                rmsprop(&run.hyper, run.number, grads, arrays);
                Ok(())
            })?;
            assert_eq!(outcome.epoch.is_some(), step % 2 == 0 && config.is_durable());
        }
        Ok((origin, job.optimizer_mut().state_digest(NO_PARAMETERS)?))
    }));
    assert_eq!(results[0], results[1]);
    results.swap_remove(0)
}

#[test]
fn a_job_with_a_rule_of_its_own_goes_on_from_commits_and_checkpoints() {
    for place in [GradientPlace::Caller, GradientPlace::Memory, GradientPlace::Drives] {
        let config = |drives: &Drives, is_durable| {
            let mut config = rmsprop_config(drives, is_durable);
            config.gradients.place = place;
            config.swap.memory_budget.0 = 64 << 20;
            config
        };
        let others = Drives::new(1);
        let (origin, undisturbed) = train_with_a_rule(&config(&others, false), 7);
        assert_eq!(origin, Origin::Fresh);

        let drives = Drives::new(1);
        let mut config = config(&drives, true);
        config.checkpoint.dir = Some(drives.path().join("checkpoints"));
        config.checkpoint.every = 1;
        assert_eq!(train_with_a_rule(&config, 5).0, Origin::Fresh);
        let (origin, digest) = train_with_a_rule(&config, 7);
        assert!(matches!(&origin, Origin::Drives(resumed) if resumed.attempt == 4), "{origin:?}");
        assert_eq!(digest, undisturbed, "{place:?}");
        // Nothing but checkpoints is left.
        config.drives.paths = others.paths();
        let (origin, digest) = train_with_a_rule(&config, 7);
        assert!(matches!(origin, Origin::Checkpoint { attempt: 6, .. }), "{origin:?}");
        assert_eq!(digest, undisturbed, "{place:?}");
    }
}

#[test]
fn an_error_of_the_rule_on_one_rank_is_one_on_all() {
    let drives = Drives::new(1);
    let config = rmsprop_config(&drives, false);
    let results = on_ranks(2, |comm| {
        let mut job = job(&config, &comm, Sharding::default())?;
        job.reduce_gradients(&backward(&*comm, 1))?;
        job.step_with(|run, _, _| match (comm.rank().0, run.param) {
            (1, ParamIndex(3)) => Err(Error::usage("no such rule")),
            _ => Ok(()),
        })
    });
    for result in results {
        let error = result.unwrap_err();
        assert!(error.is_agreed() && error.to_string().contains("no such rule"), "{error}");
    }
}

#[test]
fn every_rank_goes_on_with_its_own_user_state_and_other_numbers_of_ranks_can_have_all() {
    let drives = Drives::new(1);
    let mut config = config_for(&drives);
    config.checkpoint.dir = Some(drives.path().join("checkpoints"));
    let run = |ranks: usize, steps: u64| {
        all(on_ranks(ranks, |comm| {
            let rank = u64::from(comm.rank().0);
            let mut job = job(&config, &comm, Sharding::default())?;
            let before: (Option<u64>, Vec<u64>) = (job.user_state()?, job.saved_user_states()?);
            while let Some(step) = job.next_step(steps) {
                job.reduce_gradients(&backward(&*comm, step))?;
                job.set_user_state(&(1000 * step + rank))?;
                job.step()?;
            }
            let large = "x".repeat(StepOptions::USER_BLOB_BYTES_MAX);
            assert_eq!(job.set_user_state(&large).unwrap_err().exit_code(), 64);
            job.finish()?;
            Ok(before)
        }))
    };
    assert_eq!(run(2, 1), [(None, vec![]), (None, vec![])]);
    let saved = vec![1000, 1001];
    assert_eq!(run(2, 2), [(Some(1000), saved.clone()), (Some(1001), saved)]);
    let saved = vec![2000, 2001];
    assert_eq!(run(1, 3), [(Some(2000), saved)]);
}
