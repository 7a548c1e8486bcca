//! `optswap doctor`: what it finds on this machine, with good and bad drives, and with io_uring
//! refused. strace makes the system refuse.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use std::process::Command;

use serde_json::Value;
use support::{Drives, Run, optswap};

/// A tampered run; gives its checks too.
fn doctor(tamper: &[&str], arguments: &[&str]) -> (Run, Value) {
    let mut command = Command::new("timeout");
    command.args(["-k", "5", "60"]);
    if !tamper.is_empty() {
        command.args(["strace", "-f", "-qq", "-o", "/dev/null"]).args(tamper);
    }
    command.arg(optswap()).args(["doctor", "--json"]).args(arguments);
    for name in ["OPTSWAP_DRIVES", "SLURM_TMPDIR", "TMPDIR", "LOCAL_SCRATCH", "PBS_JOBFS"] {
        command.env_remove(name);
    }
    let run = Run::of(&command.output().expect("strace is installed by launch/setup --tests"));
    let value = run.result().unwrap_or_else(|| panic!("{}\n{}", run.stdout, run.stderr));
    (run, value)
}

/// State, finding and fix of the check of this name.
#[track_caller]
fn check(value: &Value, name: &str) -> [String; 3] {
    let checks = value["checks"].as_array().unwrap();
    let found = checks.iter().find(|check| check["name"] == name);
    let found = found.unwrap_or_else(|| panic!("no `{name}` in {value:#}"));
    ["state", "found", "fix"].map(|key| found[key].as_str().unwrap_or_default().to_owned())
}

/// Whatever is not in order says what to do.
#[track_caller]
fn all_have_fixes(value: &Value) {
    let is_told = |check: &Value| (check["state"] == "ok") == check["fix"].is_null();
    assert!(value["checks"].as_array().unwrap().iter().all(is_told), "{value:#}");
}

#[test]
fn a_usable_drive() {
    let drives = Drives::new(1);
    let list = drives.list(1);
    let (run, value) = doctor(&[], &["--drives", &list]);
    run.expect(0, &[]);
    assert_eq!(value["problems"], 0);
    for name in ["kernel", "io_uring", "locked memory", "memory", "huge pages", "NUMA", "threads"] {
        assert_ne!(check(&value, name)[0], "problem");
    }
    for name in ["direct I/O", "alignment", "preallocation"] {
        assert_eq!(check(&value, &format!("{name} on {list}"))[0], "ok");
    }
    assert!(check(&value, &format!("drive {list}"))[1].contains("free"));
    all_have_fixes(&value);
    assert!(drives.are_empty());
}

#[test]
fn for_people() {
    let drives = Drives::new(2);
    let mut command = Command::new(optswap());
    let run = Run::of(&command.args(["doctor", "--drives", &drives.list(2)]).output().unwrap());
    run.expect(0, &[]);
    for words in ["ok       kernel: Linux", "striping over both gains nothing", ": 0 problems, "] {
        assert!(run.stdout.contains(words), "{}", run.stdout);
    }
    assert!(run.stdout.contains("\n         fix: name one directory on each drive\n"));
}

#[test]
fn drives_that_cannot_be_used() {
    let drives = Drives::new(1);
    let (list, memory) = (drives.list(1), tempfile::tempdir_in("/dev/shm").unwrap());
    let memory = memory.path().to_str().unwrap();
    let missing = format!("{list}/missing");
    let file = drives.write("file", "no directory");
    let all = format!("{list},{missing},{memory},{list},{file}");
    let (run, value) = doctor(&[], &["--drives", &all]);
    run.expect(69, &["optswap cannot work here: 4 problems"]);
    all_have_fixes(&value);
    let [state, found, fix] = check(&value, &format!("drive {missing}"));
    assert_eq!(state, "problem");
    assert!(found.contains("cannot be found") && fix.contains("--drives DIR,DIR"), "{found} {fix}");
    let [state, found, fix] = check(&value, &format!("drive {memory}"));
    assert_eq!(state, "problem");
    assert!(found.contains("memory file system") && fix.contains("--allow-fs tmpfs"));
    assert_eq!(check(&value, &format!("{list} and {list}"))[0], "problem");

    let (run, _) = doctor(&[], &["--drives", memory, "--allow-fs", "tmpfs"]);
    run.expect(0, &[]);
}

#[test]
fn no_drive_is_no_problem_of_the_machine() {
    let (run, value) = doctor(&[], &[]);
    run.expect(0, &[]);
    let [state, found, fix] = check(&value, "drives");
    assert_eq!(state, "warning");
    assert!(found.contains("no drive is named") && fix.contains("$OPTSWAP_DRIVES"));
}

