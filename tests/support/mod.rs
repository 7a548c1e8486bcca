//! Running the built programs as a user would; `world` has ranks that are threads.

#![allow(dead_code, reason = "every test file uses its own part")]

pub mod by_hand;
pub mod cluster;
pub mod shards;
pub mod tensors;
pub mod world;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Directories that stand for drives, gone with the test.
pub struct Drives {
    folder: tempfile::TempDir,
    count: usize,
}

impl Drives {
    pub fn new(count: usize) -> Self {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let drives = Self { folder, count };
        drives.paths().iter().for_each(|path| std::fs::create_dir(path).unwrap());
        drives
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn paths(&self) -> Vec<PathBuf> {
        (0..self.count).map(|drive| self.path().join(format!("drive{drive}"))).collect()
    }

    /// The value of `--drives` for the first `count` of them.
    pub fn list(&self, count: usize) -> String {
        let names = self.paths().into_iter().take(count);
        names.map(|path| path.display().to_string()).collect::<Vec<_>>().join(",")
    }

    pub fn are_empty(&self) -> bool {
        self.paths().iter().all(|path| std::fs::read_dir(path).unwrap().next().is_none())
    }

    /// Writes a file beside the drives.
    pub fn write(&self, name: &str, text: &str) -> String {
        let path = self.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// What rank `shard` put on the first drive.
    pub fn shard(&self, job: &str, shard: usize) -> PathBuf {
        self.paths()[0].join(format!("optswap/{job}/shard-{shard:05}"))
    }
}

/// Copies a tree of files, as another process finds them that starts after this one has ended: a
/// thread that has given up an operation keeps its locks as long as the process lives.
pub fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// What this build of the workspace has made: `optswap`, or `examples/train_lm`. (They are of other
/// packages than the tests, so cargo does not tell where they are.)
pub fn built(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    // target/release/deps/TEST
    let path = test.ancestors().nth(2).unwrap().join(name);
    assert!(path.exists(), "{} is not built: cargo build --bins --examples", path.display());
    path
}

/// The `optswap` program.
pub fn optswap() -> PathBuf {
    built("optswap")
}

/// The training example.
pub fn train_lm() -> PathBuf {
    built("examples/train_lm")
}

/// A model small enough for a test.
pub const TINY: [&str; 10] =
    ["--layers", "1", "--dim", "32", "--heads", "2", "--context", "32", "--batch", "8"];

/// What a program did.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    pub fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    /// The JSON object in the last line of stdout.
    pub fn json(&self) -> serde_json::Value {
        assert_eq!(self.code, 0, "{}\n{}", self.stdout, self.stderr);
        let last = self.stdout.lines().last().unwrap_or_default();
        serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {last}"))
    }

    /// As [`Self::json`], if it got that far, whatever came then.
    pub fn result(&self) -> Option<serde_json::Value> {
        serde_json::from_str(self.stdout.lines().last()?).ok()
    }

    #[track_caller]
    pub fn expect(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{}\n{}", self.stdout, self.stderr);
        for word in words {
            assert!(self.stderr.contains(word), "`{word}` is not in:\n{}", self.stderr);
        }
    }
}

/// One process, without a launcher; killed after a minute.
pub fn alone(program: &Path, arguments: &[&str]) -> Run {
    let mut command = Command::new("timeout");
    command.args(["-k", "5", "60"]).arg(program).args(arguments);
    Run::of(&command.output().unwrap())
}

/// `launch/ranks`, killed after a minute; ready for more arguments.
pub fn ranks(count: usize, program: &Path) -> Command {
    let launch = Path::new(env!("CARGO_MANIFEST_DIR")).join("launch/ranks");
    let mut command = Command::new("timeout");
    command.args(["-k", "5", "60"]).arg(launch).arg(count.to_string()).arg(program);
    command
}

/// The processes of a job: those of `train_lm` or `optswap` whose command line has this text.
pub fn rank_pids(tag: &str) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let path = entry.ok()?.path();
        let pid = path.file_name()?.to_str()?.parse::<u32>().ok()?;
        let name = std::fs::read_to_string(path.join("comm")).ok()?;
        let line = std::fs::read_to_string(path.join("cmdline")).ok()?;
        let is_ours = ["train_lm", "optswap"].contains(&name.trim()) && line.contains(tag);
        is_ours.then_some(pid)
    });
    let mut pids: Vec<u32> = processes.collect();
    pids.sort_unstable();
    pids
}

/// Tests with several ranks run one after the other: there are few cores.
pub fn one_at_a_time() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A job in chunks of one block that would last; gives the command.
pub fn long_job(count: usize, drives: &Drives, config: &str) -> Command {
    let text = format!("{config}\n[swap]\nchunk_elements = 4096\n");
    let config = drives.write("job.toml", &text);
    let mut command = ranks(count, &train_lm());
    command.args(["--drives", &drives.list(1), "--config", &config, "--steps", "100000"]);
    command.args(TINY).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Waits until a rank has its files, and gives its process.
pub fn process_of(drives: &Drives, rank: usize) -> String {
    let owner = drives.shard("default", rank).join("owner");
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let text = std::fs::read_to_string(&owner).unwrap_or_default();
        if let Some(pid) = text.lines().find_map(|line| line.strip_prefix("pid = ")) {
            // Some steps later.
            std::thread::sleep(Duration::from_millis(300));
            return pid.to_owned();
        }
        assert!(Instant::now() < deadline, "no owner file");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn signal(pid: &str, signal: &str) {
    assert!(Command::new("kill").args([signal, pid]).status().unwrap().success());
}
