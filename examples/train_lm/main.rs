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

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use half::bf16;
use optswap::config::{AccumulateIn, GradientPlace};
use optswap::{
    Communicator, Config, Error, ErrorKind, Origin, Parameter, RankRecord, Result, Run, RunResult,
    Training, Verifier, agree, bytes_per_param, gather_all, rank_table, world_report,
};
use optswap_args::{SwapArgs, bytes_bar, say};
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

impl AsRef<SwapArgs> for Args {
    fn as_ref(&self) -> &SwapArgs {
        &self.swap
    }
}

fn main() -> ExitCode {
    optswap_args::main(|args: Args, comm| train(&args, &comm))
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
    let Task { config, model, corpus } = agree(&**comm, Task::read(args))?;
    let is_first = comm.rank().0 == 0;
    let parameters = model.parameters().into_iter();
    let mut job = Training::builder(&config, Arc::clone(comm))
        .parameters(parameters.map(|(name, shape)| Parameter::new(name, shape)))
        .progress(bytes_bar("checkpoint", is_first))
        .start::<bf16>(|run: &Run, masters| {
            let (param, offset) = (run.param.index(), run.param_offset as usize);
            model.fill_initial(args.seed, param, offset, masters);
            Ok(())
        })?;
    let mut verifier = None;
    if args.verify {
        let (optimizer, params) = job.optimizer_and_params();
        verifier = Some(Verifier::of_state(optimizer, params)?);
    }

    let mut replica = Replica::new(model, job.total_elems())?;
    replica.load_parameters(&mut job)?;
    let progress = Progress::new(args.steps, job.origin().attempt(), is_first);
    let byte_entropy = corpus.byte_entropy();
    let past = match job.user_state()? {
        Some(past) => past,
        None => Past { loss_first: replica.validation_loss(&**comm, &corpus)? },
    };
    job.set_user_state(&past)?;
    if *job.origin() == Origin::Fresh {
        progress.validation(0, past.loss_first, byte_entropy);
    }
    let mut loss_last = past.loss_first;
    if job.next_step(args.steps).is_none() {
        loss_last = replica.validation_loss(&**comm, &corpus)?;
    }
    let mut step_seconds = Vec::new();
    while let Some(step) = job.next_step(args.steps) {
        let batch = corpus.batch(args.seed, step, args.batch, comm.rank().index(), comm.size());
        let loss = replica.reduce_gradients(&mut job, &batch, args.batch)?;
        let (optimizer, params) = job.optimizer_and_params();
        if let Some(verifier) = &verifier {
            // What the last step left on the drives, just before it is used again.
            verifier.check(optimizer, params)?;
        }
        let outcome = job.step()?;
        if let Some(verifier) = &mut verifier {
            verifier.step(job.optimizer(), &outcome, job.shard_gradients());
        }
        replica.load_parameters(&mut job)?;
        step_seconds.push(outcome.duration.as_secs_f64());
        progress.step(loss, outcome.grad_norm, outcome.duration);
        if step.is_multiple_of(args.validate_every) || step == args.steps {
            loss_last = replica.validation_loss(&**comm, &corpus)?;
            progress.validation(step, loss_last, byte_entropy);
        }
    }
    if let Some(verifier) = &verifier {
        let (optimizer, params) = job.optimizer_and_params();
        verifier.check(optimizer, params)?;
    }
    progress.finish();
    let losses = Losses { first: past.loss_first, last: loss_last, byte_entropy };
    report(args, &config, &mut job, &losses, &step_seconds)?;
    // Last of all: what is on the drives goes now.
    job.finish()
}

/// In nats per byte of validation text.
struct Losses {
    first: f64,
    last: f64,
    byte_entropy: f64,
}

