//! `optswap doctor`: what this machine can do, what stops it, and what to do about it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;

use crate::report::{
    Check, ExaminedDrive, State, drive_checks, limit_checks, machine_checks, mpi_check,
    slurm_check, uring_check,
};
use optswap::internals::config::{Config, MachineFacts};
use optswap::internals::error::{Error, ErrorKind, Result};
use optswap::internals::io::UringTrial;
use optswap::internals::job::{ChosenDrives, Launcher, choose_drives, mpi_library, no_drive_named};
use optswap::internals::storage::{Device, Drive, DriveProfile};
use optswap::internals::units::counted;
use optswap_args::say;

#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// Configuration file (TOML): its drives, engine and memory budget.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// One directory on each drive, separated by commas, with wildcards.
    #[arg(long, value_name = "DIR,DIR", value_delimiter = ',')]
    drives: Vec<PathBuf>,

    /// Description of the site (TOML): which drives its nodes have [default: $OPTSWAP_SITE].
    #[arg(long, value_name = "FILE")]
    site: Option<PathBuf>,

    /// Ranks on this node, whose buffers memory must hold [default: as the launcher says, else 1].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    ranks_per_node: Option<u64>,

    /// Force a file system that would be refused, such as tmpfs; may be repeated.
    #[arg(long, value_name = "NAME")]
    allow_fs: Vec<String>,

    /// Print JSON: host, number of problems and warnings, checks.
    #[arg(long)]
    json: bool,
}

pub(super) fn doctor(args: &DoctorArgs) -> Result<()> {
    let mut config = match &args.config {
        Some(path) => Config::read(path)?,
        None => Config::default(),
    };
    config.drives.allow_filesystems.extend_from_slice(&args.allow_fs);
    let chosen = choose_drives(&args.drives, &config.drives.paths, args.site.as_deref())?;

    let facts = MachineFacts::probe();
    let launcher = Launcher::detect(&|name| std::env::var(name).ok());
    let ranks = args.ranks_per_node.or(launcher.local_size.map(|size| size as u64)).unwrap_or(1);
    let mut checks = machine_checks(&facts, ranks, config.swap.memory_budget);
    checks.insert(1, uring_check(&UringTrial::run(), &facts, config.io.engine));
    checks.extend(limit_checks(&facts, config.swap.memory_budget));
    checks.push(threads_check());
    checks.extend(mpi_checks(&launcher));
    match chosen {
        Some(ChosenDrives { paths, .. }) => {
            let examine =
                |path: &PathBuf| examine(path, &config.drives.allow_filesystems, &config.job);
            let drives: Vec<ExaminedDrive> = paths.iter().map(examine).collect();
            checks.extend(drive_checks(&drives, &facts));
        }
        // Without drives, the machine can still be judged.
        None => {
            let error = no_drive_named();
            let fix = error.help().unwrap_or_default();
            checks.push(Check::warning("drives", error.sentence(), fix));
        }
    }
    publish(args, &facts, &checks)
}

fn examine(root: &Path, allow_filesystems: &[String], job: &str) -> ExaminedDrive {
    let (inspected, trial) = match Drive::try_out(root, allow_filesystems, job) {
        Ok((drive, trial)) => (Ok(drive), Some(trial)),
        Err(error) => (Err(error), None),
    };
    let profile = inspected.is_ok().then(|| DriveProfile::read(root));
    ExaminedDrive {
        root: root.to_owned(),
        inspected,
        device: Device::of(root).ok(),
        trial,
        profile,
    }
}

/// The I/O thread, the pool of threads and the update threads all need to be started.
fn threads_check() -> Check {
    match std::thread::Builder::new().spawn(|| ()) {
        Ok(_) => Check::ok("threads", "can be started"),
        Err(error) => Check::problem(
            "threads",
            format!("cannot be started: {error}"),
            "raise the limit of processes: ulimit -u, or the control group's pids.max",
        ),
    }
}

fn mpi_checks(launcher: &Launcher) -> Vec<Check> {
    let library = mpi_library();
    let started = match launcher.check_before_start(library.as_deref()) {
        Ok(()) => Check::ok("launcher", launcher.describe()),
        // A warning only: this command needs no ranks, but a job started in the same way would end.
        Err(error) => {
            Check { state: State::Warning, ..Check::of_error("launcher for ranks", &error) }
        }
    };
    let mut checks = vec![mpi_check(library.as_deref(), &launchers()), started];
    checks.extend(slurm_check(library.as_deref(), srun_plugins().as_deref()));
    checks
}

/// What srun says of its PMI plugins, if there is an srun; it gets five seconds.
fn srun_plugins() -> Option<String> {
    let mut command = Command::new("timeout");
    command.args(["5", "srun", "--mpi=list"]).stdin(Stdio::null());
    let output = command.output().ok().filter(|output| output.status.code() != Some(127))?;
    // Older versions list them as an error.
    Some(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

/// The launchers in PATH, and what they say to `--version`.
fn launchers() -> Vec<(String, String)> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let mut found: Vec<(String, String)> = Vec::new();
    for name in ["mpirun", "mpiexec", "mpirun.openmpi", "mpirun.mpich"] {
        let paths = std::env::split_paths(&folders).map(|folder| folder.join(name));
        let Some(path) = paths.into_iter().find(|path| path.is_file()) else { continue };
        let mut command = Command::new(&path);
        command.arg("--version").stdin(Stdio::null());
        let Ok(output) = command.output() else { continue };
        found.push((
            path.display().to_string(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        ));
    }
    found
}

fn publish(args: &DoctorArgs, facts: &MachineFacts, checks: &[Check]) -> Result<()> {
    let count = |state: State| checks.iter().filter(|check| check.state == state).count();
    let (problems, warnings) = (count(State::Problem), count(State::Warning));
    if args.json {
        let value = serde_json::json!({
            "host": facts.host,
            "version": env!("CARGO_PKG_VERSION"),
            "problems": problems,
            "warnings": warnings,
            "checks": checks,
        });
        say(value)?;
    } else {
        for Check { name, state, found, fix } in checks {
            let word = match state {
                State::Ok => "ok",
                State::Warning => "warning",
                State::Problem => "problem",
            };
            say(format_args!("{word:<8} {name}: {found}"))?;
            if let Some(fix) = fix {
                say(format_args!("{:<8} fix: {fix}", ""))?;
            }
        }
        let (some, more) =
            (counted(problems as u64, "problem"), counted(warnings as u64, "warning"));
        say(format_args!("{}: {some}, {more}", facts.host))?;
    }
    match problems {
        0 => Ok(()),
        some => Err(Error::new(
            ErrorKind::Unavailable,
            format!("optswap cannot work here: {}, see above", counted(some as u64, "problem")),
        )),
    }
}
