//! What goes wrong on a cluster, on a local one: hosts that crash, links that are cut, jobs that
//! are preempted, drives that are full. Takes minutes: `launch/soak cluster`.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]
#![cfg(feature = "mpi")]

mod support;

use std::time::{Duration, Instant};

use support::cluster::Cluster;
use support::{Drives, Run, alone, one_at_a_time, optswap, ranks, train_lm};

/// A job of the shipped script: four ranks on two nodes.
const LONG: &str = "ARGUMENTS=--steps 600 --layers 1 --dim 32 --heads 2 --context 32 --batch 8 \
                    --validate-every 100000";

/// The same with ten times as many steps, for what takes half a minute to happen.
const LONGER: &str = "ARGUMENTS=--steps 6000 --layers 1 --dim 32 --heads 2 --context 32 --batch 8 \
                      --validate-every 100000";

fn up(nodes: &str) -> Cluster {
    Cluster::up(&["--nodes", nodes, "--drives", "2,1", "--size", "64MiB"])
}

/// The same job, undisturbed and on one host.
fn undisturbed(arguments: &str) -> serde_json::Value {
    let drives = Drives::new(1);
    let mut command = ranks(4, &train_lm());
    command.args(["--drives", &drives.list(1)]);
    command.args(arguments.trim_start_matches("ARGUMENTS=").split_whitespace());
    Run::of(&command.output().unwrap()).json()
}

