//! What the swapper does between two steps: writes behind the one, reads ahead of the other, chunks
//! kept in memory. The bits are the same whatever it does; bytes follow what is kept; and a failure
//! there is an error of all ranks in what they do next.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use std::sync::Arc;

use half::bf16;
use optswap::internals::config::{CacheSize, Durability, EngineName, FaultConfig, FaultKind};
use optswap::{
    Bytes, Communicator, Config, Gradients, NO_PARAMETERS, Result, StepOptions, SwappedOptimizer,
};
use proptest::prelude::*;
use support::world::{
    self, Job, STEPS, all, job_config_for, on_ranks_in_case, shard_gradients, start, step_into,
    step_until, undisturbed_digests,
};
use support::{Drives, one_at_a_time};

const CHUNK_BYTES: u64 = 4096 * 12;
const ENGINES: [EngineName; 2] = [EngineName::Uring, EngineName::Threads];

fn config_for(drives: &Drives, buffers: u64, cached: u64) -> Config {
    let mut config = world::config_for(drives);
    config.swap.memory_budget = Bytes(buffers * CHUNK_BYTES);
    config.swap.cache = CacheSize::Bytes(Bytes(cached * CHUNK_BYTES));
    config
}

/// Bytes read and written by this many steps, everything that belongs to them included.
fn bytes_of_steps(optimizer: &mut SwappedOptimizer, steps: u64) -> Result<[u64; 2]> {
    optimizer.flush()?;
    optimizer.reset_records();
    step_until(optimizer, optimizer.attempts() + steps)?;
    optimizer.flush()?;
    let record = optimizer.gather_records()?.swap_remove(0);
    Ok([record.read_bytes(), record.written_bytes()])
}

/// A job's digest after four steps.
fn digest_of(config: &Config, sizes: &[usize], comm: Arc<dyn Communicator>) -> Result<String> {
    let mut optimizer = start(config, sizes, comm)?;
    step_until(&mut optimizer, 4)?;
    let digest = optimizer.state_digest(NO_PARAMETERS)?;
    optimizer.close();
    Ok(digest)
}

