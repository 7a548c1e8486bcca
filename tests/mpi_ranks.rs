//! Real ranks under mpirun: the same results for any number of them, and no rank left behind when
//! one fails.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]
#![cfg(feature = "mpi")]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use support::{
    Drives, Run, TINY, long_job, one_at_a_time, optswap, process_of, ranks, signal, train_lm,
};

#[test]
fn training_is_bit_exact_for_any_ranks_drives_and_engine() {
    let _turn = one_at_a_time();
    let drives = Drives::new(3);
    let small = drives.write("small.toml", "[swap]\nchunk_elements = 4096\n");
    let mut of_ranks = Vec::new();
    for count in 1..=4 {
        let mut digests = Vec::new();
        for drive_count in 1..=3 {
            for engine in ["uring", "threads"] {
                let mut command = ranks(count, &train_lm());
                command.args(["--drives", &drives.list(drive_count), "--engine", engine]);
                command.args(["--config", &small, "--steps", "3", "--verify"]).args(TINY);
                let json = Run::of(&command.output().unwrap()).json();
                assert_eq!(json["verified"], true);
                assert_eq!(json["ranks"], count);
                assert_eq!(json["drives"], drive_count);
                digests.push(json["state_digest"].to_string());
            }
        }
        digests.dedup();
        assert_eq!(digests.len(), 1, "{count} ranks: {digests:?}");
        of_ranks.extend(digests);
    }
    assert!(drives.are_empty());
}

/// The digest of a verified benchmark, from its JSON.
fn bench_digest(count: usize, program: &Path, mpirun: &str, more: &[&str]) -> String {
    let drives = Drives::new(2);
    let json = drives.path().join("result.json");
    let mut command = ranks(count, program);
    command.env("MPIRUN", mpirun);
    command.args(["bench", "--drives", &drives.list(2), "--params", "300001", "--steps", "2"]);
    command.args(["--repetitions", "2", "--verify", "--json"]).arg(&json).args(more);
    let run = Run::of(&command.output().unwrap());
    assert_eq!(run.code, 0, "{}\n{}", run.stdout, run.stderr);
    let result: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap();
    assert_eq!(result["ranks"], count);
    assert_eq!(result["verified"], true);
    assert_eq!(result["step_seconds"].as_array().map(Vec::len), Some(2));
    assert_eq!(result["rank_records"].as_array().map(Vec::len), Some(count));
    assert_eq!(result["params"], 300_001);
    for key in ["config", "nodes", "bytes_read_per_param", "bytes_written_per_param"] {
        assert!(!result[key].is_null(), "{key}");
    }
    result["state_digest"].as_str().unwrap().to_owned()
}

#[test]
fn synthetic_gradients_give_one_digest_for_every_number_of_ranks() {
    let _turn = one_at_a_time();
    let first = bench_digest(1, &optswap(), "mpirun.openmpi", &[]);
    for count in 2..=4 {
        assert_eq!(bench_digest(count, &optswap(), "mpirun.openmpi", &[]), first);
    }
}

#[test]
fn a_step_of_slurm_that_offers_no_pmix_is_refused_with_the_line_that_fixes_it() {
    let mut srun = Command::new(optswap());
    srun.arg("bench").env("SLURM_STEP_NUM_TASKS", "2").env("SLURM_PROCID", "0");
    Run::of(&srun.output().unwrap()).expect(64, &["srun --mpi=pmix"]);
}

mod needs_mpich {
    use super::*;

    /// The same program, built with MPICH.
    fn program() -> PathBuf {
        std::env::var_os("OPTSWAP_MPICH").expect("launch/test builds it").into()
    }

    #[test]
    #[ignore = "needs a build with MPICH: launch/test"]
    fn both_mpis_give_one_digest() {
        let _turn = one_at_a_time();
        let first = bench_digest(1, &optswap(), "mpirun.openmpi", &[]);
        for count in 1..=2 {
            assert_eq!(bench_digest(count, &program(), "mpirun.mpich", &[]), first);
        }
    }

