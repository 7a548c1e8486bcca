//! State tensors in every codec: what a codec promises holds for any ranks, drives and chunks, on
//! drives, in checkpoints and after a crash. fp32 and remainder16 lose nothing.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use std::sync::Arc;

use half::bf16;
use optswap::internals::config::{CodecsConfig, FaultConfig, FaultKind};
use optswap::internals::optim::split_halves;
use optswap::internals::state::Rounding;
use optswap::internals::step::fill_synthetic_masters;
use optswap::{
    Bytes, Checkpoints, Communicator, Config, CreateOptions, Elems, Gradients, NO_PARAMETERS,
    NoParameters, OptimizerKind, ParamIndex, Result, Run, StepOptions, SwappedOptimizer, Verifier,
};
use proptest::prelude::*;
use support::Drives;
use support::world::{config_for, durable_config_for, inventory, on_ranks, shard_gradients};

const SIZES: [usize; 3] = [9000, 5000, 12_000];
const ALL: [&str; 6] =
    ["fp32", "remainder16", "bf16", "bf16+remainder16", "int8", "int8+remainder16"];

fn with_codecs(mut config: Config, codecs: &str, rounding: Rounding) -> Config {
    config.codecs = CodecsConfig { rounding, seed: 11, ..codecs.parse().unwrap() };
    config
}

/// An optimizer with synthetic masters, or one that came back, and its shard's parameters.
struct Job {
    optimizer: SwappedOptimizer,
    params: Vec<bf16>,
}

impl Job {
    fn start(config: &Config, comm: Arc<dyn Communicator>) -> Result<Self> {
        let mut optimizer =
            SwappedOptimizer::create(config, inventory(&SIZES), comm, CreateOptions::default())?;
        let mut params = vec![bf16::ZERO; optimizer.partition().elems() as usize];
        let flat = optimizer.partition().flat().start;
        match optimizer.resumed() {
            Some(_) => optimizer.emit_parameters(&mut params)?,
            None => optimizer.initialize_parameters(&mut params, fill(flat))?,
        }
        Ok(Self { optimizer, params })
    }

    fn step(&mut self, verifier: Option<&mut Verifier>) -> Result<()> {
        let shard = shard_gradients(&self.optimizer, self.optimizer.attempts() + 1);
        let gradients = Gradients::Shard(&shard);
        let options = StepOptions::default();
        let outcome = self.optimizer.step(&gradients, &mut self.params, options)?;
        if let Some(verifier) = verifier {
            verifier.step(&self.optimizer, &outcome, &shard);
            verifier.check(&mut self.optimizer, &self.params)?;
        }
        Ok(())
    }

    fn digest(&mut self) -> Result<String> {
        self.optimizer.state_digest(&self.params)
    }
}

fn fill(flat: u64) -> impl FnMut(&Run, &mut [f32]) -> Result<()> {
    move |run, masters| {
        fill_synthetic_masters(3, flat + run.shard_offset, masters);
        Ok(())
    }
}

/// Trains with a verifier beside it; gives the digest.
fn train(config: &Config, steps: u64, comm: Arc<dyn Communicator>) -> Result<String> {
    let mut job = Job::start(config, comm)?;
    let mut verifier = Verifier::of_state(&mut job.optimizer, &job.params)?;
    for _ in 0..steps {
        job.step(Some(&mut verifier))?;
    }
    let digest = job.digest()?;
    job.optimizer.close();
    Ok(digest)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_codec_gives_the_bits_of_its_reference_for_any_cut(
        codecs in prop::sample::select(ALL.to_vec()),
        kind in prop::sample::select(OptimizerKind::ALL.to_vec()),
        is_stochastic: bool,
        is_durable: bool,
        ranks in 1usize..4,
        drives in 1usize..4,
        chunk_blocks in 1u64..4,
    ) {
        let rounding = if is_stochastic { Rounding::Stochastic } else { Rounding::Nearest };
        let one = Drives::new(1);
        let mut alone = with_codecs(config_for(&one), codecs, rounding);
        alone.optimizer.kind = kind;
        let expected = on_ranks(1, |comm| train(&alone, 3, comm)).remove(0).unwrap();
        let many = Drives::new(drives);
        let base = if is_durable { durable_config_for(&many, 1) } else { config_for(&many) };
        let mut config = with_codecs(base, codecs, rounding);
        config.optimizer.kind = kind;
        config.swap.chunk_elements = Elems(chunk_blocks * 4096);
        config.swap.memory_budget = Bytes(3 * chunk_blocks * 4096 * 12);
        for digest in on_ranks(ranks, |comm| train(&config, 3, comm)) {
            prop_assert_eq!(digest.unwrap(), expected.clone());
        }
    }
}

