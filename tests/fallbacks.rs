//! What the system may refuse: each fallback works, gives the same state, and says its name. strace
//! makes the system refuse.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use std::process::Command;

use support::{Drives, Run, TINY, optswap, train_lm};

/// A verified benchmark during which strace tampers with system calls; gives what it did.
fn bench(drives: &Drives, tamper: &[&str], more: &[&str]) -> Run {
    let mut command = Command::new("timeout");
    command
        .args(["-k", "5", "60", "strace", "-f", "-qq", "-o", "/dev/null"])
        .args(tamper)
        .arg(optswap());
    command.args(["bench", "--params", "100000", "--steps", "2", "--verify", "--drives"]);
    command.arg(drives.list(1)).args(more);
    Run::of(&command.output().expect("strace is installed by launch/setup --tests"))
}

fn digest(run: &Run) -> String {
    assert_eq!(run.code, 0, "{}\n{}", run.stdout, run.stderr);
    let line = run.stdout.lines().find(|line| line.starts_with("state digest ")).unwrap();
    assert!(line.ends_with(", verified"), "{line}");
    line.to_owned()
}

#[test]
fn nothing_refused() {
    let drives = Drives::new(1);
    let run = bench(&drives, &["-e", "trace=none"], &[]);
    run.expect(0, &["I/O engine: io_uring", "registered files, registered buffers"]);
    assert!(!run.stderr.contains("falling back"), "{}", run.stderr);
}

#[test]
fn io_uring_refused() {
    let drives = Drives::new(1);
    let refuse = ["-e", "trace=io_uring_setup", "-e", "inject=io_uring_setup:error=EPERM"];
    let expected = digest(&bench(&drives, &["-e", "trace=none"], &[]));
    let run = bench(&drives, &refuse, &[]);
    assert_eq!(digest(&run), expected);
    run.expect(0, &["I/O engine: threads", "io_uring is refused: Operation not permitted"]);
    // Asked for by name, it is an error.
    let run = bench(&drives, &refuse, &["--engine", "uring"]);
    run.expect(69, &["io_uring is refused", "kernel.io_uring_disabled", "--engine threads"]);
    assert!(drives.are_empty());
}

#[test]
fn an_old_kernels_io_uring() {
    let drives = Drives::new(1);
    for (modes, name) in [(1, "cooperative task run"), (2, "plain")] {
        let inject = format!("inject=io_uring_setup:error=EINVAL:when=1..{modes}");
        let run = bench(&drives, &["-e", "trace=io_uring_setup", "-e", &inject], &[]);
        digest(&run);
        run.expect(0, &[name]);
    }
}

#[test]
fn registered_buffers_refused() {
    let drives = Drives::new(1);
    // The first registration is that of the files.
    let inject = "inject=io_uring_register:error=ENOMEM:when=2";
    let run = bench(&drives, &["-e", "trace=io_uring_register", "-e", inject], &[]);
    digest(&run);
    run.expect(0, &["registered buffers refused", "ulimit -l", "unregistered buffers"]);
}

/// Which of a start's opens in the job's directory is the first with direct I/O, counted from 1:
/// that of the trial, by which the job goes.
fn first_direct_open(drives: &Drives, directory: &str) -> usize {
    let log = tempfile::NamedTempFile::new().unwrap();
    let trace = ["-o", log.path().to_str().unwrap(), "-e", "trace=openat", "-P", directory];
    digest(&bench(drives, &trace, &[]));
    let opens = std::fs::read_to_string(log.path()).unwrap();
    1 + opens.lines().position(|open| open.contains("O_DIRECT|")).expect(&opens)
}

#[test]
fn direct_io_refused() {
    let drives = Drives::new(1);
    let directory = drives.paths()[0].join("optswap/default");
    let directory = directory.to_str().unwrap();
    let when = first_direct_open(&drives, directory);
    let inject = format!("inject=openat:error=EINVAL:when={when}");
    let run = bench(&drives, &["-e", "trace=openat", "-P", directory, "-e", &inject], &[]);
    digest(&run);
    run.expect(0, &["direct I/O refused by the file system, falling back to buffered I/O"]);
}

#[test]
fn locks_of_the_checkpoints_refused() {
    let drives = Drives::new(1);
    let saved = drives.path().join("checkpoints");
    let lock = saved.join("default/owner");
    let mut command = Command::new("timeout");
    command.args(["-k", "5", "60", "strace", "-f", "-qq", "-o", "/dev/null"]);
    command.args(["-e", "trace=flock", "-P"]).arg(&lock);
    command.args(["-e", "inject=flock:error=ENOLCK"]).arg(train_lm()).args(TINY);
    command.args(["--steps", "2", "--drives", &drives.list(1), "--checkpoint-dir"]).arg(&saved);
    let run = Run::of(&command.output().unwrap());
    run.expect(0, &["the checkpoints cannot be locked", "No locks available", "no second job"]);
    assert!(saved.join("default/step-00000002/manifest.json").exists());
}
