//! A durable job comes back: on its drives in any order, after a reboot, at the commit that all
//! ranks have; and what cannot be gone on with is refused, never overwritten.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use half::bf16;
use optswap::internals::checkpoint::{scrub, verify_drives};
use optswap::internals::config::Durability;
use optswap::internals::storage::{FoundShard, RecordFiles, ShardDirectory};
use optswap::{
    Checkpoints, Communicator, Config, CreateOptions, Elems, Error, ErrorKind, Gradients,
    NO_PARAMETERS, Origin, Result, StepOptions, SwappedOptimizer, Training,
};
use support::Drives;
use support::world::{
    all, config_for, durable_config_for, inventory, masters, on_ranks, shard_gradients, start,
    step_into, step_until,
};

const SIZES: [usize; 3] = [9000, 5000, 12_000];

/// The digest after so many steps, undisturbed.
fn undisturbed(steps: u64) -> String {
    let drives = Drives::new(1);
    let config = config_for(&drives);
    let digests = all(on_ranks(1, |comm| {
        let mut optimizer = start(&config, &SIZES, comm)?;
        step_until(&mut optimizer, steps)?;
        optimizer.state_digest(NO_PARAMETERS)
    }));
    digests[0].clone()
}

/// Trains until so many steps have been attempted, and leaves as a killed job does, as far as the
/// drives are concerned.
fn train_and_leave(config: &Config, ranks: usize, steps: u64) {
    all(on_ranks(ranks, |comm| {
        let mut optimizer = start(config, &SIZES, comm)?;
        step_until(&mut optimizer, steps)
    }));
}

/// Comes back, which must be after `step`, and trains on.
fn come_back(config: &Config, ranks: usize, step: u64, until: u64) -> String {
    let digests = all(on_ranks(ranks, |comm| {
        let mut optimizer = start(config, &SIZES, comm)?;
        let resumed = optimizer.resumed().expect("it comes back").clone();
        assert_eq!(resumed.attempt, step, "{resumed:?}");
        step_until(&mut optimizer, until)?;
        let digest = optimizer.state_digest(NO_PARAMETERS)?;
        optimizer.close();
        Ok(digest)
    }));
    digests[0].clone()
}

/// The error that every rank gets on coming back.
fn refused(config: &Config, ranks: usize, sizes: &[usize]) -> Error {
    let results = on_ranks(ranks, |comm| start(config, sizes, comm).map(drop));
    let errors: Vec<Error> = results.into_iter().map(|result| result.unwrap_err()).collect();
    assert!(errors.iter().all(Error::is_agreed), "{errors:?}");
    errors.into_iter().next().unwrap()
}

#[test]
fn it_goes_on_after_the_last_commit_whatever_lies_between() {
    let expected = undisturbed(7);
    for (ranks, every, sync) in [(1, 1, false), (2, 1, true), (3, 2, false), (2, 5, false)] {
        let drives = Drives::new(2);
        let mut config = durable_config_for(&drives, every);
        config.durability.sync = sync;
        train_and_leave(&config, ranks, 4);
        assert!(!drives.are_empty());
        assert_eq!(come_back(&config, ranks, 4 / every * every, 7), expected);
        assert!(drives.are_empty(), "a clean end leaves nothing");
    }
}

#[test]
fn parameters_and_the_callers_blob_come_back() {
    let drives = Drives::new(1);
    let config = durable_config_for(&drives, 1);
    let emitted = all(on_ranks(2, |comm| {
        let mut optimizer = start(&config, &SIZES, comm)?;
        let mut params = vec![bf16::ZERO; optimizer.partition().elems() as usize];
        let shard = shard_gradients(&optimizer, 1);
        let gradients = Gradients::Shard(&shard);
        let rank = optimizer.communicator().rank().0;
        let user_blob = format!("rank {rank}").into_bytes();
        let options = StepOptions { user_blob: &user_blob, ..StepOptions::default() };
        let outcome = optimizer.step(&gradients, &mut params, options)?;
        assert_eq!(outcome.epoch, Some(1));
        Ok(params)
    }));
    all(on_ranks(2, |comm| {
        let mut optimizer = start(&config, &SIZES, comm)?;
        let rank = optimizer.communicator().rank();
        let resumed = optimizer.resumed().unwrap();
        assert_eq!(resumed.user_blob, format!("rank {}", rank.0).into_bytes());
        let mut params = vec![bf16::ZERO; emitted[rank.index()].len()];
        optimizer.emit_parameters(&mut params)?;
        assert_eq!(params, emitted[rank.index()]);
        Ok(())
    }));
}

