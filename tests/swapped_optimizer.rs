//! The swapped optimizer is AdamW: the same bits as in memory, for any number of ranks (threads
//! here), drives, buffers and chunk sizes, on every engine. And what happens when things go wrong.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use half::bf16;
use optswap::internals::config::{EngineName, FaultConfig, FaultKind, VerifyChecksums};
use optswap::internals::step::fill_synthetic_masters;
use optswap::{
    Bytes, Communicator, Config, CreateOptions, Elems, Error, ErrorKind, Gradients, NO_PARAMETERS,
    NoParameters, ParamIndex, Result, Run, StepOptions, SwappedOptimizer, Verifier,
};
use proptest::prelude::*;
use support::Drives;
use support::world::{config_for, inventory, on_ranks, shard_gradients};

/// An initialised optimizer with synthetic masters, and its twin in memory.
fn start(
    config: &Config,
    sizes: &[usize],
    comm: Arc<dyn Communicator>,
) -> Result<(SwappedOptimizer, Verifier)> {
    let mut optimizer =
        SwappedOptimizer::create(config, inventory(sizes), comm, CreateOptions::default())?;
    let flat_start = optimizer.partition().flat().start;
    let fill = |run: &Run, masters: &mut [f32]| {
        fill_synthetic_masters(3, flat_start + run.shard_offset, masters);
        Ok(())
    };
    optimizer.initialize_parameters(&mut NoParameters, fill)?;
    let verifier = Verifier::new(&optimizer, fill)?;
    Ok((optimizer, verifier))
}

/// Trains for some steps, verified after each; gives the digest.
fn train(
    config: &Config,
    sizes: &[usize],
    steps: u64,
    comm: Arc<dyn Communicator>,
) -> Result<String> {
    let (mut optimizer, mut verifier) = start(config, sizes, comm)?;
    let mut params = vec![bf16::ZERO; optimizer.partition().elems() as usize];
    for step in 1..=steps {
        let shard = shard_gradients(&optimizer, step);
        let gradients = Gradients::Shard(&shard);
        let outcome = optimizer.step(&gradients, &mut params, StepOptions::default())?;
        verifier.step(&optimizer, &outcome, &shard);
        verifier.check(&mut optimizer, NO_PARAMETERS)?;
        let mut emitted = vec![bf16::ZERO; params.len()];
        optimizer.inspect(NO_PARAMETERS, |view| {
            let rounded = view.master.iter().map(|master| bf16::from_f32(*master));
            emitted[view.run.in_shard()].iter_mut().zip(rounded).for_each(|(p, value)| *p = value);
            Ok(())
        })?;
        assert_eq!(params, emitted, "the parameters are the rounded masters");
    }
    let digest = optimizer.state_digest(NO_PARAMETERS)?;
    optimizer.close();
    Ok(digest)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_swapped_step_equals_the_reference(
        sizes in prop::collection::vec(1usize..15_000, 1..5),
        ranks in 1usize..5,
        drives in 1usize..4,
        chunk_blocks in 1u64..4,
        buffers in 2u64..6,
        sub_group_blocks in 1u64..8,
        is_uring in any::<bool>(),
    ) {
        let one = Drives::new(1);
        let alone = on_ranks(1, |comm| train(&config_for(&one), &sizes, 3, comm));
        let many = Drives::new(drives);
        let mut config = config_for(&many);
        config.swap.chunk_elements = Elems(chunk_blocks * 4096);
        config.swap.sub_group_elements = Elems(sub_group_blocks * 4096);
        config.swap.memory_budget = Bytes(buffers * chunk_blocks * 4096 * 12);
        config.io.engine = if is_uring { EngineName::Uring } else { EngineName::Threads };
        config.drives.weights = (0..drives).map(|drive| 1.0 + drive as f64).collect();
        let digests = on_ranks(ranks, |comm| train(&config, &sizes, 3, comm));
        for digest in digests {
            prop_assert_eq!(digest.unwrap(), alone[0].as_ref().unwrap().clone());
        }
        prop_assert!(many.are_empty() && one.are_empty(), "nothing is left behind");
    }
}

const SIZES: [usize; 3] = [9000, 5000, 12_000];

