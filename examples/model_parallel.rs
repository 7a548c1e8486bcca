//! Tensor parallelism by two, and data parallelism by all other ranks: two inventories in one job,
//! slices of every parameter, and a layer norm of which every rank's half has a copy.
//!
//! ```text
//! launch/ranks 4 target/release/examples/model_parallel --drives /nvme0/me,/nvme1/me
//! ```
//!
//! Even ranks share one half of the model, odd ranks the other. There is no model behind it:
//! masters and gradients are synthetic, functions of parameter and element, so that the state after
//! some steps is the same for any number of ranks per half. It prints its digest.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use half::bf16;
use optswap::internals::step::{fill_synthetic_gradients, fill_synthetic_masters};
use optswap::{
    Communicator, Error, Gradients, Inventory, Parameter, Result, Run, Sharding, Training,
    Verifier, agree,
};
use optswap_args::{SwapArgs, say};

/// Step synthetic gradients through two inventories, cut into slices of every parameter.
#[derive(Debug, Parser)]
#[command(name = "model_parallel", version, help_expected = true)]
struct Args {
    #[command(flatten)]
    swap: SwapArgs,

    /// Steps.
    #[arg(long, value_name = "N", default_value_t = 3)]
    steps: u64,
}

impl AsRef<SwapArgs> for Args {
    fn as_ref(&self) -> &SwapArgs {
        &self.swap
    }
}

fn main() -> ExitCode {
    optswap_args::main(|args: Args, comm| train(&args, &comm))
}

/// Half of a block: columns of the one matrix, rows of the other, and a whole layer norm.
fn half_of_model() -> Result<Inventory> {
    Inventory::new(vec![
        Parameter::new("norm.weight", [512]).replicated(),
        Parameter::new("up.weight", [512, 1024]),
        Parameter::new("down.weight", [1024, 512]),
    ])
}

fn train(args: &Args, comm: &Arc<dyn Communicator>) -> Result<()> {
    if comm.size() < 2 {
        return Err(Error::usage("a model in two halves needs two ranks at least")
            .hint("launch/ranks 4 target/release/examples/model_parallel ...")
            .with("ranks", comm.size()));
    }
    let config = agree(&**comm, args.swap.resolve())?;
    let half = comm.rank().0 % 2;
    let shared = comm.split(half)?;
    let inventory = agree(&**comm, half_of_model())?;

    // What a half has alone differs; the copies of the norm are alike.
    let seed = |run: &Run| {
        if inventory.parameter(run.param).replicated { 2 } else { u64::from(half) }
    };
    let flat = |run: &Run| inventory.flat_of(run.param, run.param_offset);
    let mut job = Training::builder(&config, Arc::clone(comm))
        .parameters(inventory.parameters().to_vec())
        .sharding(Sharding::slices().among(shared))
        .start::<bf16>(|run, masters| {
            fill_synthetic_masters(seed(run), flat(run), masters);
            Ok(())
        })?;
    let mut shard = vec![0.0f32; job.params().len()];
    let (optimizer, params) = job.optimizer_and_params();
    let mut verifier = Verifier::of_state(optimizer, params)?;
    let mut grad_norm = 0.0;
    while let Some(step) = job.next_step(args.steps) {
        for piece in job.optimizer().partition().pieces() {
            let out = &mut shard[piece.in_shard()];
            fill_synthetic_gradients(seed(piece), step, flat(piece), out, |gradient| gradient);
        }
        let outcome = job.step_on(&Gradients::Shard(&shard))?;
        let (optimizer, params) = job.optimizer_and_params();
        verifier.step(optimizer, &outcome, &shard);
        verifier.check(optimizer, params)?;
        grad_norm = outcome.grad_norm;
    }
    let (optimizer, params) = job.optimizer_and_params();
    let digest = optimizer.element_digest(params)?;
    let (ranks, inventories) = (comm.size(), optimizer.shard_group().count());
    if comm.rank().0 == 0 {
        say(serde_json::json!({
            "ranks": ranks,
            "inventories": inventories,
            "grad_norm": grad_norm,
            "element_digest": digest,
            "verified": true,
        }))?;
    }
    job.finish()
}