#[test]
fn a_skipped_step_is_committed_without_data() {
    let drives = Drives::new(1);
    let config = durable_config_for(&drives, 1);
    all(on_ranks(2, |comm| {
        let mut optimizer = start(&config, &SIZES, comm)?;
        step_until(&mut optimizer, 1)?;
        let digest = optimizer.state_digest(NO_PARAMETERS)?;
        let mut shard = shard_gradients(&optimizer, 2);
        shard[0] = f32::NAN;
        let mut params = vec![bf16::ZERO; shard.len()];
        let gradients = Gradients::Shard(&shard);
        let options = StepOptions { user_blob: b"scaler", ..StepOptions::default() };
        let outcome = optimizer.step(&gradients, &mut params, options)?;
        assert!(outcome.is_skipped() && outcome.epoch == Some(2), "{outcome:?}");
        assert_eq!(optimizer.state_digest(NO_PARAMETERS)?, digest);
        Ok(())
    }));
    all(on_ranks(2, |comm| {
        let optimizer = start(&config, &SIZES, comm)?;
        let resumed = optimizer.resumed().unwrap();
        assert_eq!((resumed.attempt, resumed.user_blob.as_slice()), (2, b"scaler".as_slice()));
        Ok(())
    }));
}

#[test]
fn drives_may_be_named_in_another_order_and_the_layout_on_them_wins() {
    let drives = Drives::new(3);
    let config = durable_config_for(&drives, 1);
    train_and_leave(&config, 2, 3);
    let mut other = config.clone();
    other.drives.paths.reverse();
    other.swap.chunk_elements = Elems(8192);
    other.drives.weights = vec![1.0, 5.0, 2.0];
    assert_eq!(come_back(&other, 2, 3, 7), undisturbed(7));
}

#[test]
fn what_cannot_be_gone_on_with_is_refused_and_stays() {
    let drives = Drives::new(2);
    let config = durable_config_for(&drives, 1);
    train_and_leave(&config, 2, 3);
    let expect = |error: Error, kind: ErrorKind, words: &[&str]| {
        assert_eq!(error.kind(), kind, "{error}");
        for word in words.iter().chain(&["epoch 3, step 3"]) {
            assert!(error.to_string().contains(word), "`{word}` is not in: {error}");
        }
    };
    let scratch = Config { durability: Config::default().durability, ..config.clone() };
    let overwrite = ["would overwrite", "optswap clean --remove", "--durability step"];
    expect(refused(&scratch, 2, &SIZES), ErrorKind::Usage, &overwrite);
    let ranks = ["another number of ranks", "ranks then 2", "ranks now 3", "start 2 ranks"];
    expect(refused(&config, 3, &SIZES), ErrorKind::StateUnavailable, &ranks);
    expect(refused(&config, 2, &[9000, 17_000]), ErrorKind::Usage, &["another model"]);
    let mut one_drive = config.clone();
    let lost = one_drive.drives.paths.remove(1);
    let missing = [lost.to_str().unwrap(), "drive 1", "checkpoint"];
    expect(refused(&one_drive, 2, &SIZES), ErrorKind::StateUnavailable, &missing);
    // The other one holds the records; without it nobody knows what is committed.
    one_drive.drives.paths = vec![lost];
    let error = refused(&one_drive, 2, &SIZES);
    assert_eq!(error.kind(), ErrorKind::StateUnavailable, "{error}");
    assert!(error.to_string().contains("without the drive that holds its records"), "{error}");
    let error =
        refused(&Config { durability: Config::default().durability, ..one_drive }, 2, &SIZES);
    assert_eq!(error.kind(), ErrorKind::StateUnavailable, "{error}");
    // After all that, it still goes on.
    assert_eq!(come_back(&config, 2, 3, 7), undisturbed(7));
}

