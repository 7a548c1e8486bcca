//! The stall inspector, with real ranks: who is late is named, with what it was last doing; what
//! makes progress is waited for.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]
#![cfg(feature = "mpi")]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

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

/// Runs a benchmark in which operations of the last rank move 4 KiB each, one after the other, as
/// large as this machine needs to be slower than `peer_timeout`; expects a warning with such words.
fn expect_patience(count: usize, on_two_hosts: bool, words: &[&str]) {
    const PEER_TIMEOUT: f64 = 1.0;
    let config = format!(
        "[io]\nengine = \"threads\"\ndepth = 1\n\
         [timeouts]\nstall_warning = 0.3\npeer_timeout = {PEER_TIMEOUT:?}\n\
         [[faults]]\nrank = {}\none_in = 1\nkind = \"short\"\n",
        count - 1
    );
    for mebi_per_rank in [4, 16, 64] {
        let drives = Drives::new(1);
        let (config, json) = (drives.write("slow.toml", &config), drives.path().join("json"));
        let mut command = match on_two_hosts {
            true => ranks(count, &two_hosts(&drives)),
            false => ranks(count, Path::new("env")),
        };
        command.arg(optswap()).args(["bench", "--drives", &drives.list(1), "--config", &config]);
        command.args(["--params", &format!("{}Mi", mebi_per_rank * count), "--json"]).arg(&json);
        let run = Run::of(
            &command
                .args(["--repetitions", "1", "--steps", "1", "--warmup", "0"])
                .output()
                .unwrap(),
        );
        assert_eq!(run.code, 0, "{}", run.stderr);
        let result = std::fs::read_to_string(json).unwrap();
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
    expect_patience(2, false, &[" 0/2] warn: waiting for 0.3 s in MPI_I", &late]);
}

/// Whether a rank can be given a host name of its own.
fn has_host_names() -> bool {
    let tried = Command::new("unshare").args(["--uts", "true"]).status();
    let has = tried.is_ok_and(|it| it.success());
    if !has {
        eprintln!("host names cannot be changed here: nothing is tested");
    }
    has
}

/// A program that runs another one with a host name for every two ranks.
fn two_hosts(drives: &Drives) -> PathBuf {
    let script = "#!/bin/bash\nexport HOST=node$((OMPI_COMM_WORLD_RANK / 2))\n\
                  exec unshare --uts bash -c 'hostname $HOST; exec \"$@\"' two-hosts \"$@\"\n";
    let script = PathBuf::from(drives.write("two-hosts", script));
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    script
}

#[test]
fn progress_on_another_host_counts_as_well() {
    let _turn = one_at_a_time();
    if has_host_names() {
        expect_patience(4, true, &["[node0 0/4] warn: ", "rank 3 on node1, ", "making progress"]);
    }
}

#[test]
fn ranks_on_other_hosts_are_named_too() {
    let _turn = one_at_a_time();
    for (stopped, words) in [
        (3, ["[node0 0/4] warn: waiting for ", "rank 3 on node1, "]),
        (0, ["[node0 1/4] warn: waiting for ", "rank 0 on node0, "]),
        (0, ["[node1 ", "rank 0 on node0 has not answered, so it may be late; "]),
    ] {
        if !has_host_names() {
            return;
        }
        let drives = Drives::new(1);
        let text = TIMEOUTS.to_owned() + "[swap]\nchunk_elements = 4096\n";
        let config = drives.write("job.toml", &text);
        let mut command = ranks(4, &two_hosts(&drives));
        command.arg(train_lm()).args(["--drives", &drives.list(1), "--config", &config]);
        command.args(["--steps", "100000"]).args(TINY);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        signal(&process_of(&drives, stopped), "-STOP");
        let run = Run::of(&child.wait_with_output().unwrap());
        assert_eq!(run.code, 69, "{}", run.stderr);
        expect_line(&run, &words);
    }
}
