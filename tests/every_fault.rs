//! Every operation of a step fails once, in every way: the job goes on with the right bits, or all
//! ranks get one error that says where, and a durable job comes back from it. Never a wrong digest,
//! never a hang.
//!
//! Two ranks are threads; rank 1 has the fault, in its second step of three. Operations are
//! numbered per rank since start-up; which of them reads or writes which chunk depends on the
//! moment, so every number is tried, with both engines.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use std::sync::Arc;

use optswap::internals::config::{Durability, EngineName, FaultConfig, FaultKind};
use optswap::internals::storage::ShardDirectory;
use optswap::{Communicator, Config, Error, NO_PARAMETERS, Result};
use support::world::{
    Job, STEPS, all, job_config_for, on_ranks, on_ranks_in_case, undisturbed_digests,
};
use support::{Drives, copy_tree, one_at_a_time};

const RANKS: usize = 2;
/// Reads or writes of all chunks of a rank: three chunks in three stripe units on two drives.
const OPS_OF_A_SWEEP: u64 = 9;

/// The operations of rank 1's second step.
fn second_step() -> std::ops::Range<u64> {
    let counts = all(on_ranks(RANKS, |comm| {
        let drives = Drives::new(2);
        let config = job_config_for(&drives, Durability::Scratch, EngineName::Threads);
        let mut job = Job::start(&config, comm)?;
        job.step()?;
        let records = job.optimizer.gather_records()?;
        let drives = &records[1].drives;
        let reads: u64 = drives.iter().map(|drive| drive.totals.reads).sum();
        let writes: u64 = drives.iter().map(|drive| drive.totals.writes).sum();
        job.optimizer.close();
        Ok((reads, writes))
    }));
    let (reads, writes) = counts[1];
    // Initialisation writes everything, the start emits the parameters from it, step 1.
    assert_eq!([reads, writes], [OPS_OF_A_SWEEP; 2]);
    let before = writes + reads + reads + writes;
    before..before + reads + writes
}

/// What one rank saw of a disturbed job.
#[derive(Debug)]
enum Seen {
    /// Nothing: the digest.
    Digest(String),
    /// An error of the step with this number; all steps that were left are taken after going back.
    Recovered { step: u64, error: Error, digest: String },
    /// An error at this step (one beyond the last for the digest); and of the try to go back.
    Lost { step: u64, error: Error, recover: Error },
}

/// Runs the job; after an error, goes back to the last commit and checks what it gets back.
fn run(config: &Config, comm: Arc<dyn Communicator>) -> Result<Seen> {
    let mut job = Job::start(config, comm)?;
    let mut emitted = vec![job.params.clone()];
    let mut taken = Ok(());
    while job.optimizer.attempts() < STEPS && taken.is_ok() {
        taken = job.step().map(drop);
        emitted.push(job.params.clone());
    }
    let step = emitted.len() as u64 - 1 + u64::from(taken.is_ok());
    let digest = taken.and_then(|()| job.optimizer.state_digest(NO_PARAMETERS));
    let error = match digest {
        Ok(digest) => {
            job.optimizer.close();
            return Ok(Seen::Digest(digest));
        }
        Err(error) => error,
    };
    let mut params = vec![0.0; job.params.len()];
    let blob = match job.optimizer.recover(&mut params) {
        Ok(blob) => blob,
        Err(recover) => return Ok(Seen::Lost { step, error, recover }),
    };
    let attempts = job.optimizer.attempts();
    assert_eq!(attempts, step - 1, "every step was committed");
    assert_eq!(params, emitted[attempts as usize], "the parameters of the last commit");
    assert_eq!(blob, if attempts == 0 { vec![] } else { vec![attempts as u8] });
    assert_eq!(job.optimizer.epoch(), Some(attempts));
    job.params = params;
    let digest = job.finish()?;
    job.optimizer.close();
    Ok(Seen::Recovered { step, error, digest })
}

/// Runs a job whose rank 1 has this fault.
fn disturbed(
    drives: &Drives,
    mode: Durability,
    engine: EngineName,
    op: u64,
    kind: FaultKind,
) -> (String, Vec<Seen>) {
    let mut config = job_config_for(drives, mode, engine);
    config.faults.push(FaultConfig::at(1, op, kind));
    config.timeouts.io_timeout = if kind == FaultKind::Stall { 0.3 } else { 60.0 };
    let name = format!("{kind:?} at operation {op}, {mode:?}, {engine:?}");
    let seen = all(on_ranks_in_case(&name, RANKS, |comm| run(&config, comm)));
    (name, seen)
}

