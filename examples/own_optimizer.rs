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
use optswap::coord::{Communicator, agree};
use optswap::error::Result;
use optswap::job;
use optswap::partition::Run;
use optswap::state::{Hyperparameters, Inventory, OptimizerSpec, Parameter, StateTensorSpec};
use optswap::step::{
    Gradients, StepOptions, StepOutcome, SwappedOptimizer, Verifier, fill_synthetic_gradients,
    fill_synthetic_masters,
};
use optswap_args::{self as cli, SwapArgs, say};

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

fn main() -> ExitCode {
    let args: Args = match cli::parse() {
        Ok(args) => args,
        Err(code) => return code,
    };
    job::run_main(&args.swap.launch(), |comm| train(&args, comm))
}

/// RMSprop (Hinton's lecture 6e) of some elements; the second of `betas` is the decay.
fn rmsprop(hyper: &Hyperparameters, scale: f32, grads: &[f32], arrays: &mut [&mut [f32]]) {
    let [master, square_avg] = arrays else { return };
    let (lr, alpha, eps) = (hyper.lr as f32, hyper.betas[1] as f32, hyper.eps as f32);
    for (i, grad) in grads.iter().enumerate() {
        let grad = grad * scale;
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
    let mut optimizer = SwappedOptimizer::create(&config, inventory.clone(), Arc::clone(&comm))?;

    let elems = optimizer.partition().elems() as usize;
    let (mut shard, mut params) = (vec![0.0f32; elems], vec![bf16::ZERO; elems]);
    let flat = |run: &Run| inventory.flat_start(run.param) + run.param_offset;
    if optimizer.resumed().is_none() {
        optimizer.initialize_parameters_into(&mut params, |run, masters| {
            fill_synthetic_masters(1, flat(run), masters);
            Ok(())
        })?;
    } else {
        optimizer.emit_parameters(&mut params)?;
    }
    let mut twin = Verifier::of_state(&mut optimizer, &params)?;
    while optimizer.attempts() < args.steps {
        let number = optimizer.attempts() + 1;
        for piece in optimizer.partition().pieces() {
            let out = &mut shard[piece.in_shard()];
            fill_synthetic_gradients(1, number, flat(piece), out, |gradient| gradient);
        }
        let gradients = Gradients::of_shard(optimizer.partition(), &shard)?;
        let outcome = step(&mut optimizer, &gradients, &mut params)?;
        twin.step_with(&optimizer, &outcome, |twin, its| {
            let arrays = twin.arrays_mut().iter_mut();
            let mut arrays: Vec<_> = arrays.map(|array| &mut array[its.at.clone()]).collect();
            let grads = &shard[its.at.clone()];
            rmsprop(&its.hyper, outcome.grad_scale, grads, &mut arrays);
            true
        });
        twin.check_with(&mut optimizer, &params)?;
    }
    let digest = optimizer.state_digest_with(&params)?;
    if comm.rank().0 == 0 {
        say(serde_json::json!({
            "ranks": comm.size(),
            "steps": optimizer.attempts(),
            "state_digest": digest,
            "verified": true,
        }))?;
    }
    optimizer.close();
    Ok(())
}

/// Collective: swaps sub-groups in, updates them, and swaps them out.
fn step(
    optimizer: &mut SwappedOptimizer,
    gradients: &Gradients<'_, f32>,
    params: &mut [bf16],
) -> Result<StepOutcome> {
    let mut groups = optimizer.begin_update(gradients, params, StepOptions::default())?;
    while let Some(mut sub_group) = groups.swap_in()? {
        while let Some(mut chunk) = sub_group.next_chunk()? {
            let scale = chunk.grad_scale();
            chunk.for_each_gradient(|run, gradient, arrays| {
                rmsprop(&run.hyper, scale, gradient, arrays);
            });
        }
        sub_group.swap_out()?;
    }
    groups.finish()
}
