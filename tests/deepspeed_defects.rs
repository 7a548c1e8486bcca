//! Defects of DeepSpeed's swapper that its users met or that its source shows: each test is named
//! for what optswap does there, and says first what DeepSpeed does. docs/deepspeed.md has the
//! table; defects that have tests elsewhere are only there.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use std::path::PathBuf;
use std::sync::Arc;

use half::bf16;
use optswap::internals::config::{EngineName, FaultConfig, FaultKind, LossScaleMode};
use optswap::internals::storage::ShardDirectory;
use optswap::{Communicator, Config, ErrorKind, Gradients, NO_PARAMETERS, Result, StepOptions};
use support::Drives;
use support::world::{
    all, config_for, durable_config_for, on_ranks, shard_gradients, start, step_into, step_until,
};

const SIZES: [usize; 3] = [9000, 5000, 12_000];
const ENGINES: [EngineName; 2] = [EngineName::Threads, EngineName::Uring];

/// Trains for so many steps; gives the digest.
fn digest_after(config: &Config, comm: Arc<dyn Communicator>, steps: u64) -> Result<String> {
    let mut optimizer = start(config, &SIZES, comm)?;
    step_until(&mut optimizer, steps)?;
    let digest = optimizer.state_digest(NO_PARAMETERS)?;
    optimizer.close();
    Ok(digest)
}

/// Two ranks of which rank 1 has a fault at its operation number `op`; their results.
fn disturbed(engine: EngineName, op: u64, kind: FaultKind) -> Vec<Result<String>> {
    let drives = Drives::new(2);
    let mut config = config_for(&drives);
    config.io.engine = engine;
    config.faults.push(FaultConfig::at(1, op, kind));
    on_ranks(2, |comm| digest_after(&config, comm, 3))
}

fn undisturbed() -> String {
    let drives = Drives::new(1);
    all(on_ranks(1, |comm| digest_after(&config_for(&drives), comm, 3))).remove(0)
}

/// `io_event.res` is never read: EIO, ENOSPC and short I/O look like success.
#[test]
fn every_result_of_an_operation_is_compared_with_what_was_asked() {
    let expected = undisturbed();
    for engine in ENGINES {
        for op in [3, 20, 45] {
            for (kind, words) in
                [(FaultKind::Eio, "os error 5"), (FaultKind::Enospc, "os error 28")]
            {
                for result in disturbed(engine, op, kind) {
                    let error = result.unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
                    for part in ["rank 1 of 2", "drive ", "path ", "offset ", "length ", words] {
                        assert!(error.to_string().contains(part), "`{part}` is not in: {error}");
                    }
                }
            }
            for digest in all(disturbed(engine, op, FaultKind::Short)) {
                assert_eq!(digest, expected, "short I/O is resumed");
            }
        }
    }
}

/// A part of a batch that `io_submit` does not take is waited for for ever; EINTR and EAGAIN abort.
#[test]
fn a_partial_submission_and_an_interruption_are_taken_up_again() {
    let expected = undisturbed();
    for engine in ENGINES {
        for kind in [FaultKind::Eintr, FaultKind::Eagain] {
            for op in [0, 3, 20, 45] {
                assert!(all(disturbed(engine, op, kind)).iter().all(|it| *it == expected));
            }
        }
        // One place in the engine: each operation waits until there is room for it.
        let drives = Drives::new(2);
        let mut config = config_for(&drives);
        config.io.engine = engine;
        config.io.depth = 1;
        let digests = all(on_ranks(2, |comm| digest_after(&config, comm, 3)));
        assert!(digests.iter().all(|digest| *digest == expected));
    }
}

/// After a resume moments begin at zero, and so do step counts and loss scale.
#[test]
fn a_resume_keeps_moments_step_counts_and_loss_scale() {
    let drives = Drives::new(2);
    let mut config = durable_config_for(&drives, 1);
    (config.loss_scale.mode, config.loss_scale.initial) = (LossScaleMode::Dynamic, 1024.0);
    config.loss_scale.growth_interval = 2;
    let before = all(on_ranks(2, |comm| {
        let mut optimizer = start(&config, &SIZES, comm)?;
        step_until(&mut optimizer, 3)?;
        assert_eq!(optimizer.loss_scaler().scale(), 2048.0);
        optimizer.state_digest(NO_PARAMETERS)
    }));
    all(on_ranks(2, |comm| {
        let mut optimizer = start(&config, &SIZES, comm)?;
        let params: Vec<_> = optimizer.partition().pieces().iter().map(|it| it.param).collect();
        assert!(params.iter().all(|param| optimizer.update_count(*param) == 3));
        assert_eq!(optimizer.loss_scaler().scale(), 2048.0);
        let mut largest = [0.0f32; 2];
        optimizer.inspect(NO_PARAMETERS, |view| {
            for (largest, moment) in largest.iter_mut().zip(view.moments) {
                *largest = moment.iter().fold(*largest, |largest, it| largest.max(it.abs()));
            }
            Ok(())
        })?;
        assert!(largest.iter().all(|it| *it > 0.0), "moments are there: {largest:?}");
        assert_eq!(optimizer.state_digest(NO_PARAMETERS)?, before[0]);
        optimizer.close();
        Ok(())
    }));
}

/// The state on the drives, in words of four bytes.
fn words_on(drives: &Drives) -> Vec<[u8; 4]> {
    let shards = drives.paths().into_iter().flat_map(|drive| {
        ShardDirectory::all_on(&drive, None).unwrap().into_iter().map(|it| it.path().to_owned())
    });
    let bytes: Vec<u8> =
        shards.flat_map(|shard: PathBuf| std::fs::read(shard.join("state")).unwrap()).collect();
    bytes.chunks_exact(4).map(|word| word.try_into().unwrap()).collect()
}

