//! A steady-state step opens, stats and closes nothing: five more steps, not one such call more.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use std::process::Command;

use support::{Drives, Run, optswap};

const METADATA: &str =
    "open,openat,openat2,creat,close,stat,lstat,fstat,newfstatat,statx,statfs,ftruncate,fallocate";

/// Calls that touch the drives, or `/proc`, by file name or descriptor, in a run of so many steps.
fn metadata_calls(steps: u32, durability: &str, place: &str) -> Option<usize> {
    let drives = Drives::new(2);
    let log = drives.path().join("strace.log");
    let text = format!("[swap]\nchunk_elements = 65536\n[gradients]\nplace = \"{place}\"\n");
    let config = drives.write("small.toml", &text);
    let mut command = Command::new("strace");
    command.args(["-f", "-y", "-e", &format!("trace={METADATA}"), "-o"]).arg(&log);
    command.arg(optswap()).args(["bench", "--params", "1Mi", "--warmup", "0", "--config", &config]);
    command.args(["--drives", &drives.list(2), "--steps", &steps.to_string()]);
    command.args(["--durability", durability]);
    let run = Run::of(&command.output().ok()?);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let calls = std::fs::read_to_string(log).unwrap();
    // A call that another thread's call cuts in two is counted by its beginning.
    let begins = calls.lines().filter(|line| !line.contains(" resumed>"));
    Some(begins.filter(|line| line.contains("drive") || line.contains("/proc")).count())
}

#[test]
fn a_step_makes_no_metadata_calls() {
    for (durability, place) in [("scratch", "caller"), ("step", "caller"), ("step", "drives")] {
        let counts = (metadata_calls(2, durability, place), metadata_calls(7, durability, place));
        let (Some(few), Some(many)) = counts else {
            // launch/setup --tests installs it; without it there is nothing to see.
            panic!("strace is not installed: run launch/setup --tests");
        };
        assert!(few > 0, "the trace saw the start-up");
        assert_eq!(many, few, "five more steps made more calls, {durability}, {place}");
    }
}