fn shard(drives: &Drives, number: u32) -> ShardDirectory {
    ShardDirectory::new(&drives.paths()[0], "default", number)
}

#[test]
fn a_lost_record_and_a_cut_file_are_found_at_the_start() {
    let drives = Drives::new(1);
    let config = durable_config_for(&drives, 1);
    train_and_leave(&config, 2, 3);
    let state = OpenOptions::new().write(true).open(shard(&drives, 1).state_path()).unwrap();
    let len = state.metadata().unwrap().len();
    state.set_len(4096).unwrap();
    let error = refused(&config, 2, &SIZES);
    assert!(error.exit_code() == 74 && error.to_string().contains("has been cut"), "{error}");
    state.set_len(len).unwrap();
    drop(state);
    let overwrite = |bytes: &[u8]| {
        let paths = shard(&drives, 1).record_paths();
        paths.iter().for_each(|path| std::fs::write(path, bytes).unwrap());
    };
    overwrite(b"no record");
    let error = refused(&config, 2, &SIZES);
    assert!(error.exit_code() == 74 && error.to_string().contains("damaged"), "{error}");
    overwrite(b"");
    let error = refused(&config, 2, &SIZES).to_string();
    assert!(error.contains("lost its records") && error.contains("epoch 3"), "{error}");
}

/// Flips a bit of every byte from `offset` on, within a committed extent or not.
fn damage(path: &PathBuf, offset: u64, len: usize) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, offset).unwrap();
    bytes.iter_mut().for_each(|byte| *byte ^= 1);
    file.write_all_at(&bytes, offset).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn after_another_boot_everything_is_verified_before_it_is_trusted() {
    let drives = Drives::new(1);
    let config = durable_config_for(&drives, 1);
    train_and_leave(&config, 1, 3);
    let records = RecordFiles::open(&shard(&drives, 0), false, 0).unwrap();
    for (place, record) in records.read().unwrap().into_iter().enumerate() {
        let mut record = record.unwrap();
        record.boot_id = "an earlier boot".to_owned();
        records.write(place, &record, false).unwrap();
    }
    // Both slots of the last chunk's moments.
    let state = shard(&drives, 0).state_path();
    let bytes = state.metadata().unwrap().len() as usize;
    damage(&state, 0, bytes);
    let error = refused(&config, 1, &SIZES);
    assert!(error.exit_code() == 74 && error.to_string().contains("corrupt"), "{error}");
    damage(&state, 0, bytes);
    assert_eq!(come_back(&config, 1, 3, 7), undisturbed(7));
}

#[test]
fn a_corrupt_chunk_is_named_never_trained_on_and_repaired_from_a_checkpoint() {
    let drives = Drives::new(2);
    let mut config = durable_config_for(&drives, 1);
    config.checkpoint.dir = Some(drives.path().join("checkpoints"));
    let saved = all(on_ranks(2, |comm: Arc<dyn Communicator>| {
        let mut optimizer = start(&config, &SIZES, Arc::clone(&comm))?;
        step_until(&mut optimizer, 3)?;
        let mut checkpoints = Checkpoints::open(&config, comm)?.unwrap();
        checkpoints.save(&mut optimizer, None, b"", NO_PARAMETERS)
    }));
    let report = verify_drives(&drives.paths(), None).unwrap();
    assert!(report.findings.is_empty() && report.chunks == 7, "{report:?}");
    let state = shard(&drives, 1).state_path();
    let bytes = state.metadata().unwrap().len() as usize;
    damage(&state, 0, bytes);
    let report = verify_drives(&drives.paths(), Some("default")).unwrap();
    assert!(!report.findings.is_empty());
    let error = report.findings[0].error.to_string();
    for word in [
        "corrupt",
        "chunk ",
        "state tensor",
        "which lies on drive 0: ",
        "shard-00001/state offset ",
    ] {
        assert!(error.contains(word), "`{word}` is not in: {error}");
    }
    let results = on_ranks(2, |comm| {
        let mut optimizer = start(&config, &SIZES, comm)?;
        let mut params = vec![bf16::ZERO; optimizer.partition().elems() as usize];
        step_into(&mut optimizer, &mut params)
    });
    for result in results {
        let error = result.unwrap_err();
        assert!(error.exit_code() == 74 && error.to_string().contains("rank 1 of 2"), "{error}");
    }
    let report = scrub(&drives.paths(), None, &saved[0].directory).unwrap();
    assert!(report.repaired > 0 && report.findings.is_empty(), "{report:?}");
    assert_eq!(come_back(&config, 2, 3, 7), undisturbed(7));
}

