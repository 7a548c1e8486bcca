//! A process as a rank of a job: how it was started, MPI, logs, panics, and the exit code. Programs
//! call [`run_main`]; a library that embeds optswap does not call it, and keeps its own hooks and
//! handlers.

mod chosen;
mod drives;
mod environment;
mod launcher;
mod logging;
mod signals;
mod site;
mod table;
mod training;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use crate::config::Config;
use crate::coord::{Communicator, Topology, agree, gather_to_first};
use crate::error::{Error, Result};
use crate::telemetry::LOSSES_TARGET;
use crate::units::Rank;

pub use chosen::ChosenDrives;
pub use drives::{choose_drives, discover_drives, no_drive_named};
pub use environment::{command_line, launcher_command, settings};
pub use launcher::Launcher;
pub use logging::LogRanks;
pub use signals::{StopRequest, stop_request};
pub use site::{NodeSite, directories_of, find_site};
pub use table::{answer_table_request, table_request};
pub use training::{Origin, Training, TrainingBuilder};

/// How [`run_main`] starts a rank.
#[derive(Clone, Debug)]
pub struct Launch {
    /// A rank that waits this long for others in one collective gives an error, unless they make
    /// progress.
    pub peer_timeout: Duration,
    /// A rank that waits this long in one collective logs a warning that names the late ranks.
    pub stall_warning: Duration,
    /// Which ranks log to the terminal.
    pub log_ranks: LogRanks,
    /// The directory in which each rank also writes its log, as lines of JSON; `None` for no such
    /// files.
    pub log_dir: Option<PathBuf>,
}

impl Default for Launch {
    /// The defaults of `[timeouts]`; rank 0 logs, to the terminal alone.
    fn default() -> Self {
        Self::of(&Config::default())
    }
}

impl Launch {
    /// Takes time-outs and the directory of logs from a configuration; rank 0 logs to the terminal.
    pub fn of(config: &Config) -> Self {
        Self {
            peer_timeout: config.peer_timeout(),
            stall_warning: config.stall_warning(),
            log_ranks: LogRanks::default(),
            log_dir: config.report.log_dir.clone(),
        }
    }
}

/// Runs this process as a rank: starts MPI where it is built in, sets up logs, signals and the
/// panic hook, runs `body`, and returns the exit code of the job.
///
/// An agreed error is printed once, by rank 0, and all ranks leave in order with its exit code. Any
/// other error, and any panic, is printed by its rank, which then ends the whole job: the others
/// may be waiting for it.
pub fn run_main(
    launch: &Launch,
    body: impl FnOnce(Arc<dyn Communicator>) -> Result<()>,
) -> ExitCode {
    signals::survive_size_limit();
    let launcher = Launcher::detect(&|name| std::env::var(name).ok());
    let world = match World::start(&launcher, launch.peer_timeout) {
        Ok(world) => world,
        Err(error) => return fail_before_start(&error),
    };
    let comm = Arc::clone(&world.comm);
    let tag = format!("[{} {}/{}]", comm.host(), comm.rank().0, comm.size());
    let file = launch.log_dir.as_deref().map(|dir| logging::open_file(dir, comm.rank()));
    let file = match agree(&*comm, file.transpose()) {
        Ok(file) => file,
        Err(error) => return end(&tag, &*comm, launch.peer_timeout, &error),
    };
    let (file, lost) = match file.transpose() {
        Ok(file) => (file, None),
        Err(error) => (None, Some(error)),
    };
    let first_of_node = launcher.local_rank == Some(0);
    logging::start(&tag, launch.log_ranks.includes(comm.rank()), first_of_node, file);
    if let (Some(error), Some(dir)) = (lost, &launch.log_dir) {
        let dir = dir.display();
        tracing::warn!(
            target: LOSSES_TARGET,
            "the log cannot be written, the job goes on without: {dir}: {error}"
        );
    }
    install_panic_hook(tag.clone());
    if let Err(error) = signals::listen(|signal| abort(128 + signal as u8)) {
        tracing::warn!("signals cannot be listened to: {error}");
    }
    let watched = world.watch_stalls(launch.stall_warning);
    let checked = watched.and_then(|()| cross_check(&launcher, &*comm));
    let result = checked.and_then(|()| body(Arc::clone(&comm)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => end(&tag, &*comm, launch.peer_timeout, &error),
    }
}

/// Prints why the job ends, and returns the exit code.
fn end(tag: &str, comm: &dyn Communicator, peer_timeout: Duration, error: &Error) -> ExitCode {
    if !error.is_agreed() {
        complain(format_args!("{tag} error: {error}"));
        if comm.size() > 1 {
            abort(error.exit_code());
        }
    } else {
        if comm.rank().0 == 0 {
            let what = if error.kind().is_stop() { "" } else { "error: " };
            complain(format_args!("{what}{error}"));
        }
        if comm.size() > 1 {
            leave_within(peer_timeout, error.exit_code());
        }
    }
    ExitCode::from(error.exit_code())
}

/// Ends all ranks after this time, unless this one has left before: MPI_Finalize waits for the
/// others without a limit, and one that hangs on its way out must not keep a job that has failed.
fn leave_within(time: Duration, exit_code: u8) {
    let watch = move || {
        std::thread::sleep(time);
        complain(format_args!(
            "error: ranks have not left within {} s (peer_timeout); the job ends",
            time.as_secs_f64()
        ));
        abort(exit_code);
    };
    // Without it the job ends all the same, if all ranks leave.
    let _ = std::thread::Builder::new().name("optswap-leave".to_owned()).spawn(watch);
}

/// What the MPI library that is built in says of itself, if one is.
pub fn mpi_library() -> Option<String> {
    #[cfg(feature = "mpi")]
    return Some(crate::coord::mpi::library_version().trim_matches('\0').to_owned());
    #[cfg(not(feature = "mpi"))]
    None
}

/// Collective: says where launcher, MPI and the names of hosts disagree, on rank 0.
fn cross_check(launcher: &Launcher, comm: &dyn Communicator) -> Result<()> {
    let topology = Topology::discover(comm)?;
    let locals: Vec<Rank> = topology.local_ranks().collect();
    let place = locals.iter().position(|rank| *rank == comm.rank()).unwrap_or(0);
    let world = (comm.rank().index(), comm.size());
    let words = launcher.disagreement(world, (place, locals.len()));
    if let Some(all) = gather_to_first(comm, &words)? {
        let all: Vec<String> = all.into_iter().flatten().collect();
        let more = match all.len() {
            0 | 1 => String::new(),
            count => format!(" (and so for {} more ranks)", count - 1),
        };
        all.first().iter().for_each(|words| tracing::warn!("{words}{more}"));
        topology.misnamed().iter().for_each(|words| tracing::warn!("{words}"));
    }
    Ok(())
}

/// Runs a tool that needs no other ranks: logs, and the exit code.
pub fn run_tool(body: impl FnOnce() -> Result<()>) -> ExitCode {
    signals::survive_size_limit();
    logging::start("optswap", true, true, None);
    match body() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!("error: {error}"));
            ExitCode::from(error.exit_code())
        }
    }
}

