//! The command line. Rank 0 prints; errors become exit codes; nothing is decided here that a test
//! would want to reach.

mod args;
mod bench;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::job;

pub use args::{SwapArgs, parse};

/// Optimizer state on NVMe drives, for training under MPI.
#[derive(Debug, Parser)]
#[command(name = "optswap", version, about, help_expected = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure the swapper alone: synthetic gradients, no training.
    ///
    /// Start it with mpirun for several ranks. Step time is the slowest rank's, from the start of
    /// the step until everything is on the drives and agreed.
    Bench(bench::BenchArgs),
}

/// Runs the program.
pub fn run() -> ExitCode {
    let cli: Cli = match parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    match cli.command {
        Command::Bench(args) => job::run_main(&args.swap.launch(), |comm| bench::run(&args, &comm)),
    }
}