fn expect_error(name: &str, error: &Error, words: &[&str]) {
    let message = error.to_string();
    assert!(error.is_agreed() && error.exit_code() == 74, "{name}: {error}");
    for word in words {
        assert!(message.contains(word), "{name}: `{word}` is not in: {message}");
    }
}

/// Every case of these kinds.
fn cases(kinds: &[FaultKind]) -> Vec<(Durability, EngineName, u64, FaultKind)> {
    let mut cases = Vec::new();
    for op in second_step() {
        for mode in [Durability::Scratch, Durability::Step] {
            for engine in [EngineName::Threads, EngineName::Uring] {
                cases.extend(kinds.iter().map(|kind| (mode, engine, op, *kind)));
            }
        }
    }
    cases
}

#[test]
fn what_a_moment_takes_away_is_done_again() {
    let _turn = one_at_a_time();
    let expected = undisturbed_digests(RANKS).pop().unwrap();
    let mut count = 0;
    for (mode, engine, op, kind) in cases(&[FaultKind::Eintr, FaultKind::Eagain, FaultKind::Short])
    {
        let (name, seen) = disturbed(&Drives::new(2), mode, engine, op, kind);
        for seen in seen {
            assert!(matches!(&seen, Seen::Digest(it) if *it == expected), "{name}: {seen:?}");
        }
        count += 1;
    }
    println!("{count} cases");
}

#[test]
fn a_refused_operation_is_one_error_and_a_durable_job_goes_back() {
    let _turn = one_at_a_time();
    let expected = undisturbed_digests(RANKS).pop().unwrap();
    let mut count = 0;
    for (mode, engine, op, kind) in cases(&[FaultKind::Eio, FaultKind::Enospc]) {
        let drives = Drives::new(2);
        let (name, seen) = disturbed(&drives, mode, engine, op, kind);
        let errno = if kind == FaultKind::Eio { "os error 5" } else { "os error 28" };
        let words =
            ["rank 1 of 2", errno, "failed (drive", "shard-00001/state", "offset", "holding"];
        let mut messages = Vec::new();
        for seen in seen {
            let error = match (seen, mode) {
                (Seen::Recovered { step: 2, error, digest }, Durability::Step) => {
                    assert_eq!(digest, expected, "{name}");
                    error
                }
                (Seen::Lost { step: 2, error, recover }, Durability::Scratch) => {
                    assert_eq!(recover.exit_code(), 64, "{name}: {recover}");
                    assert!(recover.to_string().contains("scratch"), "{name}: {recover}");
                    error
                }
                (seen, _) => panic!("{name}: {seen:?}"),
            };
            expect_error(&name, &error, &words);
            messages.push(error.to_string());
        }
        assert_eq!(messages[0], messages[1], "{name}: the same error on both ranks");
        assert!(drives.are_empty(), "{name}: nothing is left behind");
        count += 1;
    }
    println!("{count} cases");
}

#[test]
fn a_lie_of_a_drive_is_found_and_never_trained_on() {
    let _turn = one_at_a_time();
    let expected = undisturbed_digests(RANKS).pop().unwrap();
    let mut found = [0; 2];
    let mut passed = [0; 2];
    for (mode, engine, op, kind) in cases(&[FaultKind::Torn, FaultKind::Bitflip]) {
        let drives = Drives::new(2);
        let (name, seen) = disturbed(&drives, mode, engine, op, kind);
        let is_torn = kind == FaultKind::Torn;
        let mut digests = 0;
        for seen in seen {
            let words = &["rank 1 of 2", "corrupt", "holding", "which lies on", "drive"];
            match (seen, mode) {
                // A read cannot be torn, nor a write flipped.
                (Seen::Digest(digest), _) => {
                    assert_eq!(digest, expected, "{name}");
                    digests += 1;
                }
                // What a read has flipped is right on the drive.
                (Seen::Recovered { step: 2, error, digest }, Durability::Step) if !is_torn => {
                    expect_error(&name, &error, words);
                    assert_eq!(digest, expected, "{name}");
                }
                (Seen::Lost { step: 2, error, recover }, Durability::Scratch) if !is_torn => {
                    expect_error(&name, &error, words);
                    assert_eq!(recover.exit_code(), 64, "{name}: {recover}");
                }
                // Step 2 has been agreed on, so going back gives step 2, which is torn. Step 1's
                // slots are whole still, but are no longer what was promised.
                (Seen::Lost { step: 3, error, recover }, _) if is_torn => {
                    expect_error(&name, &error, words);
                    match mode {
                        Durability::Step => expect_error(&name, &recover, words),
                        Durability::Scratch => assert_eq!(recover.exit_code(), 64, "{name}"),
                    }
                }
                (seen, _) => panic!("{name}: {seen:?}"),
            }
        }
        assert!(digests == 0 || digests == RANKS, "{name}: ranks disagree");
        let counts = if digests == 0 { &mut found } else { &mut passed };
        counts[usize::from(is_torn)] += 1;
        if mode == Durability::Step && is_torn && digests == 0 {
            // A later start comes back to that commit, and finds the same.
            let config = job_config_for(&drives, mode, engine);
            let again = on_ranks_in_case(&name, RANKS, |comm| Job::start(&config, comm).map(drop));
            for result in again {
                expect_error(&name, &result.unwrap_err(), &["corrupt"]);
            }
        }
    }
    println!("flips and torn writes found: {found:?}; where nothing happens: {passed:?}");
    // Half of a step's operations are reads.
    assert_eq!(found, passed);
}

