//! Which directories are taken for drives: wildcards on the command line, and where drives are
//! looked for if nothing names any.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use std::process::Command;

use support::{Drives, Run, optswap};

/// A small benchmark in an environment that names drives by these variables alone.
fn bench(arguments: &[&str], variables: &[(&str, &str)]) -> Run {
    let mut command = Command::new("timeout");
    command.args(["-k", "5", "60"]).arg(optswap()).args(["bench", "--params", "100k"]);
    command.args(["--steps", "1", "--warmup", "0", "--keep-files"]).args(arguments);
    let own = ["OPTSWAP_DRIVES", "SLURM_TMPDIR", "TMPDIR"];
    let jobs = ["SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "FLUX_JOB_ID"];
    own.iter().chain(&jobs).for_each(|name| {
        command.env_remove(name);
    });
    Run::of(&command.envs(variables.iter().copied()).output().unwrap())
}

/// Which of the drives something was put on.
fn used(drives: &Drives) -> Vec<bool> {
    drives.paths().iter().map(|path| path.join("optswap").exists()).collect()
}

#[test]
fn wildcards_name_drives() {
    let drives = Drives::new(3);
    let pattern = format!("{}/drive[02]", drives.path().display());
    bench(&["--drives", &pattern], &[]).expect(0, &[]);
    assert_eq!(used(&drives), [true, false, true]);

    // One that matches nothing is an error, even beside one that does.
    let wrong = format!("{pattern},{}/nvme*", drives.path().display());
    bench(&["--drives", &wrong], &[]).expect(64, &["matches no directory", "/nvme*"]);
}

#[test]
fn the_environment_names_drives_if_nothing_else_does() {
    let drives = Drives::new(3);
    let [first, second, third] = [0, 1, 2].map(|drive| drives.paths()[drive].display().to_string());
    let config = drives.write("config.toml", &format!("[drives]\npaths = [\"{first}\"]\n"));
    let pattern = format!("{}/drive[12]", drives.path().display());
    let all = [("OPTSWAP_DRIVES", pattern.as_str()), ("SLURM_TMPDIR", third.as_str())];

    let run = bench(&["--config", &config], &all);
    run.expect(0, &[]);
    assert!(!run.stderr.contains("(from $"), "{}", run.stderr);
    assert_eq!(used(&drives), [true, false, false]);

    let said = format!("drives: {second}, {third} (from $OPTSWAP_DRIVES)");
    bench(&[], &all).expect(0, &[&said]);
    assert_eq!(used(&drives), [true, true, true]);

    let run = bench(&[], &[("OPTSWAP_DRIVES", "/no/such*")]);
    run.expect(64, &["matches no directory", "/no/such*", "$OPTSWAP_DRIVES"]);
}

#[test]
fn a_batch_jobs_own_directory_is_taken() {
    let drives = Drives::new(2);
    let [first, second] = [0, 1].map(|drive| drives.paths()[drive].display().to_string());
    let both = [("SLURM_TMPDIR", first.as_str()), ("TMPDIR", second.as_str())];
    bench(&[], &both).expect(0, &[&format!("drives: {first} (from $SLURM_TMPDIR)")]);
    assert_eq!(used(&drives), [true, false]);
    // Open MPI believes LSF's and Flux's variables, and looks for their servers.
    for job in ["SLURM_JOB_ID", "PBS_JOBID"] {
        let run = bench(&[], &[("TMPDIR", second.as_str()), (job, "7")]);
        run.expect(0, &[&format!("drives: {second} (from $TMPDIR)")]);
    }
    assert_eq!(used(&drives), [true, true]);
}

#[test]
fn nothing_is_taken_by_chance() {
    let drives = Drives::new(1);
    let path = drives.paths()[0].display().to_string();
    let rules = ["no drive is named", "--drives DIR,DIR", "$OPTSWAP_DRIVES", "$SLURM_TMPDIR"];
    bench(&[], &[]).expect(64, &rules);
    // Outside of a batch job, and in memory.
    bench(&[], &[("TMPDIR", path.as_str())]).expect(64, &rules);
    bench(&[], &[("TMPDIR", "/dev/shm"), ("SLURM_JOB_ID", "7")]).expect(64, &rules);
    assert!(drives.are_empty());
}
