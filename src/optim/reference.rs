//! The scalar reference: AdamW in memory, one element after the other, as plain as it can be
//! written. The swapped optimizer must give the same bits; this one is held against torch.

use std::ops::Range;

use super::adamw::power;
use crate::state::Hyperparameters;

/// AdamW state in memory.
#[derive(Clone, Debug, Default)]
pub struct ReferenceAdamW {
    /// fp32 master.
    pub master: Vec<f32>,
    /// First moment.
    pub exp_avg: Vec<f32>,
    /// Second moment.
    pub exp_avg_sq: Vec<f32>,
}

impl ReferenceAdamW {
    /// Starts from these masters with moments of zero.
    pub fn new(master: Vec<f32>) -> Self {
        let zeros = vec![0.0; master.len()];
        Self { exp_avg: zeros.clone(), exp_avg_sq: zeros, master }
    }

    /// Update number `step` (from 1) of the elements `at`, with one gradient for each.
    pub fn update(
        &mut self,
        hyper: &Hyperparameters,
        step: u64,
        grad_scale: f32,
        at: Range<usize>,
        grads: &[f32],
    ) {
        let [beta1, beta2] = hyper.betas;
        let step_size = (hyper.lr / (1.0 - power(beta1, step))) as f32;
        let correction2_sqrt = (1.0 - power(beta2, step)).sqrt() as f32;
        let decay = (1.0 - hyper.lr * hyper.weight_decay) as f32;
        for (i, grad) in at.zip(grads) {
            let grad = grad * grad_scale;
            let first = beta1 as f32 * self.exp_avg[i] + (1.0 - beta1) as f32 * grad;
            let second = beta2 as f32 * self.exp_avg_sq[i] + (1.0 - beta2) as f32 * (grad * grad);
            let denominator = second.sqrt() / correction2_sqrt + hyper.eps as f32;
            self.exp_avg[i] = first;
            self.exp_avg_sq[i] = second;
            self.master[i] = self.master[i] * decay - step_size * (first / denominator);
        }
    }
}