#[test]
fn a_scrub_writes_nothing_that_the_record_does_not_promise() {
    let drives = Drives::new(1);
    let mut config = durable_config_for(&drives, 1);
    config.checkpoint.dir = Some(drives.path().join("checkpoints"));
    let saved = all(on_ranks(1, |comm| {
        let mut optimizer = start(&config, &SIZES, Arc::clone(&comm))?;
        step_until(&mut optimizer, 2)?;
        let mut checkpoints = Checkpoints::open(&config, comm)?.unwrap();
        let saved = checkpoints.save(&mut optimizer, None, b"", NO_PARAMETERS)?;
        step_until(&mut optimizer, 3)?;
        Ok(saved)
    }));
    let state = shard(&drives, 0).state_path();
    let bytes = state.metadata().unwrap().len() as usize;
    damage(&state, 0, bytes);
    let damaged = std::fs::read(&state).unwrap();
    let report = scrub(&drives.paths(), None, &saved[0].directory).unwrap();
    assert_eq!((report.repaired, report.findings.len()), (0, 7), "{report:?}");
    let error = report.findings[0].error.to_string();
    assert!(error.contains("2 and 3") && error.contains("other bytes"), "{error}");
    assert!(std::fs::read(&state).unwrap() == damaged, "nothing was written");
}

fn train(config: &Config, ranks: usize, until: u64) -> Vec<Result<(Origin, String)>> {
    on_ranks(ranks, |comm| {
        let elems: u64 = SIZES.iter().map(|size| *size as u64).sum();
        let flat = optswap::internals::partition::contiguous_ranges(elems, ranks)
            [comm.rank().index()]
        .clone();
        let fill = masters(flat.start);
        let mut job = Training::builder(config, comm)
            .parameters(inventory(&SIZES).parameters().to_vec())
            .start::<bf16>(fill)?;
        while let Some(step) = job.next_step(until) {
            let shard = shard_gradients(job.optimizer(), step);
            job.step_on(&Gradients::Shard(&shard))?;
        }
        let digest = job.optimizer_mut().state_digest(NO_PARAMETERS)?;
        Ok((job.origin().clone(), digest))
    })
}

#[test]
fn a_job_starts_from_drives_then_from_its_newest_checkpoint_then_anew() {
    let drives = Drives::new(2);
    let mut config = durable_config_for(&drives, 1);
    config.checkpoint.dir = Some(drives.path().join("checkpoints"));
    config.checkpoint.every = 2;
    let run = |config: &Config, ranks, until| all(train(config, ranks, until)).swap_remove(0);
    let (origin, _) = run(&config, 2, 5);
    assert_eq!(origin, Origin::Fresh);
    let (origin, _) = run(&config, 2, 6);
    assert!(matches!(&origin, Origin::Drives(resumed) if resumed.attempt == 5), "{origin:?}");
    // Three ranks cannot go on with the shards of two. The save of step 4 may not have ended.
    let (origin, digest) = run(&config, 3, 7);
    assert!(matches!(origin, Origin::Checkpoint { attempt: 2 | 4, .. }), "{origin:?}");
    assert_eq!(digest, undisturbed(7));
    let (origin, _) = run(&config, 3, 7);
    assert!(matches!(&origin, Origin::Drives(resumed) if resumed.attempt == 7), "{origin:?}");
    // A drive is gone.
    let mut one_drive = config.clone();
    one_drive.drives.paths.truncate(1);
    let (origin, digest) = run(&one_drive, 3, 8);
    assert!(matches!(origin, Origin::Checkpoint { attempt: 2 | 4 | 6, .. }), "{origin:?}");
    assert_eq!(digest, undisturbed(8));
    // Without checkpoints that is an error, and nothing is overwritten.
    (one_drive.checkpoint.dir, one_drive.checkpoint.every) = (None, 0);
    for result in train(&one_drive, 2, 9) {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::StateUnavailable);
    }
}

