//! Updates as a program would write them, one element after the other.

#![allow(dead_code, reason = "every test file uses its own part")]

use optswap::internals::config::Durability;
use optswap::{
    Bytes, Config, Elems, GradElem, Hyperparameters, OptimizerSpec, ParameterSink, Result,
    StateTensorSpec, StepOutcome, SubGroups,
};

use super::Drives;
use super::world::config_for;

/// `base` to the power `exponent`, by repeated squaring as optswap does it.
fn power(base: f64, mut exponent: u64) -> f64 {
    let (mut result, mut square) = (1.0, base);
    while exponent > 0 {
        if exponent & 1 == 1 {
            result *= square;
        }
        square *= square;
        exponent >>= 1;
    }
    result
}

/// AdamW of some elements; `arrays` are master, exp_avg and exp_avg_sq.
pub fn adamw(hyper: &Hyperparameters, number: u64, grads: &[f32], arrays: &mut [&mut [f32]]) {
    let [master, exp_avg, exp_avg_sq] = arrays else { panic!("AdamW has three arrays") };
    let [beta1, beta2] = hyper.betas;
    let decay = (1.0 - hyper.lr * hyper.weight_decay) as f32;
    let step_size = (hyper.lr / (1.0 - power(beta1, number))) as f32;
    let correction = (1.0 / (1.0 - power(beta2, number)).sqrt()) as f32;
    for (i, grad) in grads.iter().enumerate() {
        exp_avg[i] = beta1 as f32 * exp_avg[i] + (1.0 - beta1) as f32 * grad;
        exp_avg_sq[i] = beta2 as f32 * exp_avg_sq[i] + (1.0 - beta2) as f32 * (grad * grad);
        let denominator = exp_avg_sq[i].sqrt() * correction + hyper.eps as f32;
        master[i] = master[i] * decay - step_size * (exp_avg[i] / denominator);
    }
}

/// RMSprop (Hinton's lecture 6e) with momentum; `arrays` are master, square_avg and
/// momentum_buffer. The first of `betas` is the momentum, the second the decay.
pub fn rmsprop(hyper: &Hyperparameters, _number: u64, grads: &[f32], arrays: &mut [&mut [f32]]) {
    let [master, square_avg, momentum] = arrays else { panic!("RMSprop has three arrays") };
    let [beta, alpha] = hyper.betas.map(|beta| beta as f32);
    for (i, grad) in grads.iter().enumerate() {
        square_avg[i] = alpha * square_avg[i] + (1.0 - alpha) * (grad * grad);
        momentum[i] = beta * momentum[i] + grad / (square_avg[i].sqrt() + hyper.eps as f32);
        master[i] -= hyper.lr as f32 * momentum[i];
    }
}

/// The rule of a run: hyper-parameters, number of the update, gradients, arrays.
pub type Rule = fn(&Hyperparameters, u64, &[f32], &mut [&mut [f32]]);

/// All sub-groups, one after the other, as DeepSpeed's stage 3 does; gives how many chunks there
/// were in each.
pub fn update_all<G: GradElem, S: ParameterSink + ?Sized>(
    mut groups: SubGroups<'_, '_, G, S>,
    rule: Rule,
) -> Result<(StepOutcome, Vec<usize>)> {
    let mut chunks = Vec::new();
    while let Some(mut sub_group) = groups.swap_in()? {
        assert_eq!(sub_group.index() as usize, chunks.len());
        let mut count = 0;
        while let Some(mut chunk) = sub_group.next_chunk()? {
            count += 1;
            let scale = chunk.grad_scale();
            chunk.for_each_gradient(|run, gradient, arrays| {
                let grads: Vec<f32> = gradient.iter().map(|grad| grad.load() * scale).collect();
                rule(&run.hyper, run.number, &grads, arrays);
            });
        }
        assert_eq!(count, sub_group.chunks());
        chunks.push(count);
        sub_group.swap_out()?;
    }
    Ok((groups.finish(Ok(()))?, chunks))
}

/// Parameters of both groups in turn, most of which meet inside of chunks: so many ranks times
/// eight sub-groups of two chunks, the last one short.
pub fn sizes(ranks: usize) -> Vec<usize> {
    let mut left = ranks * 8 * 8192 - 1000;
    let mut sizes = Vec::new();
    for size in [5000, 300, 13_000, 1, 2500, 9000].into_iter().cycle() {
        if left == 0 {
            return sizes;
        }
        sizes.push(size.min(left));
        left -= size.min(left);
    }
    sizes
}

/// Sub-groups of two chunks, and five buffers.
pub fn small_config(drives: &Drives, is_durable: bool) -> Config {
    let mut config = config_for(drives);
    config.swap.sub_group_elements = Elems(8192);
    config.swap.memory_budget = Bytes(5 * 4096 * 12);
    if is_durable {
        config.durability.mode = Durability::Step;
        config.durability.commit_every = 2;
    }
    config
}

/// RMSprop with momentum, as a program declares it.
pub fn rmsprop_config(drives: &Drives, is_durable: bool) -> Config {
    let mut config = small_config(drives, is_durable);
    let square_avg = StateTensorSpec::new("square_avg", 0.25);
    let momentum = StateTensorSpec::new("momentum_buffer", 0.0);
    config.optimizer.own = Some(OptimizerSpec::own("rmsprop", [square_avg, momentum]));
    config
}
