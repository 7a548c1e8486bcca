//! Signals that ask a job to stop: all ranks finish the step, commit or save it, and end with 75 if
//! the job can go on later.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]
#![cfg(feature = "mpi")]

mod support;

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::{Drives, Run, TINY, one_at_a_time, rank_pids, ranks, train_lm};

/// A job that lasts; `small.toml` may hold more than the chunk size.
fn start(drives: &Drives, count: usize, config: &str, more: &[&str]) -> Child {
    let config = drives.write("small.toml", &format!("[swap]\nchunk_elements = 4096\n{config}"));
    let mut command = ranks(count, &train_lm());
    command.args(["--drives", &drives.list(1), "--config", &config]).args(TINY).args(more);
    command.args(["--validate-every", "100000"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// The ranks of the job, when they step.
fn stepping(drives: &Drives, count: usize) -> Vec<u32> {
    let tag = drives.path().display().to_string();
    let deadline = Instant::now() + Duration::from_secs(30);
    let last = drives.shard("default", count - 1).join("owner");
    while rank_pids(&tag).len() < count || !last.exists() {
        assert!(Instant::now() < deadline, "the ranks do not start");
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(700));
    rank_pids(&tag)
}

fn signal(pid: u32, signal: &str) {
    let pid = pid.to_string();
    assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
}

fn end(child: Child) -> Run {
    let start = Instant::now();
    let run = Run::of(&child.wait_with_output().unwrap());
    assert!(start.elapsed() < Duration::from_secs(15), "{run:?}");
    run
}

fn finish(drives: &Drives, count: usize, more: &[&str]) -> Run {
    let run = end(start(drives, count, "", more));
    assert_eq!(run.code, 0, "{run:?}");
    run
}

fn digest(run: &Run) -> String {
    run.json()["state_digest"].as_str().unwrap().to_owned()
}

#[test]
fn one_rank_that_is_asked_stops_all_and_the_job_goes_on_later() {
    let _turn = one_at_a_time();
    let undisturbed = Drives::new(1);
    let expected = digest(&finish(&undisturbed, 2, &["--steps", "900"]));
    for name in ["-TERM", "-USR1", "-INT"] {
        let drives = Drives::new(1);
        let more = ["--steps", "900", "--durability", "1000"];
        let child = start(&drives, 2, "", &more);
        signal(stepping(&drives, 2)[1], name);
        let run = end(child);
        let signal = format!("stopped by SIG{} (rank ", &name[1..]);
        run.expect(75, &[&signal, "is committed", "start the same command again"]);
        let later = finish(&drives, 2, &more);
        assert!(later.stderr.contains("going on after step "), "{later:?}");
        assert_eq!(digest(&later), expected, "{name}");
        assert!(drives.are_empty());
    }
}

#[test]
fn a_scratch_job_is_saved_where_checkpoints_go_and_goes_on_with_other_ranks() {
    let _turn = one_at_a_time();
    let drives = Drives::new(1);
    let checkpoints = drives.path().join("checkpoints").display().to_string();
    let more = ["--steps", "1000", "--checkpoint-dir", &checkpoints];
    let child = start(&drives, 2, "", &more);
    signal(stepping(&drives, 2)[0], "-TERM");
    end(child).expect(75, &["stopped by SIGTERM", "checkpoint ", "is there"]);
    let later = finish(&drives, 3, &more);
    assert!(later.stderr.contains("from checkpoint"), "{later:?}");
    assert!(later.json()["steps_before"].as_u64().unwrap() > 0);
}

#[test]
fn with_nothing_saved_the_exit_code_is_that_of_the_signal() {
    let _turn = one_at_a_time();
    for (name, code) in [("-TERM", 143), ("-INT", 130)] {
        let drives = Drives::new(1);
        let child = start(&drives, 2, "", &["--steps", "100000"]);
        signal(stepping(&drives, 2)[0], name);
        end(child).expect(code, &["nothing is saved"]);
        assert!(drives.are_empty());
    }
}

#[test]
fn a_step_that_would_take_too_long_is_not_begun() {
    let _turn = one_at_a_time();
    let drives = Drives::new(1);
    let grace = "[timeouts]\ngrace_period = 0.0001\n";
    let more = ["--steps", "100000", "--durability", "1000000"];
    let child = start(&drives, 2, grace, &more);
    signal(stepping(&drives, 2)[0], "-TERM");
    // No step is begun any more, but those that were taken are committed.
    let stopped = end(child);
    stopped.expect(75, &["epoch 1 is committed"]);
    let (_, step) = stopped.stderr.split_once(" after step ").unwrap();
    let step: u64 = step.split(';').next().unwrap().parse().unwrap();
    let later = start(&drives, 2, "", &["--steps", &(step + 1).to_string(), "--durability", "5"]);
    end(later).expect(0, &[&format!("going on after step {step} from the drives")]);
}

#[test]
fn a_second_interrupt_ends_the_job_at_once() {
    let _turn = one_at_a_time();
    let drives = Drives::new(1);
    let child = start(&drives, 2, "", &["--steps", "100000", "--durability", "step"]);
    let pids = stepping(&drives, 2);
    // A stopped rank keeps the others from agreeing on the first one.
    signal(pids[1], "-STOP");
    signal(pids[0], "-INT");
    std::thread::sleep(Duration::from_millis(200));
    signal(pids[0], "-INT");
    assert_eq!(end(child).code, 130);
}