#[test]
fn remainder16_loses_nothing() {
    let digest_with = |codecs: &str| {
        let drives = Drives::new(2);
        let config = with_codecs(config_for(&drives), codecs, Rounding::Nearest);
        on_ranks(2, |comm| train(&config, 5, comm)).remove(0).unwrap()
    };
    let fp32 = digest_with("fp32");
    assert_eq!(digest_with("remainder16"), fp32);
    assert_ne!(digest_with("bf16"), fp32);
    assert_eq!(digest_with("bf16"), digest_with("bf16+remainder16"));
    assert_eq!(digest_with("int8"), digest_with("int8+remainder16"));
}

#[test]
fn bytes_moved_are_those_of_the_codecs() {
    // Whole blocks only, so that no padding is moved. Read and written bytes per parameter.
    let cases = [
        ("fp32", 12.0, 12.0),
        ("remainder16", 10.0, 12.0),
        ("bf16+remainder16", 6.0, 8.0),
        ("int8+remainder16", 4.0 + 2.0 / 64.0, 6.0 + 2.0 / 64.0),
    ];
    let elems = 1 << 19;
    for (codecs, read, durably_written) in cases {
        for is_durable in [false, true] {
            let drives = Drives::new(1);
            let base =
                if is_durable { durable_config_for(&drives, 1) } else { config_for(&drives) };
            let mut config = with_codecs(base, codecs, Rounding::Nearest);
            config.swap.chunk_elements = Elems(elems / 2);
            config.swap.memory_budget = Bytes(64 << 20);
            // Neither reads ahead nor writes behind, so that every step has bytes of its own.
            (config.swap.prefetch, config.swap.write_behind) = (false, false);
            let moved = on_ranks(1, |comm| {
                let sizes = inventory(&[elems as usize]);
                let mut optimizer =
                    SwappedOptimizer::create(&config, sizes, comm, CreateOptions::default())?;
                let mut params = vec![bf16::ZERO; elems as usize];
                optimizer.initialize_parameters(&mut params, fill(0))?;
                let shard = shard_gradients(&optimizer, 1);
                let gradients = Gradients::Shard(&shard);
                for _ in 0..3 {
                    optimizer.step(&gradients, &mut params, StepOptions::default())?;
                }
                let record = optimizer.gather_records()?.remove(0);
                optimizer.close();
                Ok((record.read_bytes(), record.written_bytes()))
            });
            let (read_bytes, written_bytes) = moved.into_iter().next().unwrap().unwrap();
            let per_step = |bytes: u64| bytes as f64 / 3.0 / elems as f64;
            assert_eq!(per_step(read_bytes), read, "{codecs}");
            let written = if is_durable { durably_written } else { read };
            assert_eq!(per_step(written_bytes), written, "{codecs}, durable: {is_durable}");
        }
    }
}

