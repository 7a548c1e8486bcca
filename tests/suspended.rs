//! Time in which processes do not run is no time without progress: a job that is suspended and
//! goes on is not late.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]
#![cfg(feature = "mpi")]

mod support;

use std::process::Stdio;
use std::time::Duration;

use support::{Drives, Run, TINY, one_at_a_time, process_of, ranks, signal, train_lm};

/// Suspends all ranks of a job for longer than its time-outs; those in `first` go on a little
/// before the others.
fn suspended(count: usize, first: &[usize]) -> Run {
    let drives = Drives::new(1);
    let text = "[timeouts]\nio_timeout = 1.0\npeer_timeout = 1.5\nstall_warning = 0.5\n\
                [swap]\nchunk_elements = 4096\nmemory_budget = \"192KiB\"\n";
    let config = drives.write("job.toml", text);
    let mut command = ranks(count, &train_lm());
    command.args(["--drives", &drives.list(1), "--config", &config, "--steps", "100000"]);
    let child = command.args(TINY).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pids: Vec<String> = (0..count).map(|rank| process_of(&drives, rank)).collect();
    // Several times, so that reads, writes and collectives are interrupted.
    for _ in 0..4 {
        pids.iter().for_each(|pid| signal(pid, "-STOP"));
        // The gap itself is what is tested; nothing waits for a time-out.
        std::thread::sleep(Duration::from_secs(2));
        first.iter().for_each(|rank| signal(&pids[*rank], "-CONT"));
        std::thread::sleep(Duration::from_millis(300));
        pids.iter().for_each(|pid| signal(pid, "-CONT"));
        std::thread::sleep(Duration::from_millis(150));
    }
    signal(&pids[0], "-TERM");
    Run::of(&child.wait_with_output().unwrap())
}

#[test]
fn a_suspended_job_goes_on() {
    let _turn = one_at_a_time();
    for (count, first) in [(1, [].as_slice()), (2, &[0]), (2, &[1])] {
        let run = suspended(count, first);
        // Stopped by the signal at the end, with nothing saved.
        assert_eq!(run.code, 143, "{run:?}");
        assert!(!run.stderr.contains("error: "), "{run:?}");
    }
}