#[test]
fn a_nan_on_one_rank_skips_the_step_on_all_and_changes_nothing() {
    for bad in [f32::NAN, f32::INFINITY] {
        let drives = Drives::new(2);
        let results = on_ranks(3, |comm| {
            let is_bad = comm.rank().0 == 1;
            let (mut optimizer, verifier) = start(&config_for(&drives), &SIZES, comm)?;
            let before = optimizer.state_digest(NO_PARAMETERS)?;
            let mut shard = shard_gradients(&optimizer, 1);
            if is_bad {
                shard[17] = bad;
            }
            let mut params = vec![7.0f32; shard.len()];
            let gradients = Gradients::Shard(&shard);
            let outcome = optimizer.step(&gradients, &mut params, StepOptions::default())?;
            assert!(outcome.is_skipped());
            assert_eq!(optimizer.state_digest(NO_PARAMETERS)?, before);
            assert!(params.iter().all(|param| *param == 7.0));
            verifier.check(&mut optimizer, NO_PARAMETERS)?;
            let records = optimizer.gather_records()?;
            assert!(records.iter().all(|record| record.written_bytes() == 0));
            // The next step is taken as if nothing had happened.
            let shard = shard_gradients(&optimizer, 2);
            let gradients = Gradients::Shard(&shard);
            optimizer.step(&gradients, &mut params, StepOptions::default())
        });
        assert!(results.into_iter().all(|outcome| !outcome.unwrap().is_skipped()));
    }
}

#[test]
fn a_parameter_without_gradient_is_skipped_and_keeps_its_step_count() {
    let drives = Drives::new(1);
    let results = on_ranks(1, |comm| {
        let (mut optimizer, _) = start(&config_for(&drives), &SIZES, comm)?;
        let mut before = Vec::new();
        optimizer.inspect(NO_PARAMETERS, |view| {
            if view.run.param == ParamIndex(1) {
                before.push((view.run.param_offset, view.master.to_vec()));
            }
            Ok(())
        })?;
        let shard = shard_gradients(&optimizer, 1);
        // In two pieces, the later one first.
        let gradients = Gradients::Pieces(vec![
            (ParamIndex(2), 4000, &shard[18_000..]),
            (ParamIndex(0), 0, &shard[..9000]),
            (ParamIndex(2), 0, &shard[14_000..18_000]),
        ]);
        let mut params = vec![(); shard.len()];
        optimizer.step(&gradients, &mut params, StepOptions::default())?;
        let counts: Vec<u64> = (0..3).map(|p| optimizer.update_count(ParamIndex(p))).collect();
        assert_eq!(counts, [1, 0, 1]);
        let mut after = Vec::new();
        optimizer.inspect(NO_PARAMETERS, |view| {
            if view.run.param == ParamIndex(1) {
                after.push((view.run.param_offset, view.master.to_vec()));
                assert!(view.moments[0].iter().all(|moment| *moment == 0.0));
            }
            Ok(())
        })?;
        before.sort_by_key(|(offset, _)| *offset);
        after.sort_by_key(|(offset, _)| *offset);
        assert_eq!(before, after);
        Ok(())
    });
    results.into_iter().for_each(|result| result.unwrap());
}

#[test]
fn wrong_gradients_of_one_rank_are_an_error_of_all_and_change_nothing() {
    let drives = Drives::new(1);
    let results = on_ranks(2, |comm| {
        let is_bad = comm.rank().0 == 1;
        let (mut optimizer, verifier) = start(&config_for(&drives), &SIZES, comm)?;
        let shard = shard_gradients(&optimizer, 1);
        let mut params = vec![(); shard.len()];
        let of_piece = |piece: &Run| (piece.param, piece.param_offset, &shard[piece.in_shard()]);
        let mut pieces: Vec<_> = optimizer.partition().pieces().iter().map(of_piece).collect();
        if is_bad {
            pieces.push((ParamIndex(2), 11_999, &shard[..2]));
        }
        let gradients = Gradients::Pieces(pieces);
        let error = optimizer.step(&gradients, &mut params, StepOptions::default()).unwrap_err();
        verifier.check(&mut optimizer, NO_PARAMETERS)?;
        Ok(error)
    });
    for error in results {
        let error = error.unwrap();
        assert!(error.is_agreed() && error.kind() == ErrorKind::Usage);
        let message = error.to_string();
        assert!(message.starts_with("rank 1 of 2 on "), "{message}");
        assert!(
            message.contains("beyond its parameter's end (parameter layer2.weight"),
            "{message}"
        );
    }
}

#[test]
fn an_io_error_of_one_rank_is_an_error_of_all_and_ends_the_optimizer() {
    for (kind, words) in [(FaultKind::Eio, "os error 5"), (FaultKind::Enospc, "os error 28")] {
        let drives = Drives::new(2);
        let mut config = config_for(&drives);
        config.faults.push(FaultConfig::at(1, 14, kind));
        let results = on_ranks(3, |comm| train(&config, &SIZES, 5, comm));
        for result in results {
            let error = result.unwrap_err();
            assert!(error.is_agreed() && error.exit_code() == 74, "{error}");
            let message = error.to_string();
            for word in ["rank 1 of 3", words, "offset", "length", "state", "layer"] {
                assert!(message.contains(word), "{word} is not in {message}");
            }
        }
    }
}