#[test]
fn parameters_are_the_upper_halves_and_come_back_with_a_durable_job() {
    for codecs in ["remainder16", "int8+remainder16"] {
        let drives = Drives::new(2);
        let config = with_codecs(durable_config_for(&drives, 1), codecs, Rounding::Stochastic);
        let before = on_ranks(2, |comm| {
            let mut job = Job::start(&config, comm)?;
            for _ in 0..3 {
                job.step(None)?;
            }
            let mut halves = vec![bf16::ZERO; job.params.len()];
            job.optimizer.inspect(NO_PARAMETERS, |view| {
                let masters = view.master.iter().map(|master| split_halves(*master).0);
                halves[view.run.in_shard()].iter_mut().zip(masters).for_each(|(a, b)| *a = b);
                Ok(())
            })?;
            assert_eq!(job.params, halves);
            Ok((job.params.clone(), job.optimizer.state_digest(NO_PARAMETERS)?))
        });
        let after = on_ranks(2, |comm| {
            let mut job = Job::start(&config, comm)?;
            assert_eq!(job.optimizer.attempts(), 3);
            Ok((job.params.clone(), job.optimizer.state_digest(NO_PARAMETERS)?))
        });
        for (before, after) in before.into_iter().zip(after) {
            assert_eq!(before.unwrap(), after.unwrap());
        }
    }
}

#[test]
fn a_failed_step_of_a_durable_job_recovers_masters_from_the_drives() {
    let drives = Drives::new(1);
    let mut config = with_codecs(durable_config_for(&drives, 1), "remainder16", Rounding::Nearest);
    let undisturbed = on_ranks(1, |comm| train(&config, 4, comm)).remove(0).unwrap();
    // Some operation of the third step.
    config.faults.push(FaultConfig::at(0, 40, FaultKind::Eio));
    let recovered = on_ranks(1, |comm| {
        let mut job = Job::start(&config, comm)?;
        let mut failures = 0;
        while job.optimizer.attempts() < 4 {
            if job.step(None).is_err() {
                failures += 1;
                job.optimizer.recover(&mut job.params)?;
            }
        }
        assert_eq!(failures, 1);
        job.digest()
    });
    assert_eq!(recovered.into_iter().next().unwrap().unwrap(), undisturbed);
}

#[test]
fn checkpoints_hold_the_whole_state_for_any_codec_and_number_of_ranks() {
    for (codecs, other) in [
        ("remainder16", "fp32"),
        ("fp32", "remainder16"),
        ("bf16+remainder16", "bf16"),
        ("int8+remainder16", "int8"),
    ] {
        let drives = Drives::new(2);
        let mut config = with_codecs(config_for(&drives), codecs, Rounding::Nearest);
        config.checkpoint.dir = Some(drives.path().join("checkpoints"));
        let saved = on_ranks(3, |comm| {
            let mut job = Job::start(&config, Arc::clone(&comm))?;
            job.step(None)?;
            let mut checkpoints = Checkpoints::open(&config, comm).unwrap().unwrap();
            checkpoints.begin(&mut job.optimizer, None, b"", &job.params)?;
            let digest = job.digest()?;
            // Handed over while a step goes on, but for the parameter that takes no part in it.
            let shard = shard_gradients(&job.optimizer, 2);
            let mut given = Vec::new();
            for piece in job.optimizer.partition().pieces() {
                if piece.param != ParamIndex(1) {
                    given.push((piece.param, piece.param_offset, &shard[piece.in_shard()]));
                }
            }
            job.optimizer.step(
                &Gradients::Pieces(given),
                &mut job.params,
                StepOptions::default(),
            )?;
            let saved = checkpoints.finish(&mut job.optimizer, &job.params)?;
            // And once without a step.
            let again = checkpoints.save(&mut job.optimizer, None, b"", &job.params)?;
            let later = job.digest()?;
            job.optimizer.close();
            Ok([(digest, saved), (later, again)])
        });
        for (digest, saved) in saved.into_iter().next().unwrap().unwrap() {
            for codecs in [codecs, other] {
                let loaded = on_ranks(2, |comm| {
                    let elsewhere = Drives::new(1);
                    let mut config = with_codecs(config_for(&elsewhere), codecs, Rounding::Nearest);
                    config.checkpoint.dir.clone_from(&Some(drives.path().join("checkpoints")));
                    config.drives.paths = elsewhere.paths();
                    let sizes = inventory(&SIZES);
                    let mut optimizer = SwappedOptimizer::create(
                        &config,
                        sizes,
                        Arc::clone(&comm),
                        CreateOptions::default(),
                    )?;
                    let mut params = vec![bf16::ZERO; optimizer.partition().elems() as usize];
                    let checkpoints = Checkpoints::open(&config, comm).unwrap().unwrap();
                    checkpoints.load(&mut optimizer, &saved.directory, &mut params)?;
                    optimizer.state_digest(&params)
                });
                for loaded in loaded {
                    assert_eq!(loaded.unwrap(), digest, "into {codecs}");
                }
            }
        }
    }
}

