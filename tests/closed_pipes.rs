//! Whoever reads a command's output may stop half-way: that is no error, and no panic.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use std::process::{Command, Stdio};

use support::{Drives, Run, optswap};

/// Runs a command whose stdout, and stderr too if told, nobody reads.
fn unread(arguments: &[&str], closes_stderr: bool) -> Run {
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        Stdio::from(writer)
    };
    let mut command = Command::new("timeout");
    command.args(["-k", "5", "60"]).arg(optswap()).args(arguments).stdout(closed());
    command.stderr(if closes_stderr { closed() } else { Stdio::piped() });
    Run::of(&command.output().unwrap())
}

#[test]
fn every_command_survives_a_closed_pipe() {
    let drives = Drives::new(1);
    let list = drives.list(1);
    let config = drives.write("config.toml", "");
    let bench = ["bench", "--drives", &list, "--params", "4096", "--repetitions", "1"];
    let json = drives.write("result.json", "");
    let kept = ["--job", "kept", "--durability", "step", "--keep-files"];
    let run = unread(&[&bench[..], &kept].concat(), false);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let all: [&[&str]; 9] = [
        &["--help"],
        &["doctor", "--drives", &list],
        &["doctor", "--drives", &list, "--json"],
        &["config", "explain", &config],
        &["config", "explain", &config, "--json"],
        &["clean", &list],
        &["probe", "--drives", &list, "--seconds", "0.01", "--size", "4MiB", "--depth", "2"],
        &[&bench[..], &["--csv", "-", "--json", &json]].concat(),
        &["verify", &list],
    ];
    for arguments in all {
        for closes_stderr in [false, true] {
            let run = unread(arguments, closes_stderr);
            assert_eq!(run.code, 0, "{arguments:?}\n{}", run.stderr);
            assert!(!run.stderr.contains("panicked"), "{arguments:?}\n{}", run.stderr);
        }
    }
    // The result was written before anybody could stop reading.
    let schema = format!("\"schema\": {}", optswap_cli::report::BENCH_SCHEMA);
    assert!(std::fs::read_to_string(json).unwrap().contains(&schema));
}

#[test]
fn an_error_keeps_its_exit_code() {
    for closes_stderr in [false, true] {
        let run = unread(&["doctor", "--drives", "/no/such/drive"], closes_stderr);
        assert_eq!(run.code, 69, "{}", run.stderr);
        let run = unread(&["bench", "--drives", "/no/such/drive"], closes_stderr);
        assert_eq!(run.code, 69, "{}", run.stderr);
    }
}