#[test]
fn an_operation_that_never_ends_is_an_error_of_all() {
    let drives = Drives::new(1);
    let mut config = config_for(&drives);
    config.faults.push(FaultConfig::at(0, 9, FaultKind::Stall));
    config.timeouts.io_timeout = 0.3;
    for result in on_ranks(2, |comm| train(&config, &SIZES, 5, comm)) {
        let error = result.unwrap_err();
        assert_eq!(error.exit_code(), 74);
        assert!(error.to_string().contains("no I/O completed for 0.3 s"), "{error}");
    }
}

#[test]
fn a_rank_that_leaves_is_noticed() {
    let drives = Drives::new(1);
    let results = on_ranks(2, |comm| {
        if comm.rank().0 == 1 {
            return Err(Error::internal("gone"));
        }
        start(&config_for(&drives), &SIZES, comm).map(drop)
    });
    let error = results.into_iter().next().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Peer);
    assert!(error.to_string().contains("rank 1 has left"), "{error}");
}

fn flip(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[!byte[0]], offset).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn one_flipped_byte_of_a_live_extent_is_found_and_named() {
    let drives = Drives::new(1);
    let config = config_for(&drives);
    // Chunk 1, elements 4096 to 8191: in master, exp_avg and exp_avg_sq.
    for (section, name) in ["master", "exp_avg", "exp_avg_sq"].iter().enumerate() {
        let results = on_ranks(1, |comm| {
            let mut config = config.clone();
            config.durability.verify = VerifyChecksums::Off;
            let (mut optimizer, verifier) = start(&config, &SIZES, comm)?;
            let state = drives.paths()[0].join("optswap/default/shard-00000/state");
            flip(&state, (4096 * 12 + section * 4096 * 4 + 100 * 4 + 1) as u64);
            let error = verifier.check(&mut optimizer, NO_PARAMETERS).unwrap_err();
            optimizer.close();
            Ok(error)
        });
        let error = results.into_iter().next().unwrap().unwrap();
        assert_eq!(error.exit_code(), 70);
        let message = error.to_string();
        assert!(message.contains(&format!("{name} on the drives differs")), "{message}");
        assert!(message.contains("parameter layer0.weight, element 4196"), "{message}");
    }
}

#[test]
fn a_budget_below_the_minimum_shows_the_minimum_which_works() {
    let drives = Drives::new(1);
    let mut config = config_for(&drives);
    config.swap.memory_budget = Bytes(2 * 4096 * 12 - 1);
    for result in on_ranks(2, |comm| train(&config, &SIZES, 1, comm)) {
        let error = result.unwrap_err();
        assert_eq!(error.exit_code(), 64);
        assert!(error.to_string().contains("minimum 96KiB"), "{error}");
    }
    assert!(drives.are_empty(), "nothing was touched");
    config.swap.memory_budget = Bytes(2 * 4096 * 12);
    on_ranks(2, |comm| train(&config, &SIZES, 2, comm))
        .into_iter()
        .for_each(|it| drop(it.unwrap()));
}

#[test]
fn a_living_job_of_the_same_name_is_left_alone() {
    let drives = Drives::new(1);
    let config = config_for(&drives);
    let results = on_ranks(1, |comm| {
        let (mut first, verifier) = start(&config, &SIZES, Arc::clone(&comm))?;
        let error = start(&config, &SIZES, Arc::clone(&comm)).map(drop).unwrap_err();
        verifier.check(&mut first, NO_PARAMETERS)?;
        let mut other = config.clone();
        other.job = "other".to_owned();
        train(&other, &SIZES, 1, comm)?;
        verifier.check(&mut first, NO_PARAMETERS)?;
        first.close();
        Ok(error)
    });
    let error = results.into_iter().next().unwrap().unwrap();
    assert_eq!(error.exit_code(), 69);
    assert!(error.to_string().contains("job `default` is alive"), "{error}");
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    assert!(drives.are_empty());
}

#[test]
fn more_ranks_than_blocks_and_a_single_element_work() {
    for sizes in [vec![1], vec![4097], vec![2, 1, 3]] {
        let drives = Drives::new(2);
        let config = config_for(&drives);
        let alone = on_ranks(1, |comm| train(&config, &sizes, 2, comm)).remove(0).unwrap();
        for digest in on_ranks(4, |comm| train(&config, &sizes, 2, comm)) {
            assert_eq!(digest.unwrap(), alone);
        }
    }
}
