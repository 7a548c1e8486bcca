//! Which directories are taken for drives: wildcards on the command line, and where drives are
//! looked for if nothing names any.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use std::process::Command;

use support::{Drives, Run, TINY, alone, optswap, train_lm};

/// A small benchmark in an environment that names drives by these variables alone.
fn bench(arguments: &[&str], variables: &[(&str, &str)]) -> Run {
    let mut command = Command::new("timeout");
    command.args(["-k", "5", "60"]).arg(optswap()).args(["bench", "--params", "100k"]);
    command.args(["--steps", "1", "--warmup", "0", "--keep-files"]).args(arguments);
    let own =
        ["OPTSWAP_DRIVES", "OPTSWAP_SITE", "SLURM_TMPDIR", "TMPDIR", "LOCAL_SCRATCH", "PBS_JOBFS"];
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
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let memory = memory.path().to_str().unwrap();
    let variables = [("TMPDIR", memory), ("LOCAL_SCRATCH", first.as_str()), ("PBS_JOBID", "7")];
    bench(&[], &variables).expect(0, &[&format!("drives: {first} (from $LOCAL_SCRATCH)")]);
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

#[test]
fn wildcards_in_a_configuration_are_matched() {
    let drives = Drives::new(3);
    let paths = format!("[drives]\npaths = [\"{}/drive[12]\"]\n", drives.path().display());
    let config = drives.write("config.toml", &paths);
    bench(&["--config", &config], &[]).expect(0, &["drive[1-2]", "| configuration |"]);
    assert_eq!(used(&drives), [false, true, true]);
    let config = drives.write("wrong.toml", "[drives]\npaths = [\"/no/such*\"]\n");
    bench(&["--config", &config], &[]).expect(64, &["matches no directory", "/no/such*"]);
}

#[test]
fn brackets_of_an_array_job_are_no_wildcards() {
    let drives = Drives::new(0);
    let job = "pbs.1234[5].server";
    for drive in ["nv0", "nv1"] {
        std::fs::create_dir_all(drives.path().join(drive).join(job)).unwrap();
    }
    let root = drives.path().display();
    let both = format!("drives: {root}/nv0/{job}, {root}/nv1/{job}");
    let variables = [("SOME_JOB", "1234[5].server")];
    for (path, said) in [
        ("nv[0-1]/pbs.$SOME_JOB", both.clone()),
        ("nv0/pbs.${SOME_JOB}", format!("drives: {root}/nv0/{job} (")),
    ] {
        let site = site(&drives, "brackets", path);
        bench(&["--site", &site], &variables).expect(0, &[&said]);
    }
    // Beside a wildcard, as a shell makes it of a variable, and quoted as in a shell.
    for name in [job, "pbs.1234[[]5].server", "pbs.1234[[]5[]].s*"] {
        let paths = format!("{root}/nv*/{name}");
        bench(&[], &[("OPTSWAP_DRIVES", &paths)]).expect(0, &[&both]);
        bench(&["--drives", &paths], &[]).expect(0, &["nv0", "nv1"]);
    }
    // A variable has no wildcards, whatever is in it.
    let site = site(&drives, "star", "nv[0-1]/$SOME_JOB");
    let run = bench(&["--site", &site], &[("SOME_JOB", "pbs*")]);
    run.expect(64, &["matches no directory"]);
}

/// A description whose first entry is of another host, and whose second names these drives.
fn site(drives: &Drives, name: &str, pattern: &str) -> String {
    let text = format!(
        "name = \"{name}\"\n[[nodes]]\nhosts = \"other[1-99]\"\n\
         [[nodes.drives]]\npath = \"/no/such/drive\"\n\
         [[nodes]]\nhosts = \"*\"\n[[nodes.drives]]\npath = \"{}/{pattern}\"\n",
        drives.path().display()
    );
    drives.write(&format!("{name}.toml"), &text)
}

#[test]
fn a_site_counts_after_the_configuration_and_before_other_variables() {
    let drives = Drives::new(3);
    let [first, second] = [0, 1].map(|drive| drives.paths()[drive].display().to_string());
    let (flag, variable) = (site(&drives, "a", "drive$N"), site(&drives, "b", "drive1"));
    let all = [("OPTSWAP_SITE", variable.as_str()), ("OPTSWAP_DRIVES", first.as_str()), ("N", "2")];

    let said = format!("drives: {second} (from site b, *)");
    bench(&[], &all).expect(0, &[&said, "| site b, * |"]);
    assert_eq!(used(&drives), [false, true, false]);
    bench(&["--site", &flag], &all).expect(0, &["(from site a, *)"]);
    assert_eq!(used(&drives), [false, true, true]);
    let config = drives.write("config.toml", &format!("[drives]\npaths = [\"{first}\"]\n"));
    bench(&["--site", &flag, "--config", &config], &all).expect(0, &["| configuration |"]);
    bench(&["--site", &flag, "--drives", &second], &all).expect(0, &["| --drives |"]);
    assert_eq!(used(&drives), [true, true, true]);

    let unset = [("OPTSWAP_SITE", flag.as_str())];
    bench(&[], &unset).expect(64, &["is not set", "variable N", "site a, *"]);
    bench(&["--site", "/no/such.toml"], &all).expect(64, &["/no/such.toml", "--site"]);
    let wrong = drives.write("wrong.toml", "[[nodes]]\nhosts = \"n[3-1]\"\n");
    let wrong = [("OPTSWAP_SITE", wrong.as_str())];
    bench(&[], &wrong).expect(64, &["ends before it begins", "wrong.toml", "$OPTSWAP_SITE"]);
}

#[test]
fn expected_bandwidths_of_a_site_become_weights() {
    let drives = Drives::new(2);
    let [first, second] = [0, 1].map(|drive| drives.paths()[drive].display().to_string());
    let text = format!(
        "[[nodes]]\nhosts = \"*\"\n\
         [[nodes.drives]]\npath = \"{first}\"\nmixed_gb_per_s = 3.0\n\
         [[nodes.drives]]\npath = \"{second}\"\nmixed_gb_per_s = 1.0\n"
    );
    let site = drives.write("site.toml", &text);
    let small = drives.write("small.toml", "[drives]\nstripe_unit = \"4KiB\"\n");
    bench(&["--site", &site, "--config", &small], &[]).expect(0, &[]);
    let bytes = |drive: usize| {
        let shard = drives.paths()[drive].join("optswap/default/shard-00000/state");
        std::fs::metadata(shard).unwrap().len() as f64
    };
    let share = bytes(0) / (bytes(0) + bytes(1));
    assert!((share - 0.75).abs() < 0.02, "{share}");
}

#[test]
fn checkpoints_go_where_the_site_says_if_nothing_else_does() {
    let drives = Drives::new(1);
    let folder = drives.path().join("saved");
    std::fs::create_dir(&folder).unwrap();
    let text = format!(
        "[[nodes]]\nhosts = \"*\"\n[[nodes.drives]]\npath = \"{}\"\n\
         [checkpoints]\ndir = \"{}\"\n",
        drives.paths()[0].display(),
        folder.display()
    );
    let site = drives.write("site.toml", &text);
    let mut job = vec!["--site", &site, "--steps", "2"];
    job.extend(TINY);
    alone(&train_lm(), &job).expect(0, &[]);
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0, "it does not save");
    job.extend(["--checkpoint-every", "1"]);
    alone(&train_lm(), &job).expect(0, &[]);
    assert!(folder.join("default/step-00000002").exists());
    std::fs::remove_dir_all(folder.join("default")).unwrap();
    // So they do if the configuration asks for them; without a site there is no place.
    let config = drives.write("saves.toml", "[checkpoint]\nevery = 2\n");
    let drive = drives.list(1);
    let mut job = vec!["--config", &config, "--drives", &drive, "--steps", "2"];
    job.extend(TINY);
    alone(&train_lm(), &job).expect(64, &["checkpoint.every = 2", "the site's description"]);
    job.extend(["--site", &site]);
    alone(&train_lm(), &job).expect(0, &[]);
    assert!(folder.join("default/step-00000002").exists());
}

#[test]
fn a_drive_that_a_site_counts_and_that_is_missing_stops_the_job() {
    let drives = Drives::new(2);
    let text = |count: u64| {
        let path = format!("path = \"{}/drive*\"", drives.path().display());
        format!("[[nodes]]\nhosts = \"*\"\n[[nodes.drives]]\n{path}\ncount = {count}\n")
    };
    let site = drives.write("two.toml", &text(2));
    bench(&["--site", &site], &[]).expect(0, &[]);
    let site = drives.write("three.toml", &text(3));
    bench(&["--site", &site], &[]).expect(69, &["not as many drives", "told 3", "found 2"]);
}
