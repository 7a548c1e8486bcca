//! What the environment refuses or limits says nothing about the job or the drive: file systems
//! without locks, filters of system calls, limits of the process, quotas, inodes. strace, prlimit
//! and small file systems make them.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use support::{Drives, Run, alone, optswap};

/// A program started through another one, such as strace or prlimit; killed after a minute.
fn through(wrapper: &[&str], arguments: &[&str]) -> Run {
    let mut command = Command::new("timeout");
    command.args(["-k", "5", "60"]).args(wrapper).arg(optswap()).args(arguments);
    Run::of(&command.output().expect("strace is installed by launch/setup --tests"))
}

/// The program while strace has a system call fail.
fn refusing(call: &str, errno: &str, arguments: &[&str]) -> Run {
    refusing_at(None, call, errno, arguments)
}

/// The same for one path alone: MPI has files too.
fn refusing_at(path: Option<&Path>, call: &str, errno: &str, arguments: &[&str]) -> Run {
    let (trace, inject) = (format!("trace={call}"), format!("inject={call}:error={errno}"));
    let mut strace = vec!["strace", "-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject];
    strace.extend(path.iter().flat_map(|path| ["-P", path.to_str().unwrap()]));
    through(&strace, arguments)
}

/// A small verified benchmark on these drives.
fn bench<'a>(list: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let fixed = ["bench", "--params", "100000", "--steps", "1", "--repetitions", "1", "--verify"];
    [&fixed[..], &["--drives", list], more].concat()
}

#[test]
fn a_file_system_without_locks_is_warned_about_and_used() {
    let drives = Drives::new(1);
    let list = drives.list(1);
    for errno in ["ENOSYS", "ENOLCK", "EOPNOTSUPP", "EIO"] {
        let start = Instant::now();
        let run = refusing("flock", errno, &bench(&list, &[]));
        run.expect(0, &["the file system has no file locks", "-o flock", &list]);
        assert!(!run.stderr.contains("is alive"), "{run:?}");
        // A lock that cannot be had is not waited for.
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
        assert!(drives.are_empty());
    }
    let run = refusing("flock", "ENOSYS", &["doctor", "--drives", &list]);
    let words = format!("warning  file locks on {list}: none");
    assert!(run.stdout.contains(&words) && run.stdout.contains("-o flock"), "{run:?}");
}

/// Without locks, the owner that a directory names tells the living from the dead.
#[test]
fn without_locks_a_dead_job_is_dead_and_a_living_one_alive() {
    let drives = Drives::new(1);
    let list = drives.list(1);
    let config = drives.write("keep.toml", "[drives]\nkeep_files = true\n");
    let kept = bench(&list, &["--config", &config, "--job", "dead"]);
    alone(&optswap(), &kept).expect(0, &[]);
    let tool = |name: &str| refusing("flock", "ENOSYS", &[name, &list]);
    let listed = tool("clean");
    assert!(listed.stdout.contains("1 dead shard directories"), "{listed:?}");

    let mut job = support::long_job(1, &drives, "").spawn().unwrap();
    let pid = support::process_of(&drives, 0);
    let listed = tool("clean");
    let words = format!("alive: process {pid}");
    assert!(listed.stdout.contains(&words), "{listed:?}");
    assert!(listed.stdout.contains("1 dead shard directories"), "{listed:?}");
    let second = refusing("flock", "ENOSYS", &bench(&list, &[]));
    second.expect(69, &["job `default` is alive on this drive", &format!("process {pid}")]);
    support::signal(&pid, "-9");
    job.wait().unwrap();

    // Of another machine's process nothing is known, so it is left alone.
    let owner = drives.shard("dead", 0).join("owner");
    let text = std::fs::read_to_string(&owner).unwrap();
    let lines = text.lines().map(|line| match line.split_once(" = ") {
        Some(("host" | "boot_id", _)) => {
            line.split_once(" = ").unwrap().0.to_owned() + " = \"far\""
        }
        _ => line.to_owned(),
    });
    std::fs::write(&owner, lines.collect::<Vec<_>>().join("\n")).unwrap();
    let removed = refusing("flock", "ENOSYS", &["clean", "--remove", &list]);
    assert!(removed.stdout.contains("on far may be alive"), "{removed:?}");
    assert!(owner.exists());
    assert!(removed.stdout.contains("1 dead shard directories removed"), "{removed:?}");
}

/// Older seccomp profiles answer EPERM to calls that they do not know.
#[test]
fn a_filter_of_system_calls_says_nothing_about_the_drive() {
    let drives = Drives::new(1);
    let list = drives.list(1);
    for call in ["faccessat2", "statx", "flock"] {
        refusing(call, "EPERM", &bench(&list, &[])).expect(0, &[]);
        assert!(drives.are_empty(), "{call}");
    }
    let state = drives.shard("default", 0).join("state");
    refusing_at(Some(&state), "fallocate", "EPERM", &bench(&list, &[])).expect(0, &[]);
}

