//! Trains a byte-level language model, data-parallel under MPI, with its whole Adam state on
//! drives.
//!
//! ```text
//! launch/ranks 2 target/release/examples/train_lm --drives /nvme0/me,/nvme1/me --verify
//! ```
//!
//! The model's own threads are candle's: `RAYON_NUM_THREADS` says how many, and `launch/ranks` sets
//! it to each rank's part of the processors.
//!
//! One step: every rank computes gradients for its part of the batch; they are added in rank order
//! at the rank that owns each shard; its swapped optimizer steps; the updated bf16 parameters come
//! back to all. The model and the text are in `train_lm/`; what concerns optswap is here.

mod data;
mod model;
mod progress;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use half::bf16;
use optswap::config::{AccumulateIn, Config, GradientPlace};
use optswap::coord::{Communicator, agree, all_gather, gather_all, reduce_scatter};
use optswap::error::{Error, ErrorKind, Result};
use optswap::internals::telemetry::{RunResult, bytes_per_param, rank_table, world_report};
use optswap::job::{self, Origin, Training};
use optswap::partition::Run;
use optswap::state::{Inventory, Parameter};
use optswap::step::{Gradients, RankRecord, StepOptions, StepOutcome, SwappedOptimizer, Verifier};
use optswap_args::{self as cli, SwapArgs, say};
use serde::{Deserialize, Serialize};

use data::Corpus;
use model::{Model, ModelConfig};
use progress::Progress;

/// Train a byte-level language model with its optimizer state on drives.
#[derive(Debug, Parser)]
#[command(name = "train_lm", version, help_expected = true)]
struct Args {
    #[command(flatten)]
    swap: SwapArgs,

    /// Text to train on [default: the licence texts of the system].
    #[arg(long, value_name = "FILE", num_args = 1..)]
    text: Vec<PathBuf>,

    /// Training steps.
    #[arg(long, value_name = "N", default_value_t = 60)]
    steps: u64,

    /// Seed of initial weights and data order.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Sequences of a step, over all ranks.
    #[arg(long, value_name = "N", default_value_t = 16)]
    batch: usize,

    /// Steps between two validations.
    #[arg(long, value_name = "N", default_value_t = 10)]
    validate_every: u64,

    /// Learning rate; overrides the configuration file.
    #[arg(long, value_name = "RATE")]
    lr: Option<f64>,

    /// Keep a second AdamW in memory and compare master, moments and step count, bit for bit, after
    /// every step; a difference ends the job with exit code 70.
    #[arg(long)]
    verify: bool,

    /// Write the result to this file, as JSON: for `optswap report`.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Transformer blocks.
    #[arg(long, value_name = "N", default_value_t = 4)]
    layers: usize,

    /// Width of the residual stream.
    #[arg(long, value_name = "N", default_value_t = 256)]
    dim: usize,

    /// Attention heads.
    #[arg(long, value_name = "N", default_value_t = 4)]
    heads: usize,

    /// Bytes that the model looks back on.
    #[arg(long, value_name = "N", default_value_t = 128)]
    context: usize,
}

/// Windows of the validation text that are looked at.
const VALIDATION_WINDOWS: usize = 32;

fn main() -> ExitCode {
    let args: Args = match cli::parse() {
        Ok(args) => args,
        Err(code) => return code,
    };
    job::run_main(&args.swap.launch(), |comm| train(&args, &comm))
}

/// What does not change during training.
struct Task {
    config: Config,
    model: ModelConfig,
    corpus: Corpus,
}

impl Task {
    fn read(args: &Args) -> Result<Self> {
        let mut config = args.swap.resolve()?;
        config.optimizer.lr = args.lr.unwrap_or(config.optimizer.lr);
        config.validate()?;
        let model = ModelConfig {
            layers: args.layers,
            dim: args.dim,
            heads: args.heads,
            context: args.context,
        };
        model.validate().map_err(Error::usage)?;
        if args.batch == 0 || args.validate_every == 0 {
            return Err(Error::usage("--batch and --validate-every must be at least 1"));
        }
        let gradients = &config.gradients;
        if args.verify
            && gradients.place != GradientPlace::Caller
            && gradients.accumulate_in == AccumulateIn::Bf16
        {
            return Err(Error::usage("--verify compares steps with f32 gradients")
                .hint("set gradients.accumulate_in = \"f32\""));
        }
        let default = if args.text.is_empty() { Corpus::default_paths() } else { Vec::new() };
        let paths = if args.text.is_empty() { &default } else { &args.text };
        let corpus = Corpus::read(paths, args.context)
            .map_err(|message| Error::usage(message).hint("choose a text with --text FILE"))?;
        Ok(Self { config, model, corpus })
    }
}