#[test]
fn a_lost_operation_ends_the_process_and_the_next_start_goes_on() {
    let _turn = one_at_a_time();
    let expected = undisturbed_digests(RANKS).pop().unwrap();
    let mut count = 0;
    // Waiting takes real time: every operation is lost once, with the modes and engines in turn.
    let turns = cases(&[FaultKind::Stall]).into_iter().enumerate();
    for (_, (mode, engine, op, kind)) in turns.filter(|(turn, _)| turn % 4 == turn / 4 % 4) {
        let drives = Drives::new(2);
        let (name, seen) = disturbed(&drives, mode, engine, op, kind);
        for seen in seen {
            let Seen::Lost { step: 2, error, recover } = seen else { panic!("{name}: {seen:?}") };
            expect_error(&name, &error, &["no I/O completed for 0.3 s", "shard-00001/state"]);
            match mode {
                Durability::Scratch => assert_eq!(recover.exit_code(), 64, "{name}: {recover}"),
                Durability::Step => {
                    expect_error(&name, &recover, &["given up", "start the job again"]);
                }
            }
        }
        count += 1;
        if mode == Durability::Scratch {
            continue;
        }
        // The kernel may still write for this process, so it keeps its locks until it ends.
        assert!(ShardDirectory::new(&drives.paths()[0], "default", 1).is_alive(), "{name}");
        let later = Drives::new(2);
        copy_tree(drives.path(), later.path());
        let config = job_config_for(&later, mode, engine);
        let digests = all(on_ranks_in_case(&name, RANKS, |comm| {
            let mut job = Job::start(&config, comm)?;
            assert_eq!(job.optimizer.resumed().unwrap().attempt, 1);
            let digest = job.finish()?;
            job.optimizer.close();
            Ok(digest)
        }));
        assert!(digests.iter().all(|digest| *digest == expected), "{name}: {digests:?}");
    }
    println!("{count} cases");
}

#[test]
fn what_fails_before_the_first_commit_leaves_nothing_behind() {
    let _turn = one_at_a_time();
    for mode in [Durability::Scratch, Durability::Step] {
        // Every operation of the initialisation; then the first that reads.
        for op in 0..=OPS_OF_A_SWEEP {
            let drives = Drives::new(2);
            let mut config = job_config_for(&drives, mode, EngineName::Auto);
            config.faults.push(FaultConfig::at(1, op, FaultKind::Eio));
            let name = format!("operation {op}, {mode:?}");
            for result in on_ranks_in_case(&name, RANKS, |comm| Job::start(&config, comm).map(drop))
            {
                let what = if op < OPS_OF_A_SWEEP { "swap-out" } else { "swap-in" };
                expect_error(&name, &result.unwrap_err(), &["rank 1 of 2", what, "os error 5"]);
            }
            let is_committed = mode == Durability::Step && op == OPS_OF_A_SWEEP;
            assert_eq!(drives.are_empty(), !is_committed, "{name}");
        }
    }
}

#[test]
fn a_durable_job_goes_back_from_anywhere() {
    let _turn = one_at_a_time();
    let expected = undisturbed_digests(RANKS).pop().unwrap();
    let second = second_step();
    let last = second.end + 2 * OPS_OF_A_SWEEP;
    for op in second.end..last + OPS_OF_A_SWEEP {
        let engine = if op % 2 == 0 { EngineName::Threads } else { EngineName::Uring };
        let drives = Drives::new(2);
        let (name, seen) = disturbed(&drives, Durability::Step, engine, op, FaultKind::Eio);
        for seen in seen {
            let Seen::Recovered { step, digest, .. } = seen else { panic!("{name}: {seen:?}") };
            // Step 3, or the digest after it.
            assert_eq!((step, digest), (if op < last { 3 } else { 4 }, expected.clone()), "{name}");
        }
    }
}
