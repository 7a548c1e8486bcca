//! Several hosts with a real Slurm, on this machine: jobs over hosts give the results of one host,
//! the shipped batch scripts complete, and nothing is left behind. What takes longer is in
//! `cluster_soak.rs`.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]
#![cfg(feature = "mpi")]

mod support;

use std::process::Command;

use support::cluster::{Cluster, local, new_name};
use support::{Drives, Run, TINY, one_at_a_time, optswap, ranks, train_lm};

/// The digest of a small benchmark on one host, over so many ranks.
fn digest_here(count: usize, params: &str) -> String {
    let drives = Drives::new(2);
    let mut command = ranks(count, &optswap());
    command.args(["bench", "--drives", &drives.list(2), "--params", params, "--steps", "2"]);
    digest(&Run::of(&command.output().unwrap()))
}

fn digest(run: &Run) -> String {
    assert_eq!(run.code, 0, "{}\n{}", run.stdout, run.stderr);
    let found = run.stdout.lines().find_map(|line| line.strip_prefix("state digest "));
    found.unwrap_or_else(|| panic!("no digest: {}", run.stdout)).to_owned()
}

mod needs_slurm {
    use super::*;

    #[test]
    #[ignore = "needs root and Slurm: launch/test"]
    fn ranks_on_several_hosts_train_as_on_one() {
        let _turn = one_at_a_time();
        let cluster = Cluster::up(&["--nodes", "4", "--drives", "2,1", "--size", "64MiB"]);
        // Three ranks on three hosts, by mpirun and by srun, against three ranks here.
        let drives = Drives::new(2);
        let small = cluster.write("small.toml", "[swap]\nchunk_elements = 4096\n");
        let job = [&["--config", &small, "--steps", "3", "--verify"], &TINY[..]].concat();
        let mut here = ranks(3, &train_lm());
        let here = Run::of(&here.args(["--drives", &drives.list(2)]).args(&job).output().unwrap());
        let over = cluster.run(3, 3, &train_lm(), &job);
        assert_eq!(over.json()["state_digest"], here.json()["state_digest"]);
        let program = train_lm().display().to_string();
        let srun = ["srun", "--mpi=pmix", "-K1", "-N3", "--ntasks-per-node=1", &program];
        let over = cluster.exec(&[&srun, &job[..]].concat());
        assert_eq!(over.json()["state_digest"], here.json()["state_digest"]);
        // node1 has another number of drives than the others; what named them is told of each.
        let table: Vec<&str> =
            over.stderr.lines().filter(|line| line.starts_with("| node")).collect();
        assert_eq!(table.len(), 2, "{}", over.stderr);
        assert!(table[0].contains("| node1 ") && table[0].contains("nvme[0-1]"), "{}", table[0]);
        assert!(table[1].contains("| node[2-3] ") && table[1].contains("nvme0 "), "{}", table[1]);
        assert!(table.iter().all(|line| line.contains("site local, node")), "{table:?}");

        // More ranks than cores, synthetic gradients.
        let over = cluster.run(8, 4, &optswap(), &["bench", "--params", "300001", "--steps", "2"]);
        assert_eq!(digest(&over), digest_here(1, "300001"));
        over.expect(0, &["8 ranks on 4 nodes"]);
    }

    /// Under srun, and by MPICH's own mpirun.
    #[test]
    #[ignore = "needs root, Slurm and a build with MPICH: launch/test"]
    fn ranks_of_mpich_on_several_hosts_give_the_same_state() {
        let _turn = one_at_a_time();
        let program = std::env::var("OPTSWAP_MPICH").expect("launch/test builds it");
        let cluster = Cluster::up(&["--nodes", "2", "--drives", "1", "--size", "64MiB"]);
        let srun = ["srun", "--mpi=pmi2", "-K1", "-N2", "--ntasks-per-node=2", "-O", &program];
        let job = ["bench", "--params", "300001", "--steps", "2"];
        let over = cluster.exec(&[&srun[..], &job].concat());
        assert_eq!(digest(&over), digest_here(1, "300001"));
        over.expect(0, &["4 ranks on 2 nodes"]);
        let hydra = ["mpirun.mpich", "-hosts", "node1,node2", "-ppn", "2", "-n", "4", &program];
        let over = cluster.exec(&[&hydra[..], &job].concat());
        assert_eq!(digest(&over), digest_here(1, "300001"));
        over.expect(0, &["4 ranks on 2 nodes"]);
    }

