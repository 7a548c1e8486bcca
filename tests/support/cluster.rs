//! A local cluster: several hosts with Slurm on this machine, gone with the test.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use super::Run;

pub struct Cluster {
    pub name: String,
    /// A directory that all hosts see.
    folder: tempfile::TempDir,
}

impl Cluster {
    /// Starts a cluster, which needs root and Slurm.
    pub fn up(options: &[&str]) -> Self {
        let cluster = Self { name: new_name(), folder: new_folder() };
        let output = cluster.local("up", options);
        assert_eq!(output.code, 0, "{output:?}");
        cluster
    }

    /// `cluster/local COMMAND ARGUMENTS`, killed after two minutes.
    pub fn local(&self, command: &str, arguments: &[&str]) -> Run {
        Run::of(&local(&self.name, command, arguments))
    }

    /// A command on the head.
    pub fn exec(&self, command: &[&str]) -> Run {
        self.local("exec", &[&["--"], command].concat())
    }

    /// A program under mpirun, over the first `nodes` hosts.
    pub fn run(&self, ranks: usize, nodes: usize, program: &Path, arguments: &[&str]) -> Run {
        let (ranks, nodes) = (ranks.to_string(), nodes.to_string());
        let program = program.display().to_string();
        let launch = ["--ranks", &ranks, "--nodes", &nodes, "--timeout", "90", "--", &program];
        self.local("run", &[&launch, arguments].concat())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.path(name), text).unwrap();
        self.path(name).display().to_string()
    }

    pub fn read(&self, name: &str) -> String {
        let path = self.path(name);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// Hands a shipped script to sbatch; its results go to `folder` of this cluster's directory.
    /// Gives the job's number.
    pub fn sbatch(&self, script: &str, folder: &str, more: &[&str]) -> String {
        let results = format!("RESULTS={}", self.path(folder).display());
        let log = format!("--output={}-%a.log", self.path(folder).display());
        let script = format!("launch/{script}");
        let words = ["sbatch", "--parsable", &log, &script];
        let command = [&["env", &results], more, &words].concat();
        let run = self.exec(&command);
        assert_eq!(run.code, 0, "{run:?}");
        run.stdout.trim().to_owned()
    }

    /// What Slurm says of a job: `JobState=COMPLETED` and so on.
    pub fn job(&self, number: &str) -> String {
        self.exec(&["scontrol", "show", "job", number]).stdout
    }

    /// Waits until all tasks of a job have ended.
    pub fn wait_for(&self, number: &str, seconds: u64) -> String {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(seconds);
        loop {
            let text = self.job(number);
            let waits = ["PENDING", "RUNNING", "COMPLETING", "REQUEUED", "CONFIGURING"];
            if !waits.iter().any(|state| text.contains(&format!("JobState={state}"))) {
                return text;
            }
            assert!(std::time::Instant::now() < deadline, "{text}");
            std::thread::sleep(std::time::Duration::from_millis(300));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let output = local(&self.name, "down", &[]);
        if !std::thread::panicking() {
            assert!(output.status.success(), "{output:?}");
        }
    }
}

/// Waits for the process of a rank that Open MPI has started, by a word of its command line.
pub fn pid_of_rank(tag: &str, rank: usize) -> String {
    let variable = format!("OMPI_COMM_WORLD_RANK={rank}");
    let is_rank = |pid: &u32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|it| it == variable.as_bytes())
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    loop {
        if let Some(pid) = super::rank_pids(tag).into_iter().find(is_rank) {
            return pid.to_string();
        }
        assert!(std::time::Instant::now() < deadline, "rank {rank} does not start");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

pub fn new_name() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

fn new_folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

pub fn local(name: &str, command: &str, arguments: &[&str]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster/local");
    let mut process = Command::new("timeout");
    process.args(["-k", "5", "120"]).arg(script).args([command, "--name", name]).args(arguments);
    // What this process was started with is nothing to the cluster.
    for variable in ["OPTSWAP_SITE", "OPTSWAP_DRIVES", "CHECKPOINT_DIR", "OPTSWAP_CLUSTER_NAME"] {
        process.env_remove(variable);
    }
    process.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap()
}