    #[test]
    #[ignore = "needs a build with MPICH: launch/test"]
    fn the_other_mpis_launcher_is_refused_with_the_line_that_fixes_it() {
        let _turn = one_at_a_time();
        let refuse = |program: &Path, mpirun: &str, words: &[&str]| {
            let drives = Drives::new(1);
            let mut command = ranks(2, program);
            command.env("MPIRUN", mpirun).args(["bench", "--drives", &drives.list(1)]);
            Run::of(&command.output().unwrap()).expect(64, words);
        };
        refuse(&optswap(), "mpirun.mpich", &["mpirun.openmpi", "2 processes were started"]);
        refuse(&program(), "mpirun.openmpi", &["mpirun.mpich", "2 processes were started"]);
    }
}

fn timed(mut command: Command) -> (Run, Duration) {
    let start = Instant::now();
    let run = Run::of(&command.output().unwrap());
    (run, start.elapsed())
}

#[test]
fn an_error_of_one_rank_ends_all_with_its_message_and_code() {
    let _turn = one_at_a_time();
    let drives = Drives::new(1);
    let fault = "[[faults]]\nrank = 2\nop = 40\nkind = \"eio\"";
    let (run, took) = timed(long_job(3, &drives, fault));
    run.expect(
        74,
        &["error: rank 2 of 3 on ", "Input/output error", "shard-00002/state", "offset"],
    );
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert!(drives.are_empty(), "the files of a failed scratch job are gone");
}

#[test]
fn a_rank_that_panics_ends_all_with_its_message_first() {
    let _turn = one_at_a_time();
    let drives = Drives::new(1);
    let fault = "[[faults]]\nrank = 1\nop = 40\nkind = \"panic\"";
    let (run, took) = timed(long_job(3, &drives, fault));
    run.expect(70, &[" 1/3] error: panicked", "injected at operation 40"]);
    assert!(took < Duration::from_secs(20), "{took:?}");
}

#[test]
fn a_killed_rank_takes_the_job_down_and_its_files_do_not_block_the_next() {
    let _turn = one_at_a_time();
    let drives = Drives::new(1);
    let child = long_job(2, &drives, "").spawn().unwrap();
    let pid = process_of(&drives, 1);
    let start = Instant::now();
    signal(&pid, "-KILL");
    let run = Run::of(&child.wait_with_output().unwrap());
    assert!(run.code != 0 && start.elapsed() < Duration::from_secs(10), "{:?}", run);
    assert!(!drives.are_empty(), "a killed job leaves its files");
    let mut next = ranks(2, &train_lm());
    next.args(["--drives", &drives.list(1), "--steps", "1"]).args(TINY);
    assert_eq!(Run::of(&next.output().unwrap()).code, 0);
    assert!(drives.are_empty(), "the next job of the name takes them over");
}

#[test]
fn a_living_job_of_the_name_is_left_alone() {
    let _turn = one_at_a_time();
    let drives = Drives::new(1);
    let child = long_job(1, &drives, "").spawn().unwrap();
    let pid = process_of(&drives, 0);
    let (second, _) = timed(long_job(2, &drives, ""));
    second.expect(69, &["job `default` is alive", &format!("process {pid}"), "--job"]);
    signal(&pid, "-KILL");
    child.wait_with_output().unwrap();
}

#[test]
fn a_rank_that_stops_is_given_up_after_peer_timeout() {
    let _turn = one_at_a_time();
    let drives = Drives::new(1);
    let child = long_job(2, &drives, "[timeouts]\npeer_timeout = 2.0").spawn().unwrap();
    let pid = process_of(&drives, 1);
    let start = Instant::now();
    signal(&pid, "-STOP");
    let run = Run::of(&child.wait_with_output().unwrap());
    run.expect(69, &["0/2] error: waited 2 s in MPI_", "peer_timeout"]);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

#[test]
fn what_all_ranks_lack_is_said_once() {
    let _turn = one_at_a_time();
    let drives = Drives::new(1);
    let mut command = ranks(3, &optswap());
    command.args(["bench", "--drives", "/no/such/drive", "--log-ranks", "all"]);
    let run = Run::of(&command.output().unwrap());
    run.expect(69, &["cannot be found (drive /no/such/drive)", "2 other ranks failed as well"]);
    assert_eq!(run.stderr.matches("error: rank").count(), 1, "said once: {}", run.stderr);
    assert!(drives.are_empty());
}
