//! Faults by real means, each a row of docs/faults.md: what the rank survives, what ends the job,
//! with which exit code and message. (Faults by injection: `tests/every_fault.rs`.)

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::{Drives, Run, TINY, alone, train_lm};

/// Training on one rank that lasts, in chunks of one block.
struct Long {
    drive: PathBuf,
    child: Child,
}

impl Long {
    fn start(drives: &Drives, drive: &Path, more: &[&str]) -> Self {
        let mut command = Command::new("timeout");
        command.args(["-k", "5", "60"]).arg(train_lm()).args(Self::arguments(drives, drive));
        command.args(["--steps", "100000"]).args(more);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Self { drive: drive.to_owned(), child }
    }

    fn arguments(drives: &Drives, drive: &Path) -> Vec<String> {
        // Small chunks, each read from the drive in every step, and fewer buffers than chunks: at
        // any moment something is on the drive alone.
        let text = "[swap]\nmemory_budget = \"192KiB\"\nchunk_elements = 4096\nprefetch = false\n\
                    write_behind = false\n";
        let small = drives.write("small.toml", text);
        let drive = drive.display().to_string();
        let own = ["--drives", &drive, "--config", &small].map(str::to_owned);
        own.into_iter().chain(TINY.map(str::to_owned)).collect()
    }

    fn state(&self) -> PathBuf {
        self.drive.join("optswap/default/shard-00000/state")
    }

    /// Waits until it steps.
    fn wait_for_steps(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !self.state().with_file_name("owner").exists() {
            assert!(Instant::now() < deadline, "it does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_millis(500));
    }

    fn kill(mut self) {
        support::rank_pids(&self.drive.display().to_string()).iter().for_each(|pid| {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
        });
        self.child.wait().unwrap();
    }

    /// Waits for its end, which must come within ten seconds.
    fn end(self) -> Run {
        let start = Instant::now();
        let run = Run::of(&self.child.wait_with_output().unwrap());
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}\n{run:?}", start.elapsed());
        run
    }
}

fn again(drives: &Drives, drive: &Path, more: &[&str]) -> Run {
    let arguments = Long::arguments(drives, drive);
    let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    arguments.extend(more);
    alone(&train_lm(), &arguments)
}

#[test]
fn a_file_cut_under_a_running_job_ends_it() {
    let drives = Drives::new(1);
    let job = Long::start(&drives, &drives.paths()[0], &[]);
    job.wait_for_steps();
    OpenOptions::new().write(true).open(job.state()).unwrap().set_len(8192).unwrap();
    let run = job.end();
    // Writes beyond the cut lengthen the file again, with zeros before them.
    let by_length = run.stderr.contains("the file ends before the data does");
    let by_checksum = run.stderr.contains("a chunk on the drives is corrupt");
    assert!(run.code == 74 && (by_length || by_checksum), "{run:?}");
    run.expect(74, &["shard-00000/state", "holding chunk "]);
}

#[test]
fn a_file_removed_under_a_running_job_is_missed_at_the_next_start() {
    let drives = Drives::new(1);
    let drive = drives.paths()[0].clone();
    let job = Long::start(&drives, &drive, &["--durability", "step"]);
    job.wait_for_steps();
    std::fs::remove_file(job.state()).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    // The open file is still there for it.
    let mut job = job;
    assert!(job.child.try_wait().unwrap().is_none(), "it goes on");
    job.kill();
    let run = again(&drives, &drive, &["--durability", "step", "--steps", "1"]);
    run.expect(74, &["a state file cannot be opened", "shard-00000/state", "from a checkpoint"]);
    // The records are still there, so nothing is taken for a new job.
    let run = again(&drives, &drive, &["--steps", "1"]);
    run.expect(64, &["would overwrite committed steps", "optswap clean --remove"]);
}

#[test]
fn refused_memory_is_an_error_before_anything_is_created() {
    let drives = Drives::new(1);
    let mut command = Command::new("prlimit");
    command.args(["--as=3000000000", "--"]).arg(train_lm());
    command.args(["--drives", &drives.list(1), "--memory-budget", "4GiB", "--steps", "1"]);
    // Enough chunks to want the whole budget.
    command.args(["--layers", "12", "--dim", "1536", "--heads", "8", "--context", "16"]);
    let run = Run::of(&command.output().unwrap());
    run.expect(69, &["the system refuses memory for I/O buffers", "lower memory_budget"]);
    assert!(drives.are_empty());
}

mod needs_root {
    use super::*;