fn wait_until(seconds: u64, what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// Starts the long job, and waits until it has saved something.
fn start(cluster: &Cluster, every: &str) -> String {
    start_with(cluster, every, &[LONG])
}

fn start_with(cluster: &Cluster, every: &str, more: &[&str]) -> String {
    let checkpoints = format!("CHECKPOINT_DIR={}", cluster.path("checkpoints").display());
    let every = format!("CHECKPOINT_EVERY={every}");
    let variables = [&[checkpoints.as_str(), &every], more].concat();
    let job = cluster.sbatch("train.sbatch", "train", &variables);
    wait_until(60, "the job saves nothing", || {
        cluster.path("train-4294967294.log").exists()
            && cluster.read("train-4294967294.log").contains("checkpoint of step 40 saved")
    });
    job
}

/// The log of a job says that it went on, and all of these words; its result is that of one that
/// was left alone.
fn went_on(cluster: &Cluster, words: &[&str], arguments: &str) {
    let log = cluster.read("train-4294967294.log");
    for words in words.iter().chain(&["going on after step"]) {
        assert!(log.contains(words), "{words}: {log}");
    }
    compare(cluster, arguments);
}

/// The result of the job that went on, against that of one that was left alone.
fn compare(cluster: &Cluster, arguments: &str) {
    let result: serde_json::Value =
        serde_json::from_str(&cluster.read("train/result.json")).unwrap();
    assert!(result["steps_before"].as_u64().unwrap() >= 40, "{result}");
    assert_eq!(result["state_digest"], undisturbed(arguments)["state_digest"]);
}

#[test]
#[ignore = "takes minutes: launch/soak cluster"]
fn a_preempted_job_is_requeued_and_ends_with_the_same_bits() {
    let _turn = one_at_a_time();
    let cluster = up("2");
    let job = start(&cluster, "20");
    assert_eq!(cluster.exec(&["scancel", "--signal=USR1", &job]).code, 0);
    let text = cluster.wait_for(&job, 120);
    assert!(text.contains("JobState=COMPLETED") && text.contains("Restarts=1"), "{text}");
    went_on(&cluster, &["stopped by SIGUSR1"], LONG);
}

/// Slurm's own preemption: SIGTERM, half a minute to save, and it requeues the job.
#[test]
#[ignore = "takes minutes: launch/soak cluster"]
fn slurm_gives_the_nodes_to_an_urgent_job_and_the_ranks_save_before() {
    let _turn = one_at_a_time();
    let cluster = up("2");
    // Nothing is saved but what the signal asks for, after step 40.
    let job = start(&cluster, "40");
    let urgent = ["sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--exclusive"];
    let output = format!("--output={}", cluster.path("urgent.log").display());
    let run = cluster.exec(&[&urgent[..], &[&output, "--wrap=hostname"]].concat());
    assert_eq!(run.code, 0, "{run:?}");
    let text = cluster.wait_for(run.stdout.trim(), 60);
    assert!(text.contains("JobState=COMPLETED"), "{text}");
    let text = cluster.wait_for(&job, 120);
    assert!(text.contains("JobState=COMPLETED") && text.contains("Restarts=1"), "{text}");
    went_on(&cluster, &["stopped by SIGTERM"], LONG);
}

/// `#SBATCH --signal=USR1@...`, sent by Slurm itself before the time limit.
#[test]
#[ignore = "takes minutes: launch/soak cluster"]
fn the_time_limit_comes_near_and_the_job_goes_on_in_another() {
    let _turn = one_at_a_time();
    let cluster = up("2");
    let job = start_with(&cluster, "40", &[LONGER, "SBATCH_TIMELIMIT=2", "SBATCH_SIGNAL=USR1@115"]);
    let text = cluster.wait_for(&job, 180);
    assert!(text.contains("JobState=COMPLETED"), "{text}");
    assert!(!text.contains("Restarts=0"), "{text}");
    went_on(&cluster, &["stopped by SIGUSR1"], LONGER);
}

/// The script for PBS stops its ranks itself, and hands itself in again with its variables.
#[test]
#[ignore = "takes minutes: launch/soak cluster"]
fn under_pbs_the_script_goes_on_in_the_next_job() {
    let _turn = one_at_a_time();
    let cluster = up("2");
    let results = format!("RESULTS={}", cluster.path("train").display());
    let checkpoints = format!("CHECKPOINT_DIR={}", cluster.path("checkpoints").display());
    let variables = [&results, &checkpoints, LONGER, "WALLTIME_S=21", "GRACE_S=15"].join(",");
    let flags = ["-v", &variables, "-v", "CHECKPOINT_EVERY=40,QSUB_FLAGS=-q again"];
    let run = cluster.local("qsub", &[&flags[..], &["launch/train.pbs"]].concat());
    assert_eq!(run.code, 0, "{run:?}");
    for words in ["start 1 of run", "saved; the next job goes on"] {
        assert!(run.stdout.contains(words), "{words}: {}", run.stdout);
    }
    assert!(run.stderr.contains("stopped by SIGUSR1"), "{}", run.stderr);
    compare(&cluster, LONGER);
}

#[test]
#[ignore = "takes minutes: launch/soak cluster"]
fn a_host_crashes_and_the_job_goes_on_on_others() {
    let _turn = one_at_a_time();
    let cluster = up("3");
    let job = start(&cluster, "20");
    // Slurm's daemon, and every rank there.
    assert_eq!(cluster.local("crash", &["node2"]).code, 0);
    let text = cluster.wait_for(&job, 180);
    assert!(text.contains("JobState=COMPLETED") && text.contains("Restarts=1"), "{text}");
    assert!(text.contains("NodeList=node[1,3]"), "{text}");
    went_on(&cluster, &[], LONG);
}

#[test]
#[ignore = "takes minutes: launch/soak cluster"]
fn slurms_daemon_dies_and_the_job_is_not_lost() {
    let _turn = one_at_a_time();
    let cluster = up("3");
    let job = start(&cluster, "20");
    let kill = "kill -KILL $(cat $(dirname $SLURM_CONF)/slurmd.node2.pid)";
    assert_eq!(cluster.exec(&["sh", "-c", kill]).code, 0);
    // It ends before Slurm notices, or is requeued and goes on.
    let text = cluster.wait_for(&job, 180);
    assert!(text.contains("JobState=COMPLETED"), "{text}");
    let result: serde_json::Value =
        serde_json::from_str(&cluster.read("train/result.json")).unwrap();
    assert_eq!(result["state_digest"], undisturbed(LONG)["state_digest"]);
}

#[test]
#[ignore = "takes minutes: launch/soak cluster"]
fn a_cut_link_ends_the_ranks_on_both_sides() {
    let _turn = one_at_a_time();
    let cluster = up("2");
    let config = cluster.write(
        "job.toml",
        "[swap]\nchunk_elements = 4096\n[timeouts]\npeer_timeout = 5.0\nstall_warning = 1.0\n",
    );
    let tag = cluster.path("").display().to_string();
    let running = || support::rank_pids(&tag).len();
    let cutter = std::thread::scope(|scope| {
        let job = scope.spawn(|| {
            let more = ["--config", &config, "--steps", "100000", "--layers", "1", "--dim", "32"];
            let more = [&more[..], &["--heads", "2", "--context", "32", "--batch", "8"]].concat();
            let launch = ["--ranks", "4", "--nodes", "2", "--timeout", "60", "--"];
            let program = train_lm().display().to_string();
            cluster.local("run", &[&launch[..], &[&program], &more].concat())
        });
        wait_until(30, "the ranks do not start", || running() == 4);
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(cluster.local("link", &["node2", "down"]).code, 0);
        // Five seconds until they give up, and ten if MPI does not manage to abort.
        wait_until(40, "ranks are left", || running() == 0);
        job.join().unwrap()
    });
    let said = &cutter.stderr;
    assert!(said.contains("waited 5 s in MPI_") || said.contains("waited 6 s in MPI_"), "{said}");
    assert!(said.contains("on node2"), "{said}");
    assert_ne!(cutter.code, 0);
    // The same cluster, mended.
    assert_eq!(cluster.local("link", &["node2", "up"]).code, 0);
    let bench = ["bench", "--params", "300001", "--steps", "2"];
    assert_eq!(cluster.run(4, 2, &optswap(), &bench).code, 0);
}

#[test]
#[ignore = "takes minutes: launch/soak cluster"]
fn a_full_drive_of_one_host_is_named() {
    let _turn = one_at_a_time();
    let cluster = up("3");
    let fill = ["--node", "node2", "--", "sh", "-c", "head -c 1G /dev/zero >\"$0\"/full; true"];
    let drive = format!("/run/optswap-{}/drives/nvme0", cluster.name);
    assert_eq!(cluster.local("exec", &[&fill[..], &[&drive]].concat()).code, 0);
    let bench = ["bench", "--params", "4Mi", "--steps", "2"];
    let run = cluster.run(3, 3, &optswap(), &bench);
    run.expect(73, &["the drive is too small", "rank 1 of 3 on node2", &drive]);
    // Full in the middle of a step, on one rank.
    let fault = "[[faults]]\nrank = 2\nop = 30\nkind = \"enospc\"\n";
    let config = cluster.write("fault.toml", fault);
    let bench = ["bench", "--params", "1Mi", "--steps", "20", "--config", &config];
    let nodes = format!("/run/optswap-{}/drives/nvme0", cluster.name);
    let empty = ["--node", "node2", "--", "rm", &format!("{nodes}/full")];
    assert_eq!(cluster.local("exec", &empty).code, 0);
    let run = cluster.run(3, 3, &optswap(), &bench);
    run.expect(74, &["rank 2 of 3 on node3", "No space left on device"]);
    assert_eq!(run.stderr.matches("No space left").count(), 1, "{}", run.stderr);
}

#[test]
#[ignore = "takes minutes: launch/soak cluster"]
fn sixty_four_ranks_on_few_cores_give_the_bits_of_one() {
    let _turn = one_at_a_time();
    let cluster = up("4");
    let bench = ["bench", "--params", "600001", "--steps", "2"];
    let over = cluster.run(64, 4, &optswap(), &bench);
    over.expect(0, &["64 ranks on 4 nodes"]);
    let drives = Drives::new(1);
    let here = alone(&optswap(), &[&bench[..], &["--drives", &drives.list(1)]].concat());
    let digest = |run: &Run| {
        let found = run.stdout.lines().find_map(|line| line.strip_prefix("state digest "));
        found.map(str::to_owned)
    };
    assert!(digest(&here).is_some(), "{here:?}");
    assert_eq!(digest(&over), digest(&here));
}
