//! From the command line to a rank that runs.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;

use crate::SwapArgs;
use optswap::internals::coord::Communicator;
use optswap::internals::error::{Error, Result};
use optswap::internals::job::{Launcher, run_main};

/// The whole `main` of a training program: parses the command line, starts MPI, logs and signal
/// handling as the flags and the configuration say, runs `body` with the arguments and this rank's
/// communicator, and gives the process's exit code.
///
/// Wrong usage ends with exit code 64 and `--help` with 0, before `body`; both are printed by one
/// rank. An error of `body` that all ranks have agreed on is printed once, and all ranks leave with
/// its exit code. Any other error, or a panic, is printed by its rank and ends the whole job.
///
/// ```no_run
/// use std::process::ExitCode;
///
/// use clap::Parser;
/// use optswap_args::{SwapArgs, say};
///
/// /// Trains a model.
/// #[derive(Debug, Parser)]
/// struct Args {
///     #[command(flatten)]
///     swap: SwapArgs,
///
///     /// Training steps.
///     #[arg(long, default_value_t = 60)]
///     steps: u64,
/// }
///
/// impl AsRef<SwapArgs> for Args {
///     fn as_ref(&self) -> &SwapArgs {
///         &self.swap
///     }
/// }
///
/// fn main() -> ExitCode {
///     optswap_args::main(|args: Args, comm| {
///         let config = args.swap.resolve()?;
///         let (rank, ranks, drives) = (comm.rank().0, comm.size(), config.drives.paths);
///         say(format_args!("rank {rank} of {ranks}: {} steps on {drives:?}", args.steps))
///     })
/// }
/// ```
pub fn main<T: Parser + AsRef<SwapArgs>>(
    body: impl FnOnce(T, Arc<dyn Communicator>) -> Result<()>,
) -> ExitCode {
    let args: T = match parse() {
        Ok(args) => args,
        Err(code) => return code,
    };
    let launch = args.as_ref().launch();
    run_main(&launch, |comm| body(args, comm))
}

/// Parses the command line. Wrong usage is printed by one rank.
///
/// # Errors
/// The exit code to end with: 64 for wrong usage, or 0 after `--help` and `--version`.
pub fn parse<T: Parser>() -> Result<T, ExitCode> {
    T::try_parse().map_err(|error| {
        let launcher = Launcher::detect(&|name| std::env::var(name).ok());
        if launcher.rank.unwrap_or(0) == 0 {
            // A closed terminal is no reason for another exit code.
            let _ = error.print();
        }
        if error.use_stderr() {
            ExitCode::from(Error::usage("").exit_code())
        } else {
            ExitCode::SUCCESS
        }
    })
}
