//! A job that fails always ends, in bounded time and with its own message first, also when a drive
//! never answers while everything is being closed.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]
#![cfg(feature = "mpi")]

mod support;

use std::time::{Duration, Instant};

use optswap::{Error, Launch, agree, run_main};
use support::{Drives, Run, TINY, alone, one_at_a_time, process_of, ranks, signal, train_lm};

/// What nobody waits longer for, by far.
const BOUND: Duration = Duration::from_secs(20);

/// A job of small chunks with a few buffers, so that reads ahead are under way at any moment.
fn text(more: &str) -> String {
    format!(
        "[timeouts]\nio_timeout = 1.0\npeer_timeout = 10.0\n\
         [swap]\nchunk_elements = 4096\nmemory_budget = \"192KiB\"\n{more}"
    )
}

fn run(count: usize, drives: &Drives, more: &str, arguments: &[&str]) -> Run {
    let config = drives.write("job.toml", &text(more));
    let mut command = ranks(count, &train_lm());
    command.args(["--drives", &drives.list(1), "--config", &config]).args(TINY).args(arguments);
    let start = Instant::now();
    let run = Run::of(&command.output().unwrap());
    assert!(start.elapsed() < BOUND, "{:?}: {more}{run:?}", start.elapsed());
    run
}

fn fault(rank: usize, op: u64, kind: &str) -> String {
    format!("[[faults]]\nrank = {rank}\nop = {op}\nkind = \"{kind}\"\n")
}

/// Operations of the first steps, as far as which of them they belong to is known.
const FIRST_STEPS: std::ops::Range<u64> = 10..34;

#[test]
fn an_error_of_one_rank_is_printed_although_the_other_has_a_read_that_never_ends() {
    let _turn = one_at_a_time();
    let mut agreed = 0;
    for op in FIRST_STEPS.step_by(3) {
        let drives = Drives::new(1);
        let faults = fault(1, 22, "eio") + &fault(0, op, "stall");
        let run = run(2, &drives, &faults, &["--steps", "8"]);
        run.expect(74, &["error: rank "]);
        agreed += usize::from(run.stderr.contains("Input/output error"));
    }
    assert!(agreed > 0, "the stall was never behind the error");
}

#[test]
fn a_drive_that_hangs_at_the_end_does_not_hold_up_what_is_done() {
    let _turn = one_at_a_time();
    let (mut done, mut failed) = (0, 0);
    for op in FIRST_STEPS.step_by(3) {
        let drives = Drives::new(1);
        let run = run(2, &drives, &fault(0, op, "stall"), &["--steps", "2"]);
        match run.code {
            0 => done += 1,
            74 => failed += 1,
            code => panic!("{code}: {run:?}"),
        }
        assert!(run.code == 0 || run.stderr.contains("io_timeout"), "{run:?}");
    }
    assert!(done > 0 && failed > 0, "{done} done, {failed} failed: other operations are wanted");
}

#[test]
fn a_job_that_was_asked_to_stop_ends_although_a_drive_hangs() {
    let _turn = one_at_a_time();
    let drives = Drives::new(1);
    // A stall far on, which a read ahead or a step meets; whichever it is, the job ends.
    let config = drives.write("job.toml", &text(&fault(0, 4_000, "stall")));
    let mut command = ranks(2, &train_lm());
    command.args(["--drives", &drives.list(1), "--config", &config, "--steps", "100000"]);
    command.args(TINY).args(["--durability", "step"]);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let child = command.spawn().unwrap();
    let pid = process_of(&drives, 1);
    signal(&pid, "-TERM");
    let start = Instant::now();
    let run = Run::of(&child.wait_with_output().unwrap());
    assert!(start.elapsed() < BOUND, "{:?}: {run:?}", start.elapsed());
    assert!([74, 75].contains(&run.code), "{run:?}");
}

#[test]
fn a_drive_that_asks_again_for_ever_is_no_progress() {
    for (kind, errno) in [("eagain", "os error 11"), ("eintr", "os error 4")] {
        let drives = Drives::new(1);
        let faults = format!("[[faults]]\nrank = 0\none_in = 1\nkind = \"{kind}\"\n");
        let config = drives.write("job.toml", &text(&faults));
        let arguments = ["--drives", &drives.list(1), "--config", &config, "--steps", "1"];
        let start = Instant::now();
        let run = alone(&train_lm(), &[&arguments[..], &TINY].concat());
        assert!(start.elapsed() < BOUND, "{:?}: {run:?}", start.elapsed());
        run.expect(74, &["no I/O completed for 1 s (io_timeout)", errno, "shard-00000/state"]);
        assert!(drives.are_empty(), "a job that never began leaves nothing");
    }
}

#[test]
fn a_rank_that_hangs_on_its_way_out_does_not_keep_a_failed_job() {
    let _turn = one_at_a_time();
    let mut command = ranks(2, &std::env::current_exe().unwrap());
    command.args(["--exact", "a_rank_of_the_job_that_does_not_leave", "--ignored", "--nocapture"]);
    let start = Instant::now();
    let run = Run::of(&command.output().unwrap());
    assert!(start.elapsed() < BOUND, "{:?}: {run:?}", start.elapsed());
    run.expect(64, &["error: rank 0 of 2", "what was wrong", "have not left within 1 s"]);
    let [reason, after] =
        ["what was wrong", "have not left"].map(|words| run.stderr.find(words).unwrap());
    assert!(reason < after, "the reason comes first: {run:?}");
}

#[test]
#[ignore = "a rank of a_rank_that_hangs_on_its_way_out_does_not_keep_a_failed_job"]
fn a_rank_of_the_job_that_does_not_leave() {
    let launch = Launch { peer_timeout: Duration::from_secs(1), ..Launch::default() };
    let code = run_main(&launch, |comm| {
        let failed = agree(&*comm, Err::<(), _>(Error::usage("what was wrong")));
        if comm.rank().0 == 1 {
            std::thread::sleep(Duration::from_secs(600));
        }
        failed
    });
    panic!("MPI_Finalize has returned: {code:?}");
}
