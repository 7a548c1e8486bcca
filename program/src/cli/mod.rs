//! The command line: a file for each command, with its flags. A command takes values from the
//! library, `measure` or `forecast`, has `report` make text of them, and prints that on rank 0. An
//! error becomes the process's exit code.
//!
//! A new command is a file here, a variant of [`Command`] and a line in [`run`].

mod bench;
mod compare;
mod completions;
mod doctor;
mod explain;
mod init;
mod inspect;
mod maintenance;
mod man;
mod out;
mod plan;
mod plan_nodes;
mod probe;
mod report;
mod top;
mod tune;
mod version;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use optswap::internals::job;
use optswap_args::parse;

/// Optimizer state on NVMe drives, for training under MPI.
#[derive(Debug, Parser)]
#[command(name = "optswap", version, about, help_expected = true)]
#[command(long_version = version::LONG_VERSION.as_str())]
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
    Bench(Box<bench::BenchArgs>),
    /// Lay results of the benchmark side by side: weak and strong scaling, or other settings.
    Compare(compare::CompareArgs),
    /// Explain a configuration file, optswap's or DeepSpeed's.
    Config(explain::ConfigArgs),
    /// Tell what this machine can do, what stops it, and what to do about it.
    ///
    /// Exit code 69 if anything stops optswap, 0 otherwise. The drives are tried with a small file.
    Doctor(doctor::DoctorArgs),
    /// Put a model's weights onto drives: a durable job before its first step.
    ///
    /// Weights are streamed from safetensors files of any floating-point type; memory holds the
    /// swapper's buffers. Start it with as many ranks as the training will have.
    Init(Box<init::InitArgs>),
    /// Tell what lies on drives, parameter by parameter, after comparing it with its checksums.
    Inspect(inspect::InspectArgs),
    /// Tell what a model on a site will need, and how long its steps will take.
    ///
    /// Space, bytes and life of each drive, memory, seconds of a step and what binds; and a
    /// simulation of all ranks, whose drives and collectives vary.
    Plan(Box<plan::PlanArgs>),
    /// Measure what drives can do, in seconds, and keep it beside the data.
    ///
    /// Each drive by itself: reading, writing, both; then all drives of a node at once, which shows
    /// what they share. Under mpirun, the first rank of each node measures, all nodes at once.
    Probe(Box<probe::ProbeArgs>),
    /// Find chunk, depth, stripe unit and weights for the drives at hand, and write them down.
    ///
    /// Under a minute, on all ranks at once. What is found is taken only if steps gain by it.
    Tune(Box<tune::TuneArgs>),
    /// Make a page of results: pictures and tables in one file of HTML; and a summary here.
    Report(report::ReportArgs),
    /// Watch a job: ranks, drives, rates, from the metrics files in its report directory.
    Top(top::TopArgs),
    /// List the jobs on drives; remove those that are dead.
    Clean(maintenance::CleanArgs),
    /// Compare what lies on drives, or in a checkpoint, with its checksums.
    Verify(maintenance::VerifyArgs),
    /// Repair corrupt chunks on drives from a checkpoint of the same step.
    Scrub(maintenance::ScrubArgs),
    /// Write a checkpoint as safetensors files: masters and moments under the model's own names.
    Export(maintenance::ExportArgs),
    /// Make a checkpoint of safetensors files.
    Import(maintenance::ImportArgs),
    /// Print what a shell needs to complete commands and flags.
    ///
    /// For bash: optswap completions bash > ~/.local/share/bash-completion/completions/optswap
    Completions(completions::CompletionsArgs),
    /// Write man pages: one for the program and one for each of its commands.
    Man(man::ManArgs),
}

/// Runs the program.
pub fn run() -> ExitCode {
    let cli: Cli = match parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    match cli.command {
        Command::Bench(args) => job::run_main(&args.swap.launch(), |comm| bench::run(&args, &comm)),
        Command::Compare(args) => job::run_tool(|| compare::run(&args)),
        Command::Config(args) => job::run_tool(|| explain::run(&args)),
        Command::Doctor(args) => job::run_tool(|| doctor::doctor(&args)),
        Command::Init(args) => job::run_main(&args.swap.launch(), |comm| init::run(&args, &comm)),
        Command::Inspect(args) => job::run_tool(|| inspect::run(&args)),
        Command::Plan(args) => job::run_main(&plan::launch(), |comm| plan::run(&args, &comm)),
        Command::Probe(args) => job::run_main(&args.swap.launch(), |comm| probe::run(&args, &comm)),
        Command::Tune(args) => job::run_main(&args.swap.launch(), |comm| tune::run(&args, &comm)),
        Command::Report(args) => job::run_tool(|| report::run(&args)),
        Command::Top(args) => job::run_tool(|| top::run(&args)),
        Command::Clean(args) => job::run_tool(|| maintenance::clean(&args)),
        Command::Verify(args) => job::run_tool(|| maintenance::verify(&args)),
        Command::Scrub(args) => job::run_tool(|| maintenance::scrub(&args)),
        Command::Export(args) => job::run_tool(|| maintenance::export(&args)),
        Command::Import(args) => job::run_tool(|| maintenance::import(&args)),
        Command::Completions(args) => job::run_tool(|| completions::run(&args, Cli::command())),
        Command::Man(args) => job::run_tool(|| man::run(&args, Cli::command())),
    }
}