/// A file system that cannot set space aside gets it by writing.
#[test]
fn without_fallocate_space_is_written() {
    let drives = Drives::new(1);
    let list = drives.list(1);
    let config = drives.write("keep.toml", "[drives]\nkeep_files = true\n");
    let more = ["--config", &config, "--durability", "step"];
    let run = refusing("fallocate", "EOPNOTSUPP", &bench(&list, &more));
    run.expect(0, &["space cannot be set aside", "written with zeros first"]);
    // Headroom, which no step has used, takes space too.
    let state = drives.shard("default", 0).join("state").metadata().unwrap();
    let allocated = std::os::unix::fs::MetadataExt::blocks(&state) * 512;
    assert!(allocated >= state.len(), "{allocated} of {}", state.len());
}

#[test]
fn a_quota_that_is_used_up_is_named_and_nothing_is_left() {
    let drives = Drives::new(1);
    let list = drives.list(1);
    let state = drives.shard("default", 0).join("state");
    let run = refusing_at(Some(&state), "fallocate", "EDQUOT", &bench(&list, &[]));
    run.expect(73, &["the state file cannot be preallocated", "quota", "lfs quota", "needed"]);
    assert!(drives.are_empty());
    let run = refusing_at(Some(&drives.paths()[0]), "mkdirat", "EDQUOT", &bench(&list, &[]));
    run.expect(73, &["no room for a small file", "of bytes or of files (inodes)"]);
    assert!(drives.are_empty());
}

/// MPI itself needs files of some megabytes.
#[test]
fn a_limit_of_file_sizes_is_an_error_before_anything_is_created() {
    let drives = Drives::new(1);
    let list = drives.list(1);
    let limited = ["prlimit", "--fsize=10485760", "--"];
    let run = through(&limited, &["bench", "--params", "1Mi", "--steps", "1", "--drives", &list]);
    let words = ["larger than this process may write", "file size limit 10.00 MiB", "ulimit -f"];
    run.expect(73, &words);
    assert!(drives.are_empty());
    let run = through(&limited, &["doctor", "--drives", &list]);
    assert!(run.stdout.contains("warning  file sizes: limit 10.00 MiB"), "{run:?}");
    // Not even the trial's small file may be written.
    let run = through(&["prlimit", "--fsize=100", "--"], &["doctor", "--drives", &list]);
    let words = ["no room for a small file", "file size limit 100 B", "File too large"];
    assert!(run.code == 69 && words.iter().all(|words| run.stdout.contains(words)), "{run:?}");
    assert!(drives.are_empty());
    // A file system with a largest size of its own.
    let state = drives.shard("default", 0).join("state");
    let run = refusing_at(Some(&state), "fallocate", "EFBIG", &bench(&list, &[]));
    run.expect(73, &["cannot be preallocated", "allows no file of this size", "more drives"]);
    assert!(drives.are_empty());
}

/// What is written later, here a checkpoint, ends in an error too, and not in a signal.
#[test]
fn a_write_beyond_the_limit_of_file_sizes_is_an_error() {
    let drives = Drives::new(2);
    let list = drives.list(2);
    let saved = drives.path().join("saved").display().to_string();
    // Each of two drives has half of the state, the checkpoint has all of it.
    let config = drives.write("small.toml", "[drives]\nstripe_headroom = 0.0\n");
    let mut command = Command::new("timeout");
    command.args(["-k", "5", "60", "prlimit", "--fsize=10485760", "--"]).arg(support::train_lm());
    command.args(["--drives", &list, "--config", &config, "--steps", "1", "--batch", "1"]);
    command.args(["--layers", "5", "--dim", "128", "--heads", "2", "--context", "16"]);
    command.args(["--checkpoint-dir", &saved]);
    let run = Run::of(&command.output().unwrap());
    run.expect(73, &["larger than this process may write", &saved, "file size limit"]);
}

#[test]
fn too_few_open_files_are_an_error_and_nothing_is_left() {
    let drives = Drives::new(30);
    let list = drives.list(30);
    let run = through(&["prlimit", "--nofile=72", "--"], &bench(&list, &[]));
    run.expect(69, &["may open too few files", "needed 84", "limit 72", "ulimit -n"]);
    assert!(drives.are_empty());
    let run = through(&["prlimit", "--nofile=64", "--"], &["doctor", "--drives", &drives.list(1)]);
    assert!(run.stdout.contains("warning  open files: limit 64"), "{run:?}");
}

