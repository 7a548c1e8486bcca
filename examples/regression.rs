//! A multi-layer perceptron, trained data-parallel with its optimizer state on drives: one file
//! with all that a training program does with optswap. Forward and backward are written by hand.
//!
//! ```text
//! P="target/release/examples/regression --drives /nvme0/me,/nvme1/me"
//! launch/ranks 2 $P                                           # AdamW; commits nothing
//! launch/ranks 2 $P --durability step                         # goes on after kill -9
//! launch/ranks 2 $P --checkpoint-dir DIR --checkpoint-every 50    # then on any number of ranks
//! launch/ranks 2 $P --slices                                  # slices of every parameter
//! launch/ranks 2 $P --rmsprop                                 # an optimizer of its own
//! launch/ranks 2 $P --config FILE    # with [gradients] place = "memory": optswap keeps gradients
//! ```

use std::f64::consts::PI;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use half::bf16;
use optswap::config::GroupConfig;
use optswap::{
    Communicator, OptimizerSpec, ParamIndex, Parameter, Result, Run, Sharding, StateTensorSpec,
    Training, UpdateRun, agree,
};
use optswap_args::{SwapArgs, say};

/// Learn a function with a small multi-layer perceptron.
#[derive(Debug, Parser)]
#[command(name = "regression", version, help_expected = true)]
struct Args {
    #[command(flatten)]
    swap: SwapArgs,

    /// Steps; the learning rate ends with them.
    #[arg(long, value_name = "N", default_value_t = 200)]
    steps: u64,

    /// Give every rank a slice of every parameter, not a range of all of them end to end.
    #[arg(long)]
    slices: bool,

    /// Update with RMSprop, which this program brings, and not with AdamW.
    #[arg(long)]
    rmsprop: bool,
}

impl AsRef<SwapArgs> for Args {
    fn as_ref(&self) -> &SwapArgs {
        &self.swap
    }
}

fn main() -> ExitCode {
    optswap_args::main(train) // starts MPI; logs, signals and the exit code
}

fn train(args: Args, comm: Arc<dyn Communicator>) -> Result<()> {
    // What can fail on one rank alone fails on all of them by `agree`.
    let mut config = agree(&*comm, args.swap.resolve())?;
    config.optimizer.lr = 3e-3;
    config.optimizer.clip_norm = 1.0; // the global norm, over all ranks
    config.optimizer.groups = vec![GroupConfig {
        names: vec!["*.bias".into()],
        weight_decay: Some(0.0),
        ..GroupConfig::default()
    }];
    if args.rmsprop {
        let square_avg = StateTensorSpec::new("square_avg", 0.0);
        config.optimizer.own = Some(OptimizerSpec::own("rmsprop", [square_avg]));
    }

    // Goes on from the drives or from the newest checkpoint, or begins anew with `initialize`.
    let mut job = Training::builder(&config, Arc::clone(&comm))
        .parameters(Model::parameters())
        .sharding(if args.slices { Sharding::slices() } else { Sharding::default() })
        .start::<bf16>(initialize)?;
    // Where the data goes on, and the last loss: of the step that the job goes on after.
    let (mut seen, mut loss): (u64, f64) = job.user_state()?.unwrap_or_default();
    let mut params = vec![bf16::ZERO; job.total_elems()]; // all parameters, end to end
    job.gather_parameters(&mut params)?;

    while let Some(step) = job.next_step(args.steps) {
        // Every rank takes its part of the same batch.
        let (rank, ranks) = (comm.rank().index(), comm.size());
        let samples: Vec<u64> = (seen..seen + BATCH).skip(rank).step_by(ranks).collect();
        let sum = Model::load(&params).backward(&samples, |param, gradient| {
            job.reduce_gradient(param, gradient) // adds over the ranks; the same order on all
        })?;
        loss = job.mean(sum * ranks as f64 / BATCH as f64)?;
        seen += BATCH;

        job.set_lr_factor(lr_factor(step, args.steps))?; // in every step: it is not stored
        job.set_user_state(&(seen, loss))?; // committed and saved with the step
        // The step and its commit; begins checkpoints, and ends the job when a signal asks it to.
        let _outcome = if args.rmsprop { job.step_with(rmsprop) } else { job.step() }?;
        job.gather_parameters(&mut params)?;
    }

    let steps = job.optimizer().attempts();
    let (optimizer, shard) = job.optimizer_and_params();
    let digest = optimizer.element_digest(shard)?; // collective, so not in the `if`
    if comm.rank().0 == 0 {
        say(serde_json::json!({"steps": steps, "loss": loss, "element_digest": digest}))?;
    }
    job.finish() // saves the last state where checkpoints go, and removes the files on the drives
}

/// Warm-up for a tenth of the steps, then half a cosine down to 0.
fn lr_factor(step: u64, steps: u64) -> f64 {
    let warm_up = steps / 10;
    if step <= warm_up {
        return step as f64 / warm_up as f64;
    }
    0.5 + 0.5 * (PI * (step - warm_up) as f64 / (steps - warm_up) as f64).cos()
}

/// Called in a new job only, on the rank that has these masters: elements of parameter `run.param`
/// from `run.param_offset` on. What an element begins with must not depend on who has it.
fn initialize(run: &Run, masters: &mut [f32]) -> Result<()> {
    let param = run.param.index();
    if param % 2 == 1 {
        masters.fill(0.0); // a bias
        return Ok(());
    }
    let bound = (6.0 / LAYERS[param / 2].1 as f32).sqrt();
    for (element, master) in (run.param_offset..).zip(masters) {
        *master = bound * uniform(param as u64, element);
    }
    Ok(())
}

