//! `optswap bench`: the swapper alone.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;

use super::out::{to_json, write_to};
use crate::measure::{BenchOptions, GradientFormat, run_bench};
use crate::report::{BenchResult, BenchSetup, Limits, bench_csv, bench_tables};
use optswap::internals::coord::{Communicator, agree};
use optswap::internals::error::{Error, Result};
use optswap::internals::job::{Launcher, command_line, launcher_command, mpi_library, settings};
use optswap::internals::units::Elems;
use optswap_args::{SwapArgs, say};

#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    #[command(flatten)]
    pub swap: SwapArgs,

    /// Parameters of the model, such as 64Mi, over all ranks.
    #[arg(long, value_name = "COUNT", default_value = "64Mi")]
    params: Elems,

    /// How often the measurement is repeated.
    #[arg(long, value_name = "N", default_value_t = 5)]
    repetitions: u64,

    /// Steps of each repetition.
    #[arg(long, value_name = "N", default_value_t = 5)]
    steps: u64,

    /// Steps before those that do not count.
    #[arg(long, value_name = "N", default_value_t = 1)]
    warmup: u64,

    /// Number format of the gradients in memory.
    #[arg(long, value_enum, default_value_t = GradientFormat::Bf16)]
    gradients: GradientFormat,

    /// Seed of masters and gradients.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Compare with an in-memory AdamW, bit for bit, after every step.
    #[arg(long)]
    verify: bool,

    /// What each drive can do, in MB/s in each direction; the last value counts for all drives that
    /// follow [default: as probed, else as the site expects].
    #[arg(long, value_name = "MBPS,MBPS", value_delimiter = ',')]
    limit_mbps: Vec<f64>,

    /// A name for this run, in JSON and CSV.
    #[arg(long, value_name = "NAME")]
    label: Option<String>,

    /// Write the result to this file, as JSON; `-` is stdout.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Write the throughput of every repetition to this file, as CSV; `-` is stdout.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
}

pub(super) fn run(args: &BenchArgs, comm: &Arc<dyn Communicator>) -> Result<()> {
    let checked = args.check().and_then(|()| args.swap.resolve());
    let config = agree(&**comm, checked)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let setup = BenchSetup {
        command: command_line(),
        launcher: Launcher::detect(&|name| std::env::var(name).ok()).describe(),
        launcher_command: launcher_command(),
        environment: settings(),
        mpi: mpi_library(),
        started_at_unix_s: now.map_or(0, |now| now.as_secs()),
        label: args.label.clone(),
        config,
        options: args.options(),
    };
    let run = run_bench(comm, &setup.config, &setup.options)?;
    let limits = Limits { given_mbps: args.limit_mbps.clone() };
    let published = if comm.rank().0 == 0 {
        args.publish(&BenchResult::new(setup, run, &limits))
    } else {
        Ok(())
    };
    agree(&**comm, published)
}

impl BenchArgs {
    fn check(&self) -> Result<()> {
        if self.repetitions == 0 || self.steps == 0 {
            return Err(Error::usage("--repetitions and --steps must be at least 1"));
        }
        if !self.limit_mbps.iter().all(|mbps| mbps.is_finite() && *mbps > 0.0) {
            return Err(Error::usage("--limit-mbps must be above 0"));
        }
        Ok(())
    }

    fn options(&self) -> BenchOptions {
        BenchOptions {
            params: self.params.0,
            repetitions: self.repetitions,
            steps: self.steps,
            warmup: self.warmup,
            gradients: self.gradients,
            seed: self.seed,
            verify: self.verify,
        }
    }

    fn publish(&self, result: &BenchResult) -> Result<()> {
        // Files first: whoever reads the tables may stop half-way.
        if let Some(path) = &self.json {
            write_to(path, &to_json(result)?)?;
        }
        if let Some(path) = &self.csv {
            write_to(path, &bench_csv(result)?)?;
        }
        say(bench_tables(result))
    }
}