#[test]
fn a_neighbour_without_gradient_keeps_its_bits_in_every_codec() {
    for codecs in ALL {
        let drives = Drives::new(1);
        let config = with_codecs(config_for(&drives), codecs, Rounding::Stochastic);
        let results = on_ranks(1, |comm| {
            let mut job = Job::start(&config, comm)?;
            job.step(None)?;
            let state_of = |job: &mut Job| {
                let mut state = Vec::new();
                job.optimizer.inspect(&job.params, |view| {
                    if view.run.param == ParamIndex(1) {
                        let moments: Vec<Vec<f32>> =
                            view.moments.iter().map(|it| it.to_vec()).collect();
                        state.push((view.run.param_offset, view.master.to_vec(), moments));
                    }
                    Ok(())
                })?;
                state.sort_by_key(|(offset, ..)| *offset);
                Ok::<_, optswap::internals::error::Error>(state)
            };
            let before = state_of(&mut job)?;
            let shard = shard_gradients(&job.optimizer, 2);
            let given =
                vec![(ParamIndex(0), 0, &shard[..9000]), (ParamIndex(2), 0, &shard[14_000..])];
            job.optimizer.step(
                &Gradients::Pieces(given),
                &mut job.params,
                StepOptions::default(),
            )?;
            let after = state_of(&mut job)?;
            for ((_, master, moments), (_, master_then, moments_then)) in before.iter().zip(&after)
            {
                assert_eq!(master, master_then);
                // Neighbours in one block of int8 share its scale.
                let shares_scale = codecs.starts_with("int8");
                assert!(shares_scale || moments == moments_then, "{codecs}");
            }
            Ok(())
        });
        results.into_iter().for_each(|result| result.unwrap());
    }
}

#[test]
fn what_does_not_fit_a_halved_master_is_a_usage_error_and_changes_nothing() {
    let drives = Drives::new(1);
    let config = with_codecs(config_for(&drives), "remainder16", Rounding::Nearest);
    let results = on_ranks(2, |comm| {
        let mut fresh = SwappedOptimizer::create(
            &config,
            inventory(&SIZES),
            Arc::clone(&comm),
            CreateOptions::default(),
        )?;
        let flat = fresh.partition().flat().start;
        let error = fresh.initialize_parameters(&mut NoParameters, fill(flat)).unwrap_err();
        assert!(error.to_string().contains("must be bf16"), "{error}");
        fresh.close();

        let mut job = Job::start(&config, comm)?;
        let before = job.digest()?;
        let error = job.optimizer.state_digest(NO_PARAMETERS).unwrap_err();
        assert!(error.to_string().contains("in the parameters"), "{error}");
        let shard = shard_gradients(&job.optimizer, 1);
        let gradients = Gradients::Shard(&shard);
        let mut wide = vec![0.0f32; job.params.len()];
        let error = job.optimizer.step(&gradients, &mut wide, StepOptions::default()).unwrap_err();
        assert!(error.is_agreed() && error.exit_code() == 64, "{error}");

        // One parameter of one rank is not what was emitted.
        let kept = job.params[100];
        if job.optimizer.communicator().rank().0 == 1 {
            job.params[100] = bf16::from_f32(9.0);
        }
        let options = StepOptions::default();
        let error = job.optimizer.step(&gradients, &mut job.params, options).unwrap_err();
        assert!(error.is_agreed() && error.exit_code() == 64, "{error}");
        let message = error.to_string();
        assert!(message.contains("rank 1 of 2") && message.contains("emitted last"), "{message}");
        job.params[100] = kept;
        assert_eq!(job.digest()?, before);
        job.step(None)
    });
    results.into_iter().for_each(|result| result.unwrap());
}