fn train(args: &Args, comm: &Arc<dyn Communicator>) -> Result<()> {
    let Task { config, model: model_config, corpus } = agree(&**comm, Task::read(args))?;

    let parameters = model_config.parameters().into_iter();
    let parameters = parameters.map(|(name, shape)| Parameter::new(name, shape));
    let inventory = agree(&**comm, Inventory::new(parameters.collect()))?;
    let fill = |run: &Run, masters: &mut [f32]| {
        let (param, offset) = (run.param.index(), run.param_offset as usize);
        model_config.fill_initial(args.seed, param, offset, masters);
        Ok(())
    };
    let bar = cli::bytes_bar("checkpoint", comm.rank().0 == 0);
    let mut shard_params = Vec::new();
    let (mut training, origin) =
        Training::start(&config, inventory, Arc::clone(comm), Some(bar), &mut shard_params, fill)?;
    let mut verifier = match args.verify {
        true => Some(Verifier::of_state(training.optimizer_mut(), &shard_params)?),
        false => None,
    };

    let mut replica = Replica::new(training.optimizer(), model_config.clone(), shard_params)?;
    replica.collect_parameters(&**comm)?;
    let progress = Progress::new(args.steps, origin.attempt(), comm.rank().0 == 0);
    let byte_entropy = corpus.byte_entropy();
    let past: Past = match serde_json::from_slice(origin.user_blob()) {
        Ok(past) => past,
        Err(_) => Past { loss_first: replica.validation_loss(&**comm, &corpus)? },
    };
    if origin == Origin::Fresh {
        progress.validation(0, past.loss_first, byte_entropy);
    }
    let mut loss_last = match origin.attempt() < args.steps {
        true => past.loss_first,
        false => replica.validation_loss(&**comm, &corpus)?,
    };
    let mut step_seconds = Vec::new();
    for step in origin.attempt() + 1..=args.steps {
        let batch = corpus.batch(args.seed, step, args.batch, comm.rank().index(), comm.size());
        let loss_scale = training.optimizer().loss_scaler().scale();
        let loss = replica.reduce_gradients(&**comm, &batch, args.batch, loss_scale)?;
        if let Some(verifier) = &verifier {
            // What the last step left on the drives, just before it is used again.
            verifier.check_with(training.optimizer_mut(), &replica.shard_params)?;
        }
        let user_blob = past.to_bytes();
        let options = StepOptions { user_blob: &user_blob, ..StepOptions::default() };
        let outcome = replica.step(&mut training, options)?;
        if let Some(verifier) = &mut verifier {
            verifier.step(training.optimizer(), &outcome, &replica.shard_gradients);
        }
        replica.collect_parameters(&**comm)?;
        step_seconds.push(outcome.duration.as_secs_f64());
        progress.step(loss, outcome.grad_norm, outcome.duration);
        if step % args.validate_every == 0 || step == args.steps {
            loss_last = replica.validation_loss(&**comm, &corpus)?;
            progress.validation(step, loss_last, byte_entropy);
        }
    }
    if let Some(verifier) = &verifier {
        verifier.check_with(training.optimizer_mut(), &replica.shard_params)?;
    }
    progress.finish();

    // What the last step wrote counts when it has arrived.
    training.optimizer_mut().flush()?;
    let records = training.optimizer().gather_records()?;
    let seconds: Vec<Vec<f64>> = gather_all(&**comm, &step_seconds)?;
    // Every parameter has a gradient in every step.
    let steps_skipped = training.optimizer().attempts().saturating_sub(updates(&training));
    let state_digest = training.optimizer_mut().state_digest_with(&replica.shard_params)?;
    let params = training.optimizer().plan().inventory().total_elems();
    if comm.rank().0 == 0 {
        let endurance = config.report.drive_endurance;
        let report = world_report(&records, endurance);
        [rank_table(&records, &seconds), report].iter().try_for_each(say)?;
        let result = serde_json::json!({
            "ranks": comm.size(),
            "drives": config.drives.paths.len(),
            "params": params,
            "steps": args.steps,
            "steps_before": origin.attempt(),
            "steps_skipped": steps_skipped,
            "loss_first": past.loss_first,
            "loss_last": loss_last,
            "byte_entropy": byte_entropy,
            "loss_unit": "nats per byte, validation",
            "bytes_read_per_param": bytes_per_param(&records, RankRecord::read_bytes),
            "bytes_written_per_param": bytes_per_param(&records, RankRecord::written_bytes),
            "kernel_bytes_read_per_param": bytes_per_param(&records, |r| r.kernel_read_bytes),
            "kernel_bytes_written_per_param":
                bytes_per_param(&records, |r| r.kernel_written_bytes),
            "verified": args.verify,
            "state_digest": state_digest,
        });
        say(result)?;
    }
    let written = match &args.json {
        Some(path) if comm.rank().0 == 0 => {
            write_result(path, &RunResult::new(&config, job::command_line(), records))
        }
        _ => Ok(()),
    };
    agree(&**comm, written)?;
    // Last of all: what is on the drives goes now.
    training.finish(&replica.shard_params)
}

fn write_result(path: &Path, result: &RunResult) -> Result<()> {
    let text = serde_json::to_string(result).map_err(std::io::Error::other);
    text.and_then(|text| std::fs::write(path, text + "\n")).map_err(|error| {
        Error::new(ErrorKind::CannotCreate, "the result cannot be written")
            .with("file", path.display())
            .because(error)
    })
}