    #[test]
    #[ignore = "needs root and loop devices: launch/test"]
    fn a_full_checkpoint_directory_does_not_stop_training() {
        let drives = Drives::new(1);
        let full = drives.path().join("full");
        std::fs::create_dir(&full).unwrap();
        let mount = ["-t", "tmpfs", "-o", "size=64k", "tmpfs"];
        let mounted = Command::new("mount").args(mount).arg(&full).status();
        assert!(mounted.unwrap().success());
        let full_path = full.display().to_string();
        let more = ["--checkpoint-dir", &full_path, "--checkpoint-every", "2", "--steps", "5"];
        let run = again(&drives, &drives.paths()[0], &more);
        let _ = Command::new("umount").arg(&full).status();
        // All steps are taken; that the last state is not saved is the end's error.
        assert!(run.result().is_some_and(|result| result["steps"] == 5), "{run:?}");
        run.expect(73, &["no checkpoint", "no room", "checkpoint.keep_last"]);
    }

    #[test]
    #[ignore = "needs root and loop devices: launch/test"]
    fn a_drive_that_becomes_read_only_ends_the_job_and_what_was_committed_stays() {
        let drives = Drives::new(1);
        let drive = LoopDrive::mount(&drives);
        let job = Long::start(&drives, &drive.0, &["--durability", "step"]);
        job.wait_for_steps();
        // What ext4 does by itself when the device fails (errors=remount-ro).
        let status = Command::new("mount").args(["-o", "remount,abort"]).arg(&drive.0).status();
        assert!(status.unwrap().success());
        let run = job.end();
        run.expect(74, &["shard-00000/"]);
        assert!(
            ["Read-only file system", "Input/output error"]
                .iter()
                .any(|why| run.stderr.contains(why)),
            "{run:?}"
        );
        // While it is read-only, a start says so.
        let run = again(&drives, &drive.0, &["--durability", "step", "--steps", "1"]);
        assert!([69, 73, 74].contains(&run.code), "{run:?}");
        assert!(run.stderr.contains("loop"), "{run:?}");
    }

    #[test]
    #[ignore = "needs root and loop devices: launch/test"]
    fn a_drive_too_small_is_refused_before_anything_is_created() {
        let drives = Drives::new(1);
        let drive = LoopDrive::mount(&drives);
        let more = ["--dim", "512", "--layers", "6", "--heads", "8", "--steps", "1"];
        let arguments = Long::arguments(&drives, &drive.0);
        let own: Vec<&str> = arguments.iter().take(4).map(String::as_str).collect();
        let run = alone(&train_lm(), &[own.as_slice(), &more].concat());
        run.expect(73, &["the drive is too small", "needed by this node's ranks", "free"]);
        assert!(!drive.0.join("optswap").exists());
    }
}

/// A file system of its own on a loop device; unmounted when dropped.
struct LoopDrive(PathBuf);

impl LoopDrive {
    fn mount(drives: &Drives) -> Self {
        let (image, path) = (drives.path().join("image"), drives.path().join("loop"));
        std::fs::create_dir(&path).unwrap();
        std::fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        let made = Command::new("mkfs.ext4").arg("-q").arg(&image).status();
        assert!(made.unwrap().success());
        let mounted = Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&path).status();
        assert!(mounted.unwrap().success());
        Self(path)
    }
}

impl Drop for LoopDrive {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l"]).arg(&self.0).status();
    }
}

#[test]
fn tools_tell_the_living_from_the_dead() {
    let drives = Drives::new(1);
    let drive = drives.paths()[0].clone();
    let (optswap, path) = (support::optswap(), drive.display().to_string());
    let tool = |arguments: &[&str]| alone(&optswap, &[arguments, &[&path]].concat());
    assert!(tool(&["clean"]).stdout.contains("no job lies on these drives"));
    tool(&["verify"]).expect(69, &["no durable job"]);
    let job = Long::start(&drives, &drive, &["--durability", "step", "--job", "alive"]);
    let dead = Long::start(&drives, &drive, &["--durability", "step", "--job", "dead"]);
    let owner = |name: &str| drive.join(format!("optswap/{name}/shard-00000/record-1"));
    while !(owner("alive").exists() && owner("dead").exists()) {
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(500));
    for pid in support::rank_pids("--job\0dead") {
        Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
    }
    let mut dead = dead;
    dead.child.wait().unwrap();
    let listed = tool(&["clean"]);
    assert!(listed.stdout.contains("alive: process"), "{listed:?}");
    assert!(listed.stdout.contains("1 dead shard directories"), "{listed:?}");
    let verified = tool(&["verify", "--job", "dead"]);
    assert!(verified.code == 0 && verified.stdout.contains("all is as it was"), "{verified:?}");
    tool(&["verify", "--job", "alive"]).expect(69, &["not everything could be looked at"]);
    let removed = tool(&["clean", "--remove"]);
    assert!(removed.stdout.contains("1 dead shard directories removed"), "{removed:?}");
    assert!(!drive.join("optswap/dead").exists() && drive.join("optswap/alive").exists());
    job.kill();
}
