//! Wrong drives, configurations and sizes: a clear error and a documented exit code, before
//! anything is touched.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use support::{Drives, Run, alone, optswap};

fn bench(arguments: &[&str]) -> Run {
    let mut all = vec!["bench", "--steps", "1", "--warmup", "0"];
    all.extend(arguments);
    alone(&optswap(), &all)
}

const SMALL: [&str; 2] = ["--params", "64Ki"];

#[test]
fn drives_that_cannot_be_used() {
    let drives = Drives::new(2);
    let list = drives.list(1);
    let missing = format!("{list},{}/missing", drives.path().display());
    bench(&["--drives", &missing]).expect(69, &["cannot be found", "/missing", "--drives DIR,DIR"]);
    let file = drives.write("file", "");
    bench(&["--drives", &file]).expect(69, &["is no directory"]);
    bench(&["--drives", &format!("{list},{list}")]).expect(64, &["named twice"]);
    assert!(drives.are_empty());
}

#[test]
fn a_drive_that_is_not_writable() {
    let drives = Drives::new(1);
    let drive = &drives.paths()[0];
    std::fs::set_permissions(drive, std::fs::Permissions::from_mode(0o555)).unwrap();
    // Root may write everywhere, so the program runs as somebody else, from where they can read.
    let copy = tempfile::tempdir().unwrap();
    std::fs::set_permissions(copy.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = copy.path().join("optswap");
    std::fs::copy(optswap(), &program).unwrap();
    let readonly = copy.path().join("drive");
    std::fs::create_dir(&readonly).unwrap();
    std::fs::set_permissions(&readonly, std::fs::Permissions::from_mode(0o555)).unwrap();
    let mut command = Command::new(&program);
    command.args(["bench", "--drives"]).arg(&readonly).env("HOME", "/tmp").current_dir("/");
    if rustix::process::geteuid().is_root() {
        command.uid(65534).gid(65534);
    }
    let run = Run::of(&command.output().unwrap());
    run.expect(69, &["the drive is not writable", readonly.to_str().unwrap()]);
}

#[test]
fn a_drive_that_is_too_small() {
    let drives = Drives::new(1);
    let run = bench(&["--drives", &drives.list(1), "--params", "256Gi"]);
    run.expect(73, &["too small", "needed", "4123168604160 B = 3.75 TiB", "free"]);
    assert!(drives.are_empty());
}

#[test]
fn a_memory_file_system_is_refused_unless_forced_by_name() {
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let drive = memory.path().to_str().unwrap();
    let run = bench(&["--drives", drive, SMALL[0], SMALL[1]]);
    run.expect(69, &["memory file system", "tmpfs", "--allow-fs tmpfs"]);
    let run = bench(&["--drives", drive, SMALL[0], SMALL[1], "--allow-fs", "tmpfs", "--verify"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
}

#[test]
fn the_same_device_twice_is_warned_about() {
    let drives = Drives::new(2);
    let run = bench(&["--drives", &drives.list(2), SMALL[0], SMALL[1]]);
    run.expect(0, &["lie on the same device", " 0/1] warn: "]);
}

#[test]
fn configurations_that_are_wrong() {
    let drives = Drives::new(1);
    for (text, words) in [
        ("[swap]\nmemory_bugdet = 1", ["memory_bugdet", "did you mean `swap.memory_budget`?"]),
        ("[io]\ndepth = 0", ["io.depth = 0", "1 to 4096"]),
        ("job = \"a/b\"", ["job = `a/b`", "letters"]),
        ("[drives]\npaths = [\"/a\"]\nweights = [1.0, 2.0]", ["drives.weights", "as long as"]),
        ("[io]\nengine = \"warp\"", ["unknown variant `warp`", "line 2"]),
    ] {
        let config = drives.write("config.toml", text);
        let run = bench(&["--config", &config, "--drives", &drives.list(1)]);
        run.expect(64, &words);
        run.expect(64, &["config.toml"]);
    }
    bench(&["--config", "/no/such.toml"]).expect(64, &["/no/such.toml", "cannot be read"]);
    assert!(drives.are_empty());
}

#[test]
fn sizes_that_are_wrong() {
    let drives = Drives::new(1);
    let list = drives.list(1);
    bench(&["--drives", &list, "--params", "0"]).expect(64, &["zero parameters"]);
    bench(&["--drives", &list, "--params", "lots"]).expect(64, &["`lots` is no size"]);
    let run = bench(&["--drives", &list, "--memory-budget", "8MiB"]);
    run.expect(64, &["below the minimum", "minimum 24MiB", "--memory-budget"]);
    bench(&["--drives", &list, "--wrong"]).expect(64, &["--wrong"]);
    assert!(drives.are_empty());
}