/// Collective: tables for people, a line of JSON, and the file of `--json`.
fn report(
    args: &Args,
    config: &Config,
    job: &mut Training<bf16>,
    losses: &Losses,
    step_seconds: &[f64],
) -> Result<()> {
    let comm = Arc::clone(job.optimizer().communicator());
    // What the last step wrote counts when it has arrived.
    job.optimizer_mut().flush()?;
    let records = job.optimizer().gather_records()?;
    let seconds: Vec<Vec<f64>> = gather_all(&*comm, &step_seconds.to_vec())?;
    // Every parameter has a gradient in every step.
    let steps_skipped = job.optimizer().attempts().saturating_sub(updates(job));
    let (optimizer, params) = job.optimizer_and_params();
    let state_digest = optimizer.state_digest(params)?;
    if comm.rank().0 == 0 {
        let report = world_report(&records, config.report.drive_endurance);
        [rank_table(&records, &seconds), report].iter().try_for_each(say)?;
        say(serde_json::json!({
            "ranks": comm.size(),
            "drives": config.drives.paths.len(),
            "params": job.total_elems(),
            "steps": args.steps,
            "steps_before": job.origin().attempt(),
            "steps_skipped": steps_skipped,
            "loss_first": losses.first,
            "loss_last": losses.last,
            "byte_entropy": losses.byte_entropy,
            "loss_unit": "nats per byte, validation",
            "bytes_read_per_param": bytes_per_param(&records, RankRecord::read_bytes),
            "bytes_written_per_param": bytes_per_param(&records, RankRecord::written_bytes),
            "kernel_bytes_read_per_param": bytes_per_param(&records, |r| r.kernel_read_bytes),
            "kernel_bytes_written_per_param":
                bytes_per_param(&records, |r| r.kernel_written_bytes),
            "verified": args.verify,
            "state_digest": state_digest,
        }))?;
    }
    let written = match &args.json {
        Some(path) if comm.rank().0 == 0 => {
            write_result(path, &RunResult::new(config, std::env::args().collect(), records))
        }
        _ => Ok(()),
    };
    agree(&*comm, written)
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
fn updates(job: &Training<bf16>) -> u64 {
    let optimizer = job.optimizer();
    let first = optimizer.partition().pieces().first();
    first.map_or(u64::MAX, |piece| optimizer.update_count(piece.param))
}

/// What a job that goes on must know of its past, beside its state.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Past {
    loss_first: f64,
}

/// One rank's copy of the model.
struct Replica {
    model: Model,
    /// Gradients of all parameters, of this rank's part of the batch.
    gradients: Vec<f32>,
    /// bf16 parameters of the whole model.
    params: Vec<bf16>,
}

impl Replica {
    fn new(config: ModelConfig, total: usize) -> Result<Self> {
        let model = Model::new(config).map_err(model_error)?;
        Ok(Self { model, gradients: vec![0.0; total], params: vec![bf16::ZERO; total] })
    }

    /// Collective: every rank gets the parameters of all shards.
    fn load_parameters(&mut self, job: &mut Training<bf16>) -> Result<()> {
        job.gather_parameters(&mut self.params)?;
        let widened: Vec<f32> = self.params.iter().map(|param| param.to_f32()).collect();
        self.model.load(&widened).map_err(model_error)
    }

    /// Collective: gradients of the mean loss over the whole batch, each shard's at its owner.
    /// Gives that loss.
    fn reduce_gradients(
        &mut self,
        job: &mut Training<bf16>,
        part: &[&[u8]],
        batch: usize,
    ) -> Result<f64> {
        let share = part.len() as f32 / batch as f32;
        let mut loss = 0.0;
        if part.is_empty() {
            self.gradients.fill(0.0);
        } else {
            let (gradients, loss_scale) = (&mut self.gradients, job.loss_scale());
            let computed = self.model.loss_and_gradients(part, loss_scale, gradients);
            loss = computed.map_err(model_error)?;
            self.gradients.iter_mut().for_each(|gradient| *gradient *= share);
        }
        job.reduce_gradients(&self.gradients)?;
        sum_over_ranks(&**job.optimizer().communicator(), f64::from(loss * share))
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