/// RMSprop of elements of one parameter, with the hyper-parameters of its group. The gradient is
/// clipped already; `arrays` are the master and the state tensors as they were declared.
fn rmsprop(run: &UpdateRun<f32>, gradient: &[f32], arrays: &mut [&mut [f32]]) -> Result<()> {
    let [master, square_avg] = arrays else { unreachable!("declared as one state tensor") };
    let (lr, alpha, eps) = (run.hyper.lr as f32, run.hyper.betas[1] as f32, run.hyper.eps as f32);
    let keep = 1.0 - lr * run.hyper.weight_decay as f32;
    for (i, grad) in gradient.iter().enumerate() {
        square_avg[i] = alpha * square_avg[i] + (1.0 - alpha) * (grad * grad);
        master[i] = keep * master[i] - lr * (grad / (square_avg[i].sqrt() + eps));
    }
    Ok(())
}

/// Samples of a step, over all ranks. A power of two, so that dividing by it is exact.
const BATCH: u64 = 32;

/// Outputs and inputs of each layer.
const LAYERS: [(usize, usize); 3] = [(128, 32), (128, 128), (1, 128)];

/// A weight and a bias for each layer, as f32, in the order of [`Model::parameters`].
struct Model(Vec<Vec<f32>>);

impl Model {
    fn parameters() -> Vec<Parameter> {
        let layers = LAYERS.iter().enumerate();
        let parameters = layers.flat_map(|(layer, &(outputs, inputs))| {
            let weight = Parameter::new(format!("{layer}.weight"), [outputs, inputs]);
            [weight, Parameter::new(format!("{layer}.bias"), [outputs])]
        });
        parameters.collect()
    }

    fn load(mut flat: &[bf16]) -> Self {
        let parameters = Self::parameters().into_iter().map(|parameter| {
            let (param, rest) = flat.split_at(parameter.shape.iter().product());
            flat = rest;
            param.iter().map(|element| element.to_f32()).collect()
        });
        Self(parameters.collect())
    }

    /// Hands over each parameter's gradient, divided by the batch, as soon as it is known: those
    /// of the last layer first. Returns the sum of losses.
    fn backward(
        &self,
        samples: &[u64],
        mut hand_over: impl FnMut(ParamIndex, &[f32]) -> Result<()>,
    ) -> Result<f64> {
        // Forward: `values[layer]` goes into a layer, one vector for each sample.
        let mut values = vec![samples.iter().map(|&sample| input(sample)).collect::<Vec<_>>()];
        for (layer, &(_, inputs)) in LAYERS.iter().enumerate() {
            let (weight, bias) = (&self.0[2 * layer], &self.0[2 * layer + 1]);
            let is_last = layer + 1 == LAYERS.len();
            let forward = |value: &Vec<f32>| {
                let rows = weight.chunks(inputs).zip(bias);
                let outputs = rows.map(|(row, bias)| bias + dot(row, value));
                outputs.map(|output| if is_last { output } else { output.max(0.0) }).collect()
            };
            values.push(values[layer].iter().map(forward).collect());
        }
        let predicted = values.pop().unwrap_or_default();
        let errors = samples.iter().zip(&predicted).map(|(&at, value)| value[0] - target(at));
        let mut deltas: Vec<Vec<f32>> = errors.map(|error| vec![error]).collect();
        let loss = deltas.iter().map(|delta| 0.5 * f64::from(delta[0]).powi(2)).sum();

        for (layer, &(outputs, inputs)) in LAYERS.iter().enumerate().rev() {
            let (mut weight, mut bias) = (vec![0.0; outputs * inputs], vec![0.0; outputs]);
            for (delta, value) in deltas.iter().zip(&values[layer]) {
                let rows = weight.chunks_mut(inputs).zip(&mut bias);
                for ((row, bias), delta) in rows.zip(delta) {
                    *bias += exact(*delta);
                    row.iter_mut().zip(value).for_each(|(sum, x)| *sum += exact(delta * x));
                }
            }
            for (param, mut gradient) in [(2 * layer + 1, bias), (2 * layer, weight)] {
                gradient.iter_mut().for_each(|gradient| *gradient /= BATCH as f32);
                hand_over(ParamIndex::from_index(param), &gradient)?; // it may be dropped now
            }
            for (delta, value) in deltas.iter_mut().zip(&values[layer]) {
                let mut before = vec![0.0; inputs];
                for (row, delta) in self.0[2 * layer].chunks(inputs).zip(&*delta) {
                    before.iter_mut().zip(row).for_each(|(sum, weight)| *sum += delta * weight);
                }
                let passes = |(sum, value): (f32, &f32)| if *value > 0.0 { sum } else { 0.0 };
                *delta = before.into_iter().zip(value).map(passes).collect();
            }
        }
        Ok(loss)
    }
}

/// Rounded to a multiple of 2^-14. Sums of such numbers below 1024 are exact in f32, so that they
/// are the same bits however the batch is divided among ranks. Without this, which a program does
/// not need, only runs on the same number of ranks end with the same bits.
fn exact(gradient: f32) -> f32 {
    (gradient * 16_384.0).round() / 16_384.0
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn input(sample: u64) -> Vec<f32> {
    (0..LAYERS[0].1 as u64).map(|at| uniform(1000 + sample, at)).collect()
}

fn target(sample: u64) -> f32 {
    let x = input(sample);
    (2.0 * x[0]).sin() + x[1] * x[2]
}

/// A number from -1 to 1 that depends on both arguments alone (splitmix64).
fn uniform(stream: u64, counter: u64) -> f32 {
    let mut bits = (stream << 32 | counter).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (bits >> 40) as f32 / 8_388_608.0 - 1.0
}