/// Updates that this rank's first parameter took.
fn updates(training: &Training) -> u64 {
    let optimizer = training.optimizer();
    let first = optimizer.partition().pieces().first();
    first.map_or(u64::MAX, |piece| optimizer.update_count(piece.param))
}

/// What a job that goes on must know of its past, beside its state.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Past {
    loss_first: f64,
}

impl Past {
    fn to_bytes(self) -> Vec<u8> {
        serde_json::to_vec(&self).unwrap_or_default()
    }
}

/// One rank's copy of the model, and its share of gradients and parameters.
struct Replica {
    model: Model,
    ranges: Vec<Range<usize>>,
    /// Gradients of all parameters, of this rank's part of the batch.
    gradients: Vec<f32>,
    /// Gradients of this rank's shard, of the whole batch.
    shard_gradients: Vec<f32>,
    /// bf16 parameters of this rank's shard, as the optimizer emits them.
    shard_params: Vec<bf16>,
    /// bf16 parameters of the whole model.
    params: Vec<bf16>,
}

impl Replica {
    fn new(
        optimizer: &SwappedOptimizer,
        config: ModelConfig,
        shard_params: Vec<bf16>,
    ) -> Result<Self> {
        let total = optimizer.plan().inventory().total_elems() as usize;
        let shard = optimizer.partition().elems() as usize;
        let ranges = optimizer.plan().ranges().iter();
        Ok(Self {
            model: Model::new(config).map_err(model_error)?,
            ranges: ranges.map(|range| range.start as usize..range.end as usize).collect(),
            gradients: vec![0.0; total],
            shard_gradients: vec![0.0; shard],
            shard_params,
            params: vec![bf16::ZERO; total],
        })
    }

    /// Collective: every rank gets the parameters of all shards.
    fn collect_parameters(&mut self, comm: &dyn Communicator) -> Result<()> {
        all_gather(comm, &self.shard_params, &self.ranges, &mut self.params)?;
        let widened: Vec<f32> = self.params.iter().map(|param| param.to_f32()).collect();
        self.model.load(&widened).map_err(model_error)
    }

    /// Collective: gradients of the mean loss over the whole batch, each shard's at its owner.
    /// They are `loss_scale` times as large. Gives that loss.
    fn reduce_gradients(
        &mut self,
        comm: &dyn Communicator,
        part: &[&[u8]],
        batch: usize,
        loss_scale: f32,
    ) -> Result<f64> {
        let share = part.len() as f32 / batch as f32;
        let mut loss = 0.0;
        if part.is_empty() {
            self.gradients.fill(0.0);
        } else {
            let gradients = &mut self.gradients;
            let computed = self.model.loss_and_gradients(part, loss_scale, gradients);
            loss = computed.map_err(model_error)?;
            self.gradients.iter_mut().for_each(|gradient| *gradient *= share);
        }
        reduce_scatter(comm, &self.gradients, &self.ranges, &mut self.shard_gradients)?;
        sum_over_ranks(comm, f64::from(loss * share))
    }

    /// Collective: a step with the gradients of this rank's shard, borrowed or handed over as the
    /// configuration says.
    fn step(&mut self, training: &mut Training, options: StepOptions<'_>) -> Result<StepOutcome> {
        if training.optimizer().plan().config().gradients.place == GradientPlace::Caller {
            let partition = training.optimizer().partition();
            let gradients = Gradients::of_shard(partition, &self.shard_gradients)?;
            return training.step(&gradients, &mut self.shard_params, options);
        }
        // Backward gives the last parameters first.
        let pieces = training.optimizer().partition().pieces().to_vec();
        for piece in pieces.iter().rev() {
            let gradient = &self.shard_gradients[piece.in_shard()];
            let optimizer = training.optimizer_mut();
            optimizer.swap_out_gradients(piece.param, piece.param_offset, gradient, true)?;
        }
        training.step_gradients(&mut self.shard_params, options)
    }

    /// Collective: mean loss over the validation windows, each rank looking at its part.
    fn validation_loss(&self, comm: &dyn Communicator, corpus: &Corpus) -> Result<f64> {
        let windows = corpus.validation(VALIDATION_WINDOWS);
        let (rank, size) = (comm.rank().index(), comm.size());
        let part = &windows[windows.len() * rank / size..windows.len() * (rank + 1) / size];
        let loss = match part {
            [] => 0.0,
            part => self.model.loss(part).map_err(model_error)?,
        };
        sum_over_ranks(comm, f64::from(loss) * part.len() as f64 / windows.len() as f64)
    }
}

/// Adds in rank order, so that every rank has the same bits.
fn sum_over_ranks(comm: &dyn Communicator, value: f64) -> Result<f64> {
    Ok(gather_all(comm, &value)?.into_iter().sum())
}

fn model_error(error: candle_core::Error) -> Error {
    Error::internal("the model failed").because(error)
}
