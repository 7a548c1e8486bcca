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

fn up(nodes: &str) -> Option<Cluster> {
    Cluster::up(&["--nodes", nodes, "--drives", "2,1", "--size", "64MiB"])
}

/// The same job, undisturbed and on one host.
fn undisturbed() -> serde_json::Value {
    let drives = Drives::new(1);
    let mut command = ranks(4, &train_lm());
    command.args(["--drives", &drives.list(1)]);
    command.args(LONG.trim_start_matches("ARGUMENTS=").split_whitespace());
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
    let checkpoints = format!("CHECKPOINT_DIR={}", cluster.path("checkpoints").display());
    let every = format!("CHECKPOINT_EVERY={every}");
    let job = cluster.sbatch("train.sbatch", "train", &[&checkpoints, &every, LONG]);
    wait_until(60, "the job saves nothing", || {
        cluster.path("train-4294967294.log").exists()
            && cluster.read("train-4294967294.log").contains("checkpoint of step 40 saved")
    });
    job
}

/// The result of the job that went on, against that of one that was left alone.
fn compare(cluster: &Cluster) {
    let result: serde_json::Value =
        serde_json::from_str(&cluster.read("train/result.json")).unwrap();
    assert!(result["steps_before"].as_u64().unwrap() >= 40, "{result}");
    assert_eq!(result["state_digest"], undisturbed()["state_digest"]);
}

#[test]
#[ignore = "takes minutes: launch/soak cluster"]
fn a_preempted_job_is_requeued_and_ends_with_the_same_bits() {
    let _turn = one_at_a_time();
    let Some(cluster) = up("2") else { return };
    let job = start(&cluster, "20");
    assert_eq!(cluster.exec(&["scancel", "--signal=USR1", &job]).code, 0);
    let text = cluster.wait_for(&job, 120);
    assert!(text.contains("JobState=COMPLETED") && text.contains("Restarts=1"), "{text}");
    let log = cluster.read("train-4294967294.log");
    assert!(log.contains("stopped by SIGUSR1"), "{log}");
    assert!(log.contains("going on after step"), "{log}");
    compare(&cluster);
}

#[test]
#[ignore = "takes minutes: launch/soak cluster"]
fn a_host_crashes_and_the_job_goes_on_on_others() {
    let _turn = one_at_a_time();
    let Some(cluster) = up("3") else { return };
    let job = start(&cluster, "20");
    // Slurm's daemon, and every rank there.
    assert_eq!(cluster.local("crash", &["node2"]).code, 0);
    let text = cluster.wait_for(&job, 180);
    assert!(text.contains("JobState=COMPLETED") && text.contains("Restarts=1"), "{text}");
    assert!(text.contains("NodeList=node[1,3]"), "{text}");
    let log = cluster.read("train-4294967294.log");
    assert!(log.contains("going on after step"), "{log}");
    compare(&cluster);
}

#[test]
#[ignore = "takes minutes: launch/soak cluster"]
fn slurms_daemon_dies_and_the_job_is_not_lost() {
    let _turn = one_at_a_time();
    let Some(cluster) = up("3") else { return };
    let job = start(&cluster, "20");
    let kill = "kill -KILL $(cat $(dirname $SLURM_CONF)/slurmd.node2.pid)";
    assert_eq!(cluster.exec(&["sh", "-c", kill]).code, 0);
    // It ends before Slurm notices, or is requeued and goes on.
    let text = cluster.wait_for(&job, 180);
    assert!(text.contains("JobState=COMPLETED"), "{text}");
    let result: serde_json::Value =
        serde_json::from_str(&cluster.read("train/result.json")).unwrap();
    assert_eq!(result["state_digest"], undisturbed()["state_digest"]);
}

#[test]
#[ignore = "takes minutes: launch/soak cluster"]
fn a_cut_link_ends_the_ranks_on_both_sides() {
    let _turn = one_at_a_time();
    let Some(cluster) = up("2") else { return };
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
    let Some(cluster) = up("3") else { return };
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
    let Some(cluster) = up("4") else { return };
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