/// Prints an error of a rank that has not joined the others, and returns its exit code. Only rank 0
/// prints, as far as the launcher's environment says which rank this process is.
pub fn fail_before_start(error: &Error) -> ExitCode {
    let launcher = Launcher::detect(&|name| std::env::var(name).ok());
    if launcher.rank.unwrap_or(0) == 0 {
        complain(format_args!("error: {error}"));
    }
    ExitCode::from(error.exit_code())
}

/// Prints one line to stderr, in one piece, so that nothing of the launcher's comes between. Nobody
/// may be reading any more; that is no reason to panic.
fn complain(line: std::fmt::Arguments<'_>) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

fn install_panic_hook(tag: String) {
    std::panic::set_hook(Box::new(move |info| {
        complain(format_args!("{tag} error: {info}"));
        complain(format_args!("{tag} this is a bug in the program; the job ends"));
        abort(crate::error::ErrorKind::Internal.exit_code());
    }));
}

/// Ends all ranks.
fn abort(exit_code: u8) -> ! {
    #[cfg(feature = "mpi")]
    crate::coord::mpi::abort_world(exit_code);
    std::process::exit(i32::from(exit_code))
}

/// The ranks of this job. Field order is drop order: the communicator goes before MPI does.
struct World {
    comm: Arc<dyn Communicator>,
    #[cfg(feature = "mpi")]
    mpi_comm: Arc<crate::coord::mpi::MpiCommunicator>,
    #[cfg(feature = "mpi")]
    mpi: crate::coord::mpi::World,
}

impl World {
    #[cfg(feature = "mpi")]
    fn start(launcher: &Launcher, peer_timeout: Duration) -> Result<Self> {
        let library = crate::coord::mpi::library_version();
        launcher.check_before_start(Some(&library))?;
        let mpi = crate::coord::mpi::World::start()?;
        let mpi_comm = Arc::new(mpi.communicator(peer_timeout));
        launcher.check_world_size(mpi_comm.size())?;
        let comm = crate::coord::Checked::over(Arc::clone(&mpi_comm) as Arc<dyn Communicator>);
        Ok(Self { comm, mpi_comm, mpi })
    }

    /// Collective, and so not before errors of one rank can end all.
    #[cfg(feature = "mpi")]
    fn watch_stalls(&self, stall_warning: Duration) -> Result<()> {
        self.mpi.watch_stalls(&self.mpi_comm, stall_warning)
    }

    #[cfg(not(feature = "mpi"))]
    fn start(launcher: &Launcher, _peer_timeout: Duration) -> Result<Self> {
        launcher.check_before_start(None)?;
        Ok(Self { comm: Arc::new(crate::coord::Solo::default()) })
    }

    #[cfg(not(feature = "mpi"))]
    fn watch_stalls(&self, _stall_warning: Duration) -> Result<()> {
        Ok(())
    }
}
