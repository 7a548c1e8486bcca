//! The training example on one rank: what it prints, that it learns, that it notices.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use support::{Drives, Run, TINY, alone, train_lm};

#[test]
fn it_learns_and_reports_what_moved() {
    let drives = Drives::new(2);
    let list = drives.list(2);
    // Every step has bytes of its own.
    let config = drives.write("plain.toml", "[swap]\nprefetch = false\nwrite_behind = false\n");
    let mut arguments = vec!["--config", &config, "--drives", &list, "--verify", "--lr", "0.01"];
    arguments.extend(["--steps", "120"]);
    arguments.extend(&TINY);
    let run = alone(&train_lm(), &arguments);
    let json = run.json();
    let number = |key: &str| json[key].as_f64().unwrap_or_else(|| panic!("no {key} in {json}"));
    assert_eq!(json["verified"], true);
    assert_eq!((number("ranks"), number("drives"), number("steps")), (1.0, 2.0, 120.0));
    assert!(number("loss_first") > 5.0, "{json}");
    assert!(number("loss_last") < number("byte_entropy"), "{json}");
    for direction in ["read", "written"] {
        let counted = number(&format!("bytes_{direction}_per_param"));
        let by_kernel = number(&format!("kernel_bytes_{direction}_per_param"));
        assert!((counted / by_kernel - 1.0).abs() < 0.01, "{counted} {by_kernel}");
        // Small shards are padded to 4,096 elements.
        let params = number("params");
        let padded = (params / 4096.0).ceil() * 4096.0;
        assert!((counted - 12.0 * padded / params).abs() < 1e-9, "{counted}");
    }
    assert_eq!(json["state_digest"].as_str().map(str::len), Some(32));
    for timer in ["swap_in_state", "swap_out_state", "async_swap_in_state", "optimizer_step"] {
        assert!(run.stdout.contains(timer), "{timer} is not in\n{}", run.stdout);
    }
    assert!(run.stderr.contains("step 120/120: validation loss"), "{}", run.stderr);
    assert!(drives.are_empty(), "nothing is left behind");
}

#[test]
fn the_same_seed_gives_the_same_digest_for_any_engine_drives_and_budget() {
    let drives = Drives::new(3);
    let digest = |count: usize, more: &[&str]| {
        let list = drives.list(count);
        let mut arguments = vec!["--drives", &list];
        arguments.extend(&TINY);
        arguments.extend(["--steps", "3"]);
        arguments.extend(more);
        alone(&train_lm(), &arguments).json()["state_digest"].clone()
    };
    let small = drives.write("small.toml", "[swap]\nchunk_elements = 4096\n");
    let first = digest(1, &["--engine", "uring"]);
    assert_eq!(digest(3, &["--engine", "threads"]), first);
    assert_eq!(digest(2, &["--config", &small, "--memory-budget", "96KiB"]), first);
    assert_ne!(digest(1, &["--seed", "1"]), first);
}

/// Starts training that lasts, in chunks of one block; gives the child.
fn start_long(drives: &Drives, config: &str, more: &[&str]) -> std::process::Child {
    let small = format!("{config}[swap]\nchunk_elements = 4096\n");
    let small = drives.write("small.toml", &small);
    let mut command = Command::new("timeout");
    command.args(["-k", "5", "60"]).arg(train_lm()).args(["--drives", &drives.list(1)]);
    command.args(["--config", &small, "--steps", "100000"]).args(TINY).args(more);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn a_byte_flipped_between_two_steps_is_found_by_its_checksum() {
    let run = run_with_flips("");
    run.expect(
        74,
        &["a chunk on the drives is corrupt", "state tensor master", "shard-00000/state"],
    );
}

#[test]
fn without_checksums_a_verified_run_finds_it_with_70() {
    let run = run_with_flips("[durability]\nverify = \"off\"\n");
    run.expect(70, &["differs from the reference (parameter tokens.weight, element "]);
    run.expect(70, &["on the drives ", "reference "]);
}

/// Flips bytes of the first master under a verified run until it ends.
fn run_with_flips(config: &str) -> Run {
    let drives = Drives::new(1);
    let mut child = start_long(&drives, config, &["--verify"]);
    let state = drives.shard("default", 0).join("state");
    let deadline = Instant::now() + Duration::from_secs(50);
    let mut offset = 0u64;
    // A flip in the middle of a step may be overwritten by that step, so it is repeated.
    while child.try_wait().unwrap().is_none() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(30));
        let Ok(file) = OpenOptions::new().read(true).write(true).open(&state) else { continue };
        let mut byte = [0];
        if file.read_exact_at(&mut byte, offset).is_ok() {
            let _ = file.write_all_at(&[!byte[0]], offset).and_then(|()| file.sync_data());
            offset += 4 * 97;
        }
        offset %= 4096;
    }
    Run::of(&child.wait_with_output().unwrap())
}

#[test]
fn bad_input_is_refused_before_anything_is_touched() {
    let drives = Drives::new(1);
    let list = drives.list(1);
    let empty = drives.write("empty.txt", "");
    let refuse = |more: &[&str], code: i32, words: &[&str]| {
        let mut arguments = vec!["--drives", &list];
        arguments.extend(more);
        alone(&train_lm(), &arguments).expect(code, words);
    };
    refuse(&["--text", &empty], 64, &["0 bytes", "--text FILE"]);
    refuse(&["--text", "/no/such/text"], 64, &["/no/such/text"]);
    refuse(&["--heads", "3"], 64, &["dim (256) must be a multiple of heads (3)"]);
    refuse(&["--batch", "0"], 64, &["at least 1"]);
    refuse(&["--lr", "-1"], 64, &["-1"]);
    refuse(&["--steps", "many"], 64, &["--steps"]);
    refuse(&["--memory-budget", "1MiB"], 64, &["minimum 24MiB"]);
    assert!(drives.are_empty());
}

#[test]
fn the_files_on_the_drives_hold_the_whole_state() {
    let drives = Drives::new(2);
    let list = drives.list(2);
    let mut arguments = vec!["--drives", &list, "--steps", "1", "--keep-files"];
    arguments.extend(TINY);
    let params = alone(&train_lm(), &arguments).json()["params"].as_u64().unwrap();
    let files = drives.paths().into_iter();
    let files = files.map(|drive| drive.join("optswap/default/shard-00000/state"));
    let allocated: u64 = files.map(|file| file.metadata().unwrap().blocks() * 512).sum();
    assert!(allocated > 12 * params, "{allocated} bytes for {params} parameters");
}

#[cfg(not(feature = "mpi"))]
#[test]
fn a_build_without_mpi_refuses_to_be_one_of_several() {
    let mut command = Command::new(train_lm());
    command.env("OMPI_COMM_WORLD_SIZE", "2").env("OMPI_COMM_WORLD_RANK", "0");
    let run = Run::of(&command.output().unwrap());
    run.expect(64, &["2 processes were started", "built without MPI", "--features mpi"]);
}