#[test]
fn every_small_budget_and_cache_works_and_gives_the_same_state() {
    for chunks in 1..=4usize {
        let sizes = [chunks * 4096 - 100];
        let digest = |config: &Config| {
            world::on_ranks(1, |comm| digest_of(config, &sizes, comm)).remove(0).unwrap()
        };
        let drives = Drives::new(1);
        let expected = digest(&config_for(&drives, 2, 0));
        for (buffers, cached) in (2..=5).flat_map(|it| (0..=it).map(move |cached| (it, cached))) {
            for switches in 0..4 {
                let mut config = config_for(&drives, buffers, cached);
                config.swap.write_behind = switches & 1 == 0;
                config.swap.prefetch = switches & 2 == 0;
                config.io.engine = ENGINES[(buffers % 2) as usize];
                if cached % 2 == 1 {
                    config.durability.mode = Durability::Step;
                    config.durability.commit_every = 1 + cached % 3;
                }
                assert_eq!(digest(&config), expected, "{chunks} chunks: {:?}", config.swap);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn any_budget_gives_the_same_state(
        sizes in prop::collection::vec(1usize..40_000, 1..4),
        ranks in 1usize..4,
        buffers in 2u64..24,
        cached_percent in 0u64..=100,
        is_auto in any::<bool>(),
        is_durable in any::<bool>(),
        commit_every in 1u64..4,
        is_uring in any::<bool>(),
    ) {
        let drives = Drives::new(2);
        let plain = config_for(&drives, 2, 0);
        let alone = world::on_ranks(1, |comm| digest_of(&plain, &sizes, comm));
        let expected = alone.into_iter().next().unwrap().unwrap();
        let mut config = config_for(&drives, buffers, buffers * cached_percent / 100);
        if is_auto {
            config.swap.cache = CacheSize::Auto;
        }
        config.io.engine = ENGINES[usize::from(!is_uring)];
        if is_durable {
            config.durability.mode = Durability::Step;
            config.durability.commit_every = commit_every;
        }
        for digest in world::on_ranks(ranks, |comm| digest_of(&config, &sizes, comm)) {
            prop_assert_eq!(digest.unwrap(), expected.clone());
        }
    }
}

#[test]
fn bytes_moved_fall_with_what_is_kept_in_memory() {
    const CHUNKS: u64 = 40;
    for (buffers, cached) in [(4, 0), (4, 2), (12, 10), (24, 20), (40, 38), (40, 40)] {
        let drives = Drives::new(2);
        let config = config_for(&drives, buffers, cached);
        let moved = world::on_ranks(1, |comm| {
            let mut optimizer = start(&config, &[CHUNKS as usize * 4096], comm)?;
            assert_eq!(optimizer.plan().cached_chunks() as u64, cached);
            // The first step is not like the others: it finds everything on the drives.
            step_until(&mut optimizer, 1)?;
            bytes_of_steps(&mut optimizer, 5)
        });
        let expected = 5.0 * ((CHUNKS - cached) * CHUNK_BYTES) as f64;
        for bytes in moved.into_iter().next().unwrap().unwrap() {
            let difference = (bytes as f64 - expected).abs();
            assert!(difference <= 0.02 * expected, "{cached} kept: {bytes}, not {expected}");
        }
    }
}

#[test]
fn what_was_read_ahead_stays_when_a_step_is_skipped() {
    let drives = Drives::new(1);
    let results = world::on_ranks(1, |comm| {
        let mut optimizer = start(&config_for(&drives, 3, 0), &[10 * 4096], comm)?;
        step_until(&mut optimizer, 1)?;
        optimizer.flush()?;
        optimizer.reset_records();
        let mut shard = shard_gradients(&optimizer, 2);
        let mut params = vec![bf16::ZERO; shard.len()];
        shard[0] = f32::NAN;
        let gradients = Gradients::Shard(&shard);
        for _ in 0..3 {
            assert!(optimizer.step(&gradients, &mut params, StepOptions::default())?.is_skipped());
        }
        optimizer.flush()?;
        let record = optimizer.gather_records()?.swap_remove(0);
        assert_eq!([record.read_bytes(), record.written_bytes()], [0, 0], "all buffers were full");
        step_into(&mut optimizer, &mut params)?;
        optimizer.flush()?;
        let record = optimizer.gather_records()?.swap_remove(0);
        assert_eq!([record.read_bytes(), record.written_bytes()], [10 * CHUNK_BYTES; 2]);
        Ok(())
    });
    results.into_iter().for_each(|result| result.unwrap());
}

/// Where a job met an error, and what it was; or its digest.
type Seen = std::result::Result<String, String>;

/// Runs a job to its end, with a flush after every step if told so. A durable job goes back after
/// an error and must come to the right end; gives the error all the same.
fn run(config: &Config, flushes: bool, comm: Arc<dyn Communicator>) -> Seen {
    let mut job = Job::start(config, comm).unwrap();
    let try_steps = |job: &mut Job| -> Result<String> {
        while job.optimizer.attempts() < STEPS {
            job.step()?;
            if flushes {
                job.optimizer.flush()?;
            }
        }
        job.optimizer.flush()?;
        job.optimizer.state_digest(NO_PARAMETERS)
    };
    let error = match try_steps(&mut job) {
        Ok(digest) => {
            job.optimizer.close();
            return Ok(digest);
        }
        Err(error) => error,
    };
    assert!(error.is_agreed() && error.exit_code() == 74, "{error}");
    if config.durability.mode == Durability::Step {
        let mut params = std::mem::take(&mut job.params);
        job.optimizer.recover(&mut params).unwrap();
        job.params = params;
        assert_eq!(try_steps(&mut job).unwrap(), undisturbed_digests(1).pop().unwrap());
        job.optimizer.close();
    } else {
        assert!(job.step().is_err(), "a scratch job is lost");
    }
    Err(error.to_string())
}

#[test]
fn a_failure_between_steps_is_one_error_of_all_ranks() {
    let _turn = one_at_a_time();
    let expected = undisturbed_digests(2).pop().unwrap();
    let (mut failed, mut passed) = (0, 0);
    // Rank 1 has three chunks in three stripe units. Its initialisation and start move them once
    // each; three steps move them six times, and the first of a fourth step ahead.
    for op in 18..18 + 6 * 9 + 9 {
        for (turn, mode) in [Durability::Scratch, Durability::Step].into_iter().enumerate() {
            let drives = Drives::new(2);
            let engine = ENGINES[(op as usize + turn) % 2];
            let mut config = job_config_for(&drives, mode, engine);
            (config.swap.write_behind, config.swap.prefetch) = (true, true);
            config.durability.commit_every = 2;
            config.faults.push(FaultConfig::at(1, op, FaultKind::Eio));
            let flushes = op % 3 == 0;
            let name = format!("operation {op}, {mode:?}, {engine:?}");
            let seen = all(on_ranks_in_case(&name, 2, |comm| Ok(run(&config, flushes, comm))));
            match &seen[0] {
                Ok(digest) => assert_eq!(*digest, expected, "{name}"),
                Err(message) => {
                    for word in ["rank 1 of 2", "os error 5", "shard-00001/state", "holding"] {
                        assert!(message.contains(word), "{name}: `{word}` is not in: {message}");
                    }
                }
            }
            assert_eq!(seen[0], seen[1], "{name}: the ranks disagree");
            if seen[0].is_ok() { passed += 1 } else { failed += 1 }
        }
    }
    println!("{failed} failures, {passed} operations that are never made");
    assert!(failed > passed);
}
