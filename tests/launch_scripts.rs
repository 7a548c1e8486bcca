//! The scripts for batch systems, with a stub in the place of the launcher: the names that
//! schedulers give are made fit for directories, and that is said.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use support::{Drives, Run, optswap, train_lm};

/// Runs a script as its batch system would; `launcher` starts one process.
fn script(drives: &Drives, name: &str, launcher: &str, variables: &[(&str, &str)]) -> Run {
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let bin = drives.path().join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    // Flags and the file of nodes are left out.
    let is_flag = "$1 != */* || $1 == *=* || ! -x $1";
    let stub = format!("#!/bin/bash\nwhile [[ {is_flag} ]]; do shift; done\nexec \"$@\"\n");
    std::fs::write(bin.join(launcher), stub).unwrap();
    std::fs::set_permissions(bin.join(launcher), PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let nodes = drives.write("nodes", "here\n");
    let small = "--steps 2 --layers 1 --dim 32 --heads 2 --context 32 --batch 8";
    let mut command = Command::new("timeout");
    command.args(["-k", "5", "100", "bash"]).arg(home.join("launch").join(name));
    command.current_dir(drives.path()).env("PATH", path).env("DRIVES", drives.list(1));
    command.env("PROGRAM", train_lm()).env("PBS_NODEFILE", nodes);
    command.env("PBS_O_WORKDIR", drives.path()).env("SLURM_JOB_NODELIST", "here");
    command.env("ARGUMENTS", small);
    for variable in
        ["RESULTS", "RUN", "CHECKPOINT_DIR", "SLURM_JOB_ID", "PBS_JOBID", "SLURM_LOCALID"]
    {
        command.env_remove(variable);
    }
    Run::of(&command.envs(variables.iter().copied()).output().unwrap())
}

#[test]
fn names_that_slurm_gives_are_made_fit_for_directories() {
    for (given, safe) in [
        ("optswap-train", "optswap-train"),
        ("llama 7b", "llama-7b"),
        ("lr=1e-4", "lr-1e-4"),
        ("sweep/lr3", "sweep-lr3"),
        ("../[x]", "x-"),
        ("/", "train"),
    ] {
        let drives = Drives::new(1);
        let variables = [("SLURM_JOB_NAME", given), ("SLURM_JOB_ID", "77")];
        let run = script(&drives, "train.sbatch", "srun", &variables);
        assert_eq!(run.code, 0, "{given}: {}\n{}", run.stdout, run.stderr);
        let said = format!("train: job name '{given}' is written {safe}");
        assert_eq!(run.stdout.contains(&said), given != safe, "{}", run.stdout);
        let results = drives.path().join(format!("results/{safe}-77"));
        let checkpoint = format!("checkpoints/{safe}-77/step-00000002/manifest.json");
        assert!(results.join(checkpoint).exists(), "{given}");
        assert!(results.join("result.json").exists(), "{given}");
    }
}

#[test]
fn an_array_job_of_pbs_is_made_fit_for_directories() {
    let drives = Drives::new(1);
    let variables = [("PBS_JOBID", "1234[5].server")];
    let run = script(&drives, "train.pbs", "mpirun", &variables);
    run.expect(0, &[]);
    assert!(run.stdout.contains("train: run '1234[5]' is written 1234-5"), "{}", run.stdout);
    let results = drives.path().join("results/optswap-train-1234-5");
    assert!(results.join("result.json").exists(), "{}", run.stdout);
}

#[test]
fn a_name_that_is_not_allowed_is_refused_with_one_that_is() {
    let drives = Drives::new(1);
    let arguments =
        ["bench", "--params", "4096", "--job", "sweep/lr=3", "--drives", &drives.list(1)];
    let run = support::alone(&optswap(), &arguments);
    run.expect(64, &["job = `sweep/lr=3` is out of range", "allowed: sweep-lr-3"]);
    assert!(drives.are_empty());
}