#[test]
fn io_uring_refused() {
    let drives = Drives::new(1);
    let refuse = ["-e", "trace=io_uring_setup", "-e", "inject=io_uring_setup:error=EPERM"];
    let (run, value) = doctor(&refuse, &["--drives", &drives.list(1)]);
    run.expect(0, &[]);
    let [state, found, fix] = check(&value, "io_uring");
    assert_eq!(state, "warning");
    assert!(found.contains("refused: Operation not permitted") && !fix.is_empty(), "{found}");
    // Asked for by name, it is a problem.
    let config = drives.write("config.toml", "[io]\nengine = \"uring\"\n");
    let (run, value) = doctor(&refuse, &["--drives", &drives.list(1), "--config", &config]);
    run.expect(69, &["1 problem, see"]);
    assert_eq!(check(&value, "io_uring")[0], "problem");
}

/// `srun optswap doctor`, without `--mpi`: this command needs no ranks.
#[test]
fn a_launcher_that_would_not_do_for_ranks_is_a_warning() {
    let mut command = Command::new(optswap());
    command.args(["doctor", "--json"]).env("SLURM_STEP_NUM_TASKS", "2").env("SLURM_PROCID", "0");
    let run = Run::of(&command.output().unwrap());
    run.expect(0, &[]);
    let [state, found, fix] = check(&run.result().unwrap(), "launcher for ranks");
    assert_eq!(state, "warning");
    assert!(found.contains("srun offers") && fix.contains("srun --mpi="), "{found} {fix}");
}

#[test]
fn registered_buffers_refused() {
    let inject = "inject=io_uring_register:error=ENOMEM";
    let (run, value) = doctor(&["-e", "trace=io_uring_register", "-e", inject], &[]);
    run.expect(0, &[]);
    let [state, found, fix] = check(&value, "io_uring");
    assert_eq!(state, "warning");
    assert!(found.contains("registering 4MiB is refused") && fix.contains("ulimit -l"), "{found}");
}

/// Ranks of a batch job often have 64 KiB of locked memory. Root has none of that limit unless it
/// gives up the capability.
#[test]
fn locked_memory_is_short() {
    let drives = Drives::new(1);
    let run_as = |arguments: &[&str]| {
        let mut command = Command::new("timeout");
        command.args(["-k", "5", "60", "prlimit", "--memlock=65536:65536"]);
        if rustix::process::geteuid().is_root() {
            command.args(["setpriv", "--bounding-set", "-ipc_lock", "--inh-caps", "-ipc_lock"]);
        }
        Run::of(&command.arg(optswap()).args(arguments).output().unwrap())
    };
    let list = drives.list(1);
    let run = run_as(&["doctor", "--json", "--drives", &list]);
    run.expect(0, &[]);
    let value = run.result().unwrap();
    let [state, found, fix] = check(&value, "locked memory");
    assert_eq!(state, "warning");
    assert!(found.contains("limit 64.00 KiB") && fix.contains("ulimit -l unlimited"), "{found}");
    let [state, found, _] = check(&value, "io_uring");
    assert_eq!(state, "warning");
    assert!(found.contains("registering 4MiB is refused"), "{found}");
    // What is enough for one rank may not be enough for all of a node.
    let [state, found, _] = check(&doctor(&[], &["--ranks-per-node", "1000000"]).1, "memory");
    assert_eq!(state, "problem");
    assert!(found.contains("of 1000000 ranks' buffers"), "{found}");
    // The job runs all the same.
    let run = run_as(&["bench", "--params", "100k", "--steps", "1", "--verify", "--drives", &list]);
    run.expect(0, &["registered buffers refused", "unregistered buffers"]);
    assert!(drives.are_empty());
}

#[test]
fn profiles_are_told() {
    let drives = Drives::new(1);
    let list = drives.list(1);
    let name = format!("profile of {list}");
    let profile = || check(&doctor(&[], &["--drives", &list]).1, &name);
    assert!(profile()[1].contains("optswap probe"));
    let text = "read_bytes_per_s = 3e9\nwrite_bytes_per_s = 1e9\nmixed_bytes_per_s = 2e9\n\
                probed_at_unix_s = 1\n";
    std::fs::create_dir(drives.paths()[0].join("optswap")).unwrap();
    let path = optswap::internals::storage::DriveProfile::path(&drives.paths()[0]);
    std::fs::write(&path, text).unwrap();
    assert!(profile()[1].contains("reads 3.00 GB/s, writes 1.00 GB/s, both at once 2.00 GB/s"));
    std::fs::write(&path, "nonsense").unwrap();
    assert_eq!(profile()[0], "warning");
}

#[test]
fn direct_io_refused() {
    let drives = Drives::new(1);
    let list = drives.list(1);
    // The first write is that of the trial with direct I/O.
    let tamper = ["-e", "trace=pwrite64", "-e", "inject=pwrite64:error=EINVAL:when=1"];
    let (run, value) = doctor(&tamper, &["--drives", &list]);
    run.expect(0, &[]);
    let [state, found, _] = check(&value, &format!("direct I/O on {list}"));
    assert_eq!(state, "warning");
    assert!(found.contains("Invalid argument"), "{found}");
    assert!(drives.are_empty());
}