    #[test]
    #[ignore = "needs root and Slurm: launch/test"]
    fn ranks_that_cannot_find_each_other_are_refused() {
        let _turn = one_at_a_time();
        let cluster = Cluster::up(&["--nodes", "2", "--drives", "1", "--size", "64MiB"]);
        let program = optswap().display().to_string();
        let without = ["srun", "-N2", "--ntasks-per-node=1", &program, "bench", "--params", "100k"];
        let run = cluster.exec(&without);
        run.expect(64, &["srun offers Open MPI no PMIx", "start them with srun --mpi=pmix"]);
        assert_eq!(run.stderr.matches("no PMIx").count(), 1, "{}", run.stderr);

        // A host that the site description does not name, and one without drives.
        for (hosts, code, words) in [
            ("hosts = 'other[1-9]'", 64, "does not name this host"),
            ("hosts = 'node[1-2]'\ndrives = []", 69, "has no drives"),
        ] {
            let site = cluster.write("site.toml", &format!("name = 'test'\n[[nodes]]\n{hosts}\n"));
            let job = ["bench", "--params", "100k", "--site", &site];
            cluster.run(2, 2, &optswap(), &job).expect(code, &[words, "site test", "host node1"]);
        }
    }

    #[test]
    #[ignore = "needs root and Slurm: launch/test"]
    fn the_shipped_batch_scripts_complete() {
        let _turn = one_at_a_time();
        let options = ["--nodes", "3", "--drives", "2", "--size", "128MiB"];
        let cluster = Cluster::up(&options);
        let checkpoints = format!("CHECKPOINT_DIR={}", cluster.path("checkpoints").display());
        let train = cluster.sbatch("train.sbatch", "train", &[&checkpoints]);
        assert!(
            cluster.wait_for(&train, 60).contains("JobState=COMPLETED"),
            "{}",
            cluster.job(&train)
        );
        let bench = cluster.sbatch("bench.sbatch", "bench", &["PARAMS=2Mi", "STEPS=2"]);
        let sizes = ["WEAK_PARAMS_MI=1", "STRONG_PARAMS_MI=2", "STEPS=2"];
        let scaling = cluster.sbatch("scaling.sbatch", "scaling", &sizes);
        for job in [&bench, &scaling] {
            let text = cluster.wait_for(job, 90);
            let states: Vec<&str> =
                text.lines().filter(|line| line.contains("JobState=")).collect();
            let completed = states.iter().all(|state| state.contains("JobState=COMPLETED"));
            assert!(completed && !states.is_empty(), "{text}");
        }
        let result: serde_json::Value =
            serde_json::from_str(&cluster.read("train/result.json")).unwrap();
        assert_eq!((&result["ranks"], &result["steps"]), (&4.into(), &40.into()));
        for file in ["bench/bench.json", "scaling/weak-2.json", "scaling/strong-1.json"] {
            let result: serde_json::Value = serde_json::from_str(&cluster.read(file)).unwrap();
            assert!(result["step_seconds_median"].as_f64().unwrap() > 0.0, "{file}");
        }
        assert!(cluster.read("bench/doctor").contains("node2: 0 problems"));
        let log = cluster.read("scaling-3.log");
        for mode in ["weak", "strong"] {
            assert!(log.contains(&format!("\n{mode} scaling: ")), "{log}");
            let rows = log.lines().filter(|line| line.starts_with(&format!("| {mode}-")));
            assert_eq!(rows.count(), 2, "{log}");
        }
        // The nodes were probed, so there is a limit.
        let whole: serde_json::Value =
            serde_json::from_str(&cluster.read("bench/bench.json")).unwrap();
        assert!(whole["limit_percent"].as_f64().is_some(), "{whole:#}");
        assert!(cluster.path("bench/probe.json").exists());
        assert!(cluster.read("bench/bench.csv").contains(",node,node2,2,"));

        // PBS, as far as its variables go; the same training gives the same bits.
        let results = |name: &str| format!("RESULTS={}", cluster.path(name).display());
        let variables =
            format!("{},CHECKPOINT_DIR={}", results("pbs"), cluster.path("pbs-ck").display());
        let run = cluster.local("qsub", &["-v", &variables, "launch/train.pbs"]);
        assert_eq!(run.code, 0, "{run:?}");
        let train: serde_json::Value =
            serde_json::from_str(&cluster.read("pbs/result.json")).unwrap();
        let of_slurm: serde_json::Value =
            serde_json::from_str(&cluster.read("train/result.json")).unwrap();
        assert_eq!(train["state_digest"], of_slurm["state_digest"]);
        let variables = format!("{},PARAMS=2Mi,STEPS=2", results("pbs-bench"));
        let run = cluster.local("qsub", &["-v", &variables, "launch/bench.pbs"]);
        assert_eq!(run.code, 0, "{run:?}");
        let whole: serde_json::Value =
            serde_json::from_str(&cluster.read("pbs-bench/bench.json")).unwrap();
        assert!(whole["limit_percent"].as_f64().is_some(), "{whole:#}");
        // Each rank has a core of its own.
        let cores: Vec<&str> = whole["places"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| it["cpus"].as_str().unwrap())
            .collect();
        assert!(cores.len() == 4 && cores[0] != cores[1], "{cores:?}");
        assert!(cores.iter().all(|it| it.parse::<u32>().is_ok()), "{cores:?}");
    }