/// All I/O is inside of `assert`, and gone where assertions are compiled out. The files have their
/// length from the start, so only their bytes show what was written.
#[test]
fn every_step_changes_the_bytes_on_the_drives() {
    let drives = Drives::new(2);
    all(on_ranks(1, |comm| {
        let mut optimizer = start(&config_for(&drives), &SIZES, comm)?;
        let mut before = words_on(&drives);
        for step in 1..=3 {
            step_until(&mut optimizer, step)?;
            optimizer.flush()?;
            let after = words_on(&drives);
            let changed = after.iter().zip(&before).filter(|(after, before)| after != before);
            // Master and two moments, of which the last bits of a few may stay as they were.
            let (changed, state) = (changed.count(), 3 * SIZES.iter().sum::<usize>());
            assert!(changed > state * 9 / 10, "step {step}: {changed} of {state} words");
            before = after;
        }
        optimizer.close();
        Ok(())
    }));
}

/// Two jobs on one path overwrite each other's files without a word.
#[test]
fn two_jobs_on_one_path_leave_each_other_alone() {
    let expected = undisturbed();
    let drives = Drives::new(2);
    let [mut first, mut second] = [config_for(&drives), config_for(&drives)];
    first.job = "first".to_owned();
    second.job = "second".to_owned();
    all(on_ranks(1, |comm| {
        let mut one = start(&first, &SIZES, Arc::clone(&comm))?;
        let mut other = start(&second, &SIZES, Arc::clone(&comm))?;
        step_until(&mut one, 1)?;
        step_until(&mut other, 3)?;
        step_until(&mut one, 3)?;
        assert_eq!(one.state_digest(NO_PARAMETERS)?, expected);
        assert_eq!(other.state_digest(NO_PARAMETERS)?, expected);
        let error = start(&first, &SIZES, comm).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(error.to_string().contains("first"), "{error}");
        one.close();
        other.close();
        Ok(())
    }));
    assert!(drives.are_empty(), "nothing is left of either");
}

/// Gradients have to lie at addresses that O_DIRECT likes.
#[test]
fn gradients_may_lie_at_any_address() {
    let expected = undisturbed();
    for offset in [1, 3, 7] {
        let drives = Drives::new(2);
        let digests = all(on_ranks(2, |comm| {
            let mut optimizer = start(&config_for(&drives), &SIZES, comm)?;
            let elems = optimizer.partition().elems() as usize;
            for step in 1..=3 {
                let mut memory = vec![f32::NAN; elems + offset];
                memory[offset..].copy_from_slice(&shard_gradients(&optimizer, step));
                let mut params = vec![bf16::ZERO; elems + offset];
                let gradients = Gradients::Shard(&memory[offset..]);
                optimizer.step(&gradients, &mut params[offset..], StepOptions::default())?;
            }
            let digest = optimizer.state_digest(NO_PARAMETERS)?;
            optimizer.close();
            Ok(digest)
        }));
        assert!(digests.iter().all(|digest| *digest == expected), "offset {offset}");
    }
}

/// Files are opened without truncation: a smaller tensor leaves the tail of a larger one.
#[test]
fn files_of_a_smaller_model_are_made_anew() {
    let drives = Drives::new(2);
    let mut config = config_for(&drives);
    config.drives.keep_files = true;
    let length_of_all = || -> u64 {
        let shards = drives.paths().into_iter().flat_map(|drive| {
            ShardDirectory::all_on(&drive, None).unwrap().into_iter().map(|it| it.path().to_owned())
        });
        let files = shards.flat_map(|shard: PathBuf| std::fs::read_dir(shard).unwrap());
        files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
    };
    let lengths: Vec<u64> = [&[40_000, 30_000][..], &[9000]]
        .map(|sizes| {
            all(on_ranks(1, |comm| {
                let mut optimizer = start(&config, sizes, comm)?;
                step_until(&mut optimizer, 1)
            }));
            length_of_all()
        })
        .into();
    let bytes = |sizes: u64| 12 * sizes;
    assert!(lengths[0] >= bytes(70_000) && lengths[1] >= bytes(9000), "{lengths:?}");
    assert!(lengths[1] < bytes(70_000) / 2, "{lengths:?}");
}

/// A library call leaves files in the current directory, or ends the process.
#[test]
fn an_error_leaves_no_file_behind_and_ends_no_process() {
    let here = || -> Vec<String> {
        let entries = std::fs::read_dir(".").unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().display().to_string()).collect();
        names.sort();
        names
    };
    let before = here();
    for engine in ENGINES {
        assert!(disturbed(engine, 20, FaultKind::Eio).iter().all(Result::is_err));
    }
    assert_eq!(here(), before);
}

/// A handle that is destroyed with operations in flight aborts the process.
#[test]
fn an_end_waits_for_operations_in_flight() {
    let drives = Drives::new(2);
    for engine in ENGINES {
        let mut config = config_for(&drives);
        config.io.engine = engine;
        all(on_ranks(2, |comm| {
            let mut optimizer = start(&config, &SIZES, comm)?;
            let mut params = vec![bf16::ZERO; optimizer.partition().elems() as usize];
            // Writes behind this step and reads ahead of the next one are under way.
            step_into(&mut optimizer, &mut params)?;
            drop(optimizer);
            Ok(())
        }));
    }
}