#[test]
fn a_newer_checkpoint_wins_over_an_older_commit_and_a_damaged_one_is_passed_over() {
    let drives = Drives::new(1);
    let mut config = durable_config_for(&drives, 100);
    config.checkpoint.dir = Some(drives.path().join("checkpoints"));
    config.checkpoint.every = 2;
    // Commits: the initial state. Checkpoints: of steps 2 and 4, for sure.
    assert_eq!(all(train(&config, 1, 7))[0].0, Origin::Fresh);
    let (origin, digest) = all(train(&config, 1, 8)).swap_remove(0);
    let Origin::Checkpoint { directory, attempt, .. } = origin else { panic!("{origin:?}") };
    assert!(attempt >= 4);
    assert_eq!(digest, undisturbed(8));
    // What would replace committed steps is looked at first, whole.
    let data = std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path());
    let data = data.into_iter().find(|path| !path.display().to_string().contains("index"));
    let newest = all(train(&config, 1, 8)).swap_remove(0).0;
    assert!(newest.attempt() >= attempt);
    damage(&data.unwrap(), 0, 64);
    let (origin, digest) = all(train(&config, 2, 8)).swap_remove(0);
    assert!(origin.attempt() > 0, "{origin:?}");
    assert_eq!(digest, undisturbed(8));
}

#[test]
fn jobs_share_drives_unless_one_of_them_does_not_want_to() {
    for (first, second, is_shared) in
        [(false, false, true), (true, false, false), (false, true, false)]
    {
        let drives = Drives::new(1);
        let mut config = config_for(&drives);
        config.drives.exclusive = first;
        let mut other = config_for(&drives);
        other.job = "other".to_owned();
        other.drives.exclusive = second;
        other.durability.mode = Durability::Step;
        all(on_ranks(1, |comm| {
            let optimizer = start(&config, &SIZES, Arc::clone(&comm))?;
            let neighbour = start(&other, &SIZES, comm);
            match is_shared {
                true => drop(neighbour?),
                false => {
                    let error = neighbour.err().unwrap();
                    assert_eq!(error.exit_code(), 69);
                    assert!(error.to_string().contains("drives.exclusive"), "{error}");
                    assert!(error.to_string().contains("job default"), "{error}");
                }
            }
            optimizer.close();
            Ok(())
        }));
        let left = ShardDirectory::all_on(&drives.paths()[0], Some("default")).unwrap();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn a_job_with_fewer_ranks_removes_what_the_larger_one_left() {
    let drives = Drives::new(1);
    let mut config = config_for(&drives);
    config.drives.keep_files = true;
    train_and_leave(&config, 3, 1);
    config.drives.keep_files = false;
    all(on_ranks(2, |comm| {
        SwappedOptimizer::create(&config, inventory(&SIZES), comm, CreateOptions::default())
            .map(drop)
    }));
    assert!(drives.are_empty());
}

#[test]
fn the_name_of_a_creation_sorts_after_all_that_lie_on_the_drives() {
    let drives = Drives::new(1);
    let mut config = durable_config_for(&drives, 1);
    config.drives.keep_files = true;
    let mut names = Vec::new();
    for _ in 0..3 {
        all(on_ranks(2, |comm| {
            let options = CreateOptions::default();
            SwappedOptimizer::create(&config, inventory(&SIZES), comm, options).map(drop)
        }));
        let found = FoundShard::all_on(&drives.paths(), None).unwrap();
        names.extend(found.into_iter().map(|shard| shard.layout.job_id).next());
    }
    assert!(names.len() == 3 && names.is_sorted_by(|a, b| a < b), "{names:?}");
}