/// What a model that is far too large would need is said before memory is taken for its tables.
#[test]
fn a_model_far_too_large_is_refused_within_little_memory() {
    let drives = Drives::new(1);
    let list = drives.list(1);
    for (params, words) in
        [("4Ti", "65970697666560 B = 60.00 TiB"), ("40Ti", "659706976665600 B = 600.00 TiB")]
    {
        let limited = ["prlimit", "--data=400000000", "--"];
        let run = through(&limited, &["bench", "--drives", &list, "--params", params]);
        run.expect(73, &["the drive is too small", words, "free"]);
        assert!(drives.are_empty());
    }
}

mod needs_root {
    use super::*;

    use std::path::PathBuf;

    /// A file system of its own on a loop device; unmounted when dropped.
    struct Mounted(PathBuf);

    impl Mounted {
        /// In place of the first drive.
        fn make(drives: &Drives, mkfs: &[&str], bytes: u64) -> Self {
            let (image, path) = (drives.path().join("image"), drives.paths().remove(0));
            std::fs::File::create(&image).unwrap().set_len(bytes).unwrap();
            let made = Command::new(mkfs[0]).args(&mkfs[1..]).arg(&image).status();
            assert!(made.expect("launch/setup --tests installs it").success());
            let mount = Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&path).status();
            assert!(mount.unwrap().success());
            Self(path)
        }
    }

    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        }
    }

    #[test]
    #[ignore = "needs root and loop devices: launch/test"]
    fn a_drive_without_inodes_says_so() {
        let drives = Drives::new(1);
        let mounted = Mounted::make(&drives, &["mkfs.ext4", "-q", "-N", "32"], 64 << 20);
        let drive = mounted.0.join("me");
        std::fs::create_dir(&drive).unwrap();
        let fill = |from: usize, to: usize| {
            let files = (from..to).map(|number| mounted.0.join(format!("small-{number}")));
            files.take_while(|path| std::fs::File::create(path).is_ok()).count()
        };
        let filled = fill(0, 1000);
        let list = drive.display().to_string();
        let run = alone(&optswap(), &bench(&list, &[]));
        run.expect(73, &["no room for a small file", "free inodes 0 of ", "more files"]);
        let doctor = alone(&optswap(), &["doctor", "--drives", &list]);
        assert!(doctor.code == 69 && doctor.stdout.contains("free inodes 0 of "), "{doctor:?}");
        // Enough for the trial, but not for the job.
        for number in 0..4 {
            std::fs::remove_file(mounted.0.join(format!("small-{}", filled - 1 - number))).unwrap();
        }
        let run = alone(&optswap(), &bench(&list, &[]));
        run.expect(73, &["too few free inodes", "free 4"]);
        assert_eq!(std::fs::read_dir(&drive).unwrap().count(), 0);
    }

    /// btrfs writes what is overwritten elsewhere, unless a file is marked while it is empty.
    #[test]
    #[ignore = "needs root and loop devices: launch/test"]
    fn space_holds_on_a_file_system_that_copies_on_write() {
        let drives = Drives::new(1);
        let mounted = Mounted::make(&drives, &["mkfs.btrfs", "-q"], 256 << 20);
        let list = mounted.0.display().to_string();
        let doctor = alone(&optswap(), &["doctor", "--drives", &list]);
        let words = format!("ok       overwriting on {list}: in place");
        assert!(doctor.stdout.contains(&words), "{doctor:?}");

        let durable = "[durability]\nmode = \"step\"\n";
        let mut job = support::long_job(1, &drives, durable).spawn().unwrap();
        let pid = support::process_of(&drives, 0);
        // Others fill the drive. The job goes on to overwrite its state in every step.
        let filler = format!("of={}", mounted.0.join("filler").display());
        let filled = Command::new("dd").args(["if=/dev/zero", "bs=1M", &filler]).output();
        assert!(!filled.unwrap().status.success(), "the drive is full");
        let committed = || {
            let listed = alone(&optswap(), &["clean", &list]);
            let (_, step) = listed.stdout.split_once("step ").unwrap();
            step.split_whitespace().next().unwrap().parse::<u64>().unwrap()
        };
        let (full_at, deadline) = (committed(), Instant::now() + Duration::from_secs(40));
        while committed() < full_at + 20 {
            assert!(job.try_wait().unwrap().is_none(), "{:?}", job.wait_with_output());
            assert!(Instant::now() < deadline, "no more steps");
        }
        support::signal(&pid, "-TERM");
        let run = Run::of(&job.wait_with_output().unwrap());
        run.expect(75, &["stopped by SIGTERM", "is committed"]);
    }
}