    /// Everything of this machine that names a cluster.
    fn traces(name: &str) -> Vec<String> {
        let output = |words: &[&str]| {
            let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let mut found: Vec<String> = ["/proc/mounts"]
            .iter()
            .map(|path| std::fs::read_to_string(path).unwrap())
            .chain([output(&["losetup", "--list"]), output(&["ip", "-brief", "link"])])
            .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
            .filter(|line| line.contains(&format!("optswap-{name}/")) || line.contains("br0 "))
            .collect();
        for process in std::fs::read_dir("/proc").unwrap().flatten() {
            let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(&format!("optswap-{name} "))
                || line.contains(&format!("optswap-{name}/"))
            {
                found.push(line);
            }
        }
        for place in ["/run", "/dev/shm", "/sys/fs/cgroup", "/sys/fs/cgroup/blkio"] {
            for entry in std::fs::read_dir(place).into_iter().flatten().flatten() {
                if entry.file_name().to_string_lossy().contains(name) {
                    found.push(entry.path().display().to_string());
                }
            }
        }
        found
    }

    #[test]
    #[ignore = "needs root and Slurm: launch/test"]
    fn nothing_is_left_of_a_cluster() {
        let _turn = one_at_a_time();
        let name = new_name();
        let up = |options: &[&str]| Run::of(&local(&name, "up", options));
        let down = || assert_eq!(Run::of(&local(&name, "down", &[])).code, 0);
        let small = ["--nodes", "2", "--drives", "2", "--size", "64MiB", "--mbps", "500"];

        assert_eq!(up(&small).code, 0);
        assert!(traces(&name).len() >= 4 + 2, "the test sees what is there: {:?}", traces(&name));
        up(&small).expect(73, &["is up already"]);
        // A job that runs goes too.
        let job =
            ["--node", "node1", "--", "sh", "-c", "srun -N2 sleep 1000 >/dev/null 2>&1 & sleep 1"];
        assert_eq!(Run::of(&local(&name, "exec", &job)).code, 0);
        down();
        assert_eq!(traces(&name), [""; 0]);

        // A start that fails, in the middle of it.
        up(&["--nodes", "2", "--size", "32KiB"]).expect(69, &["the cluster does not start"]);
        assert_eq!(traces(&name), [""; 0]);

        // A start that is killed.
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/cluster/local");
        let mut child = Command::new(script).args(["up", "--name", &name]).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(250));
        child.kill().unwrap();
        child.wait().unwrap();
        down();
        assert_eq!(traces(&name), [""; 0]);

        for (options, words) in [
            (["--nodes", "0"], "--nodes 0"),
            (["--drives", "x"], "--drives x"),
            (["--size", "big"], "big is no size"),
            (["--speed", "1"], "does not know --speed"),
        ] {
            up(&options).expect(64, &[words]);
        }
        Run::of(&local(&name, "exec", &["true"])).expect(69, &["is not up"]);
        assert_eq!(traces(&name), [""; 0]);
    }
}
