//! `optswap bench`: the swapper alone.

use std::path::PathBuf;
use std::rc::Rc;

use clap::{Args, ValueEnum};
use half::{bf16, f16};

use super::args::SwapArgs;
use crate::config::Config;
use crate::coord::{Communicator, agree, gather_all};
use crate::error::{Error, ErrorKind, Result};
use crate::job::stop_request;
use crate::optim::GradElem;
use crate::partition::Run;
use crate::report::{BenchResult, DriveInfo, Machine, OverRanks, rank_table, slowest, timer_table};
use crate::state::{Inventory, Parameter};
use crate::step::{
    Gradients, StepOptions, Stop, SwappedOptimizer, Verifier, fill_synthetic_gradients,
    fill_synthetic_masters,
};
use crate::storage::Drive;
use crate::units::Elems;

/// The largest synthetic parameter, so that a benchmark has several.
const PARAM_ELEMS_MAX: u64 = 16 << 20;

#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    #[command(flatten)]
    pub swap: SwapArgs,

    /// Parameters of the model, such as 64Mi, over all ranks.
    #[arg(long, value_name = "COUNT", default_value = "64Mi")]
    params: Elems,

    /// Measured steps.
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

    /// Write the result to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum GradientFormat {
    F32,
    Bf16,
    F16,
}

pub(super) fn run(args: &BenchArgs, comm: &Rc<dyn Communicator>) -> Result<()> {
    match args.gradients {
        GradientFormat::F32 => run_with(args, comm, |gradient| gradient),
        GradientFormat::Bf16 => run_with(args, comm, bf16::from_f32),
        GradientFormat::F16 => run_with(args, comm, f16::from_f32),
    }
}

fn run_with<G: GradElem>(
    args: &BenchArgs,
    comm: &Rc<dyn Communicator>,
    convert: impl Fn(f32) -> G,
) -> Result<()> {
    let config = agree(&**comm, args.swap.resolve())?;
    let inventory = agree(&**comm, inventory(args.params.0))?;
    let mut optimizer = SwappedOptimizer::create(&config, inventory, Rc::clone(comm))?;
    let flat_start = optimizer.partition().flat().start;
    let fill = |run: &Run, masters: &mut [f32]| {
        fill_synthetic_masters(args.seed, flat_start + run.shard_offset, masters);
        Ok(())
    };
    let elems = optimizer.partition().elems() as usize;
    let mut params = vec![bf16::ZERO; elems];
    optimizer.initialize_parameters_into(&mut params, fill)?;
    let mut verifier = match args.verify {
        true => Some(Verifier::new(&optimizer, fill)?),
        false => None,
    };

    let mut shard: Vec<G> = vec![convert(0.0); elems];
    let mut seconds = Vec::new();
    for step in 1..=args.warmup + args.steps {
        if step == args.warmup + 1 {
            optimizer.reset_records();
            seconds.clear();
        }
        fill_synthetic_gradients(args.seed, step, flat_start, &mut shard, &convert);
        comm.barrier()?;
        let gradients = Gradients::of_shard(optimizer.partition(), &shard)?;
        let stop = if stop_request().is_some() { Stop::AfterThisStep } else { Stop::No };
        let options = StepOptions { stop, ..StepOptions::default() };
        let outcome = optimizer.step(&gradients, &mut params, options)?;
        if outcome.stop {
            optimizer.close();
            let stopped = format!("stopped by a signal after step {step}: nothing is measured");
            return Err(Error::new(ErrorKind::Terminated, stopped).agreed());
        }
        seconds.push(outcome.duration.as_secs_f64());
        if let Some(verifier) = &mut verifier {
            let widened: Vec<f32> = shard.iter().map(|gradient| gradient.load()).collect();
            verifier.step(&optimizer, &outcome, &widened);
            verifier.check_with(&mut optimizer, &params)?;
        }
    }

    let all_seconds: Vec<Vec<f64>> = gather_all(&**comm, &seconds)?;
    let records = optimizer.gather_records()?;
    let digest = optimizer.state_digest_with(&params)?;
    optimizer.close();
    let machine = machine(&config, &**comm);
    let command = std::env::args().collect();
    let verified = args.verify;
    let result = BenchResult::new(
        command,
        machine,
        config,
        args.warmup,
        slowest(&all_seconds),
        digest,
        verified,
        records,
    );
    let written = if comm.rank().0 == 0 { publish(args, &result, &all_seconds) } else { Ok(()) };
    agree(&**comm, written)
}

fn inventory(params: u64) -> Result<Inventory> {
    let count = params.div_ceil(PARAM_ELEMS_MAX);
    let parameter = |index: u64| {
        let elems = PARAM_ELEMS_MAX.min(params - index * PARAM_ELEMS_MAX);
        Parameter::new(format!("synthetic.{index}"), [elems as usize])
    };
    Inventory::new((0..count).map(parameter).collect())
}

fn machine(config: &Config, comm: &dyn Communicator) -> Machine {
    let describe = |path: &PathBuf| {
        let drive = Drive::inspect(path, &config.drives.allow_filesystems);
        let file_system = drive.map_or_else(|_| "unknown".to_owned(), |drive| drive.filesystem);
        DriveInfo { path: path.clone(), file_system }
    };
    Machine {
        host: comm.host().to_owned(),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        drives: config.drives.paths.iter().map(describe).collect(),
    }
}

fn publish(args: &BenchArgs, result: &BenchResult, seconds: &[Vec<f64>]) -> Result<()> {
    println!("{}", rank_table(&result.rank_records, seconds));
    println!("{}", timer_table(&result.rank_records));
    let over = OverRanks::of(&result.step_seconds);
    let (min, max) = over.map_or((0.0, 0.0), |over| (over.min, over.max));
    println!(
        "step {:.3} s median, {min:.3} min, {max:.3} max over {} steps; {:.1} ns per parameter; \
         {:.2} B read and {:.2} B written per parameter",
        result.step_seconds_median,
        result.steps,
        result.ns_per_param,
        result.bytes_read_per_param,
        result.bytes_written_per_param,
    );
    println!(
        "state digest {}{}",
        result.state_digest,
        if result.verified { ", verified" } else { "" }
    );
    let Some(path) = &args.json else { return Ok(()) };
    let refused = |error: std::io::Error| {
        Error::new(ErrorKind::CannotCreate, "the result cannot be written")
            .with("file", path.display())
            .because(error)
    };
    let text = serde_json::to_string_pretty(result)
        .map_err(|error| Error::internal("the result is no JSON").because(error))?;
    std::fs::write(path, text + "\n").map_err(refused)
}
