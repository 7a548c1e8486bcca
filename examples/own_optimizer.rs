//! A program with an optimizer of its own: RMSprop, of which optswap knows the state tensor and
//! nothing else.
//!
//! ```text
//! launch/ranks 2 target/release/examples/own_optimizer --drives /nvme0/me,/nvme1/me
//! ```
//!
//! There is no model behind it: masters and gradients are synthetic, functions of the element, so
//! that the state after some steps is the same for any number of ranks. It is compared with the
//! same update in memory after every step, and its digest is printed.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use half::bf16;
use optswap::internals::step::{fill_synthetic_gradients, fill_synthetic_masters};
use optswap::{
    Communicator, Hyperparameters, Inventory, OptimizerSpec, Parameter, Result, Run,
    StateTensorSpec, Training, Verifier, agree,
};
use optswap_args::{SwapArgs, say};

/// Step synthetic gradients with an update of this program's own.
#[derive(Debug, Parser)]
#[command(name = "own_optimizer", version, help_expected = true)]
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
    optswap_args::main(|args: Args, comm| train(&args, comm))
}

/// RMSprop (Hinton's lecture 6e) of some elements; the second of `betas` is the decay.
fn rmsprop(hyper: &Hyperparameters, grads: &[f32], arrays: &mut [&mut [f32]]) {
    let [master, square_avg] = arrays else { return };
    let (lr, alpha, eps) = (hyper.lr as f32, hyper.betas[1] as f32, hyper.eps as f32);
    for (i, grad) in grads.iter().enumerate() {
        square_avg[i] = alpha * square_avg[i] + (1.0 - alpha) * (grad * grad);
        master[i] -= lr * (grad / (square_avg[i].sqrt() + eps));
    }
}

fn train(args: &Args, comm: Arc<dyn Communicator>) -> Result<()> {
    let mut config = agree(&*comm, args.swap.resolve())?;
    let square_avg = StateTensorSpec::new("square_avg", 0.0);
    config.optimizer.own = Some(OptimizerSpec::own("rmsprop", [square_avg]));
    let sizes = [("embedding", 300_000), ("norm.bias", 500), ("head", 120_001)];
    let parameters = sizes.map(|(name, size)| Parameter::new(name, [size]));
    let inventory = agree(&*comm, Inventory::new(parameters.to_vec()))?;
    let flat = |run: &Run| inventory.flat_start(run.param) + run.param_offset;
    let mut job = Training::builder(&config, Arc::clone(&comm))
        .parameters(parameters)
        .start::<bf16>(|run, masters| {
            fill_synthetic_masters(1, flat(run), masters);
            Ok(())
        })?;

    let mut shard = vec![0.0f32; job.params().len()];
    let (optimizer, params) = job.optimizer_and_params();
    let mut twin = Verifier::of_state(optimizer, params)?;
    while let Some(step) = job.next_step(args.steps) {
        for piece in job.optimizer().partition().pieces() {
            let out = &mut shard[piece.in_shard()];
            fill_synthetic_gradients(1, step, flat(piece), out, |gradient| gradient);
        }
        job.set_gradients(&shard)?;
        let outcome = job.step_with(|run, gradient, arrays| {
            rmsprop(&run.hyper, gradient, arrays);
            Ok(())
        })?;
        let (optimizer, params) = job.optimizer_and_params();
        twin.step_with(optimizer, &outcome, |twin, its| {
            let arrays = twin.arrays_mut().iter_mut();
            let mut arrays: Vec<_> = arrays.map(|array| &mut array[its.at.clone()]).collect();
            let grads = shard[its.at.clone()].iter().map(|grad| grad * outcome.grad_scale);
            rmsprop(&its.hyper, &grads.collect::<Vec<_>>(), &mut arrays);
            true
        });
        twin.check(optimizer, params)?;
    }
    let steps = job.optimizer().attempts();
    let (optimizer, params) = job.optimizer_and_params();
    let digest = optimizer.state_digest(params)?;
    if comm.rank().0 == 0 {
        say(serde_json::json!({
            "ranks": comm.size(),
            "steps": steps,
            "state_digest": digest,
            "verified": true,
        }))?;
    }
    job.finish()
}
