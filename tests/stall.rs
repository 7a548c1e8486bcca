//! The stall inspector, with real ranks: who is late is named, with what it was last doing; what
//! makes progress is waited for.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]
#![cfg(feature = "mpi")]

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use support::cluster::{Cluster, pid_of_rank};
use support::{
    Drives, Run, TINY, long_job, one_at_a_time, optswap, process_of, ranks, signal, train_lm,
};

const TIMEOUTS: &str = "[timeouts]\nstall_warning = 1.0\npeer_timeout = 3.0\n";

/// Where a rank of `long_job` can be when it is stopped.
const PHASES: [&str; 3] = ["computing between steps", "in step: ", "swapping outside of a step"];

fn host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_owned()
}

/// Waits until a process is gone, or is but an entry that its parent has not looked at.
fn is_gone(pid: &str) -> bool {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        if status.is_empty() || status.contains("State:\tZ") {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Stops one rank of a job of three and waits for the end of all.
fn run_with_stopped(rank: usize) -> Run {
    let drives = Drives::new(1);
    let child = long_job(3, &drives, TIMEOUTS).spawn().unwrap();
    let pids: Vec<String> = (0..3).map(|rank| process_of(&drives, rank)).collect();
    let start = Instant::now();
    signal(&pids[rank], "-STOP");
    let run = Run::of(&child.wait_with_output().unwrap());
    assert!(start.elapsed() >= Duration::from_secs(3), "{:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert!(pids.iter().all(|pid| is_gone(pid)), "{}", run.stderr);
    let pages = std::fs::read_dir("/dev/shm").into_iter().flatten().flatten();
    let mut pages = pages.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let page = format!("optswap-{}-", pids[0]);
    assert!(!pages.any(|name| name.starts_with(&page)), "the page has stayed behind");
    run
}

/// A line of the log with all of these words.
#[track_caller]
fn expect_line(run: &Run, words: &[&str]) -> String {
    let has_all = |line: &&str| words.iter().all(|word| line.contains(word));
    let line = run.stderr.lines().find(has_all);
    line.unwrap_or_else(|| panic!("no line with {words:?} in:\n{}", run.stderr)).to_owned()
}

#[test]
fn a_stopped_rank_is_named_in_a_warning_and_in_the_error() {
    let _turn = one_at_a_time();
    let run = run_with_stopped(1);
    run.expect(69, &["error: waited 3 s in MPI_I", "peer_timeout"]);
    let late = format!("rank 1 on {}, ", host());
    let in_error = format!("(late {late}");
    let warning = expect_line(&run, &[" 0/3] warn: waiting for 1", " in MPI_I", &late]);
    let error = expect_line(&run, &["error: waited 3 s in MPI_I", &in_error]);
    for line in [warning, error] {
        assert!(PHASES.iter().any(|phase| line.contains(phase)), "{line}");
        assert!(["no progress for", "no sign of life"].iter().any(|it| line.contains(it)));
        assert!(!line.contains("rank 2 on"), "only the culprit: {line}");
    }
}

#[test]
fn a_stopped_rank_0_is_named_by_another() {
    let _turn = one_at_a_time();
    let run = run_with_stopped(0);
    let late = format!("rank 0 on {}, ", host());
    expect_line(&run, &["/3] warn: waiting for 1", " in MPI_I", &late]);
    run.expect(69, &["error: waited 3 s in MPI_I", &format!("(late {late}")]);
}

#[test]
fn a_rank_whose_drive_hangs_is_named_with_its_phase() {
    let _turn = one_at_a_time();
    let drives = Drives::new(1);
    let fault = "[[faults]]\nrank = 1\nop = 40\nkind = \"stall\"\n";
    let run = Run::of(&long_job(3, &drives, &format!("{TIMEOUTS}{fault}")).output().unwrap());
    let late = format!("rank 1 on {}, in step: swapping and updating, no progress for", host());
    expect_line(&run, &[" 0/3] warn: waiting for 1", &late, "I/O operations so far"]);
    run.expect(69, &["error: waited 3 s in MPI_I", &format!("(late {late}")]);
}

/// A benchmark in which operations of the last rank move 4 KiB each, one after the other, as large
/// as this machine needs to be slower than `peer_timeout`; expects a warning with such words. `run`
/// runs optswap with so many ranks; files go to `folder`.
fn expect_patience(count: usize, folder: &Path, run: impl Fn(&[&str]) -> Run, words: &[&str]) {
    const PEER_TIMEOUT: f64 = 1.0;
    let text = format!(
        "[io]\nengine = \"threads\"\ndepth = 1\n\
         [timeouts]\nstall_warning = 0.3\npeer_timeout = {PEER_TIMEOUT:?}\n\
         [[faults]]\nrank = {}\none_in = 1\nkind = \"short\"\n",
        count - 1
    );
    let [config, json] = ["slow.toml", "json"].map(|name| folder.join(name).display().to_string());
    std::fs::write(&config, text).unwrap();
    for mebi_per_rank in [4, 16, 64] {
        let params = format!("{}Mi", mebi_per_rank * count);
        let bench = ["bench", "--config", &config, "--params", &params, "--json", &json];
        let once = ["--repetitions", "1", "--steps", "1", "--warmup", "0"];
        let run = run(&[&bench[..], &once].concat());
        assert_eq!(run.code, 0, "{}", run.stderr);
        let result = std::fs::read_to_string(&json).unwrap();
        let result: serde_json::Value = serde_json::from_str(&result).unwrap();
        if result["step_seconds"][0].as_f64().unwrap() > 1.5 * PEER_TIMEOUT {
            expect_line(&run, words);
            return;
        }
    }
    panic!("this machine was never slow enough to show anything");
}

#[test]
fn a_rank_that_makes_progress_is_waited_for_beyond_peer_timeout() {
    let _turn = one_at_a_time();
    let late = format!("rank 1 on {}, in step: swapping and updating, making progress", host());
    let drives = Drives::new(1);
    let run = |arguments: &[&str]| {
        let mut command = ranks(2, &optswap());
        Run::of(&command.args(arguments).args(["--drives", &drives.list(1)]).output().unwrap())
    };
    expect_patience(2, drives.path(), run, &[" 0/2] warn: waiting for 0.3 s in MPI_I", &late]);
}

mod needs_slurm {
    use super::*;

    /// Two hosts; ranks 0 and 2 run on the first, 1 and 3 on the second.
    fn two_hosts(size: &str) -> Cluster {
        Cluster::up(&["--nodes", "2", "--drives", "1", "--size", size])
    }

    #[test]
    #[ignore = "needs root and Slurm: launch/test"]
    fn progress_on_another_host_counts_as_well() {
        let _turn = one_at_a_time();
        let cluster = two_hosts("2GiB");
        let run = |arguments: &[&str]| cluster.run(4, 2, &optswap(), arguments);
        let words = ["[node1 0/4] warn: ", "rank 3 on node2, ", "making progress"];
        expect_patience(4, &cluster.path(""), run, &words);
    }

    #[test]
    #[ignore = "needs root and Slurm: launch/test"]
    fn ranks_on_other_hosts_are_named_too() {
        let _turn = one_at_a_time();
        let cluster = two_hosts("64MiB");
        let text = TIMEOUTS.to_owned() + "[swap]\nchunk_elements = 4096\n";
        let config = cluster.write("job.toml", &text);
        let job = [&["--config", &config, "--steps", "100000"], &TINY[..]].concat();
        for (stopped, expected) in [
            (3, [["[node1 0/4] warn: waiting for ", "rank 3 on node2, "]].as_slice()),
            (
                0,
                &[
                    ["[node1 2/4] warn: waiting for ", "rank 0 on node1, "],
                    ["[node2 ", "rank 0 on node1 has not answered, so it may be late; "],
                ],
            ),
        ] {
            let run = std::thread::scope(|scope| {
                let run = scope.spawn(|| cluster.run(4, 2, &train_lm(), &job));
                let pid = pid_of_rank(&config, stopped);
                // Some steps later.
                std::thread::sleep(Duration::from_secs(1));
                signal(&pid, "-STOP");
                run.join().unwrap()
            });
            assert_eq!(run.code, 69, "{}", run.stderr);
            expected.iter().for_each(|words| {
                expect_line(&run, words);
            });
        }
    }
}
