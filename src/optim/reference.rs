//! The scalar reference: update rules in memory, one element after the other, as plain as they can
//! be written. Tests compare the swapped optimizer with it bit for bit, and its AdamW with torch.

use std::ops::Range;

use super::rounding::Rounder;
use super::rule::power;
use super::section::{Section, SectionMut};
use crate::state::{Codec, Hyperparameters, INT8_BLOCK_ELEMS, OptimizerKind, StateTensor};

/// An optimizer's state in memory.
#[derive(Clone, Debug, Default)]
pub struct Reference {
    /// `None` for what a program updates itself.
    kind: Option<OptimizerKind>,
    /// Master, then moments.
    arrays: Vec<Vec<f32>>,
}

impl Reference {
    /// Starts from these masters with moments of zero.
    pub fn new(kind: OptimizerKind, master: Vec<f32>) -> Self {
        Self { kind: Some(kind), ..Self::declared(&kind.state_tensors(|_| Codec::Fp32), master) }
    }

    /// Starts from these masters with state tensors as they are declared, the master first. Whoever
    /// declared them updates them.
    pub fn declared(tensors: &[StateTensor], master: Vec<f32>) -> Self {
        let state = tensors.iter().skip(1).map(|tensor| vec![tensor.initial; master.len()]);
        let state: Vec<_> = state.collect();
        Self { kind: None, arrays: std::iter::once(master).chain(state).collect() }
    }

    /// Master, then moments.
    pub fn arrays(&self) -> &[Vec<f32>] {
        &self.arrays
    }

    /// The same, to be changed.
    pub fn arrays_mut(&mut self) -> &mut [Vec<f32>] {
        &mut self.arrays
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
        for (i, grad) in at.zip(grads) {
            let grad = grad * grad_scale;
            match self.kind {
                Some(OptimizerKind::AdamW) => {
                    self.arrays[0][i] *= (1.0 - hyper.lr * hyper.weight_decay) as f32;
                    self.adam(hyper, step, i, grad);
                }
                Some(OptimizerKind::Adam) => {
                    let grad = grad + hyper.weight_decay as f32 * self.arrays[0][i];
                    self.adam(hyper, step, i, grad);
                }
                Some(OptimizerKind::Sgd) => self.sgd(hyper, i, grad),
                Some(OptimizerKind::Lion) => self.lion(hyper, i, grad),
                Some(OptimizerKind::Adagrad) => self.adagrad(hyper, i, grad),
                None => {}
            }
        }
    }

    fn adam(&mut self, hyper: &Hyperparameters, step: u64, i: usize, grad: f32) {
        let [beta1, beta2] = hyper.betas;
        let step_size = (hyper.lr / (1.0 - power(beta1, step))) as f32;
        let per_correction2_sqrt = (1.0 / (1.0 - power(beta2, step)).sqrt()) as f32;
        let (first, second) = (self.arrays[1][i], self.arrays[2][i]);
        let first = beta1 as f32 * first + (1.0 - beta1) as f32 * grad;
        let second = beta2 as f32 * second + (1.0 - beta2) as f32 * (grad * grad);
        let denominator = second.sqrt() * per_correction2_sqrt + hyper.eps as f32;
        self.arrays[1][i] = first;
        self.arrays[2][i] = second;
        self.arrays[0][i] -= step_size * (first / denominator);
    }

    fn sgd(&mut self, hyper: &Hyperparameters, i: usize, grad: f32) {
        let grad = grad + hyper.weight_decay as f32 * self.arrays[0][i];
        let buffer = hyper.betas[0] as f32 * self.arrays[1][i] + grad;
        self.arrays[1][i] = buffer;
        self.arrays[0][i] -= hyper.lr as f32 * buffer;
    }

    fn lion(&mut self, hyper: &Hyperparameters, i: usize, grad: f32) {
        let [beta1, beta2] = hyper.betas;
        let moment = self.arrays[1][i];
        let direction = beta1 as f32 * moment + (1.0 - beta1) as f32 * grad;
        let lr = hyper.lr as f32;
        let step = if direction == 0.0 { 0.0 } else { lr.copysign(direction) };
        self.arrays[1][i] = beta2 as f32 * moment + (1.0 - beta2) as f32 * grad;
        let decayed = self.arrays[0][i] * (1.0 - hyper.lr * hyper.weight_decay) as f32;
        self.arrays[0][i] = decayed - step;
    }

    fn adagrad(&mut self, hyper: &Hyperparameters, i: usize, grad: f32) {
        let grad = grad + hyper.weight_decay as f32 * self.arrays[0][i];
        let sum = self.arrays[1][i] + grad * grad;
        self.arrays[1][i] = sum;
        self.arrays[0][i] -= hyper.lr as f32 * (grad / (sum.sqrt() + hyper.eps as f32));
    }

    /// Rounds the moments as their codecs do; `flat` is the flat index of the first element.
    pub fn round(&mut self, tensors: &[StateTensor], rounder: Rounder, flat: u64) {
        for (number, (tensor, array)) in tensors.iter().zip(&mut self.arrays).enumerate() {
            if number == 0 || tensor.codec == Codec::Fp32 {
                continue;
            }
            for (block, values) in array.chunks_mut(INT8_BLOCK_ELEMS).enumerate() {
                let flat = flat + (block * INT8_BLOCK_ELEMS) as u64;
                let mut padded = [0.0; INT8_BLOCK_ELEMS];
                padded[..values.len()].copy_from_slice(values);
                // The codes of 256 elements, and room for their scale.
                let mut bytes = [0u64; 1024];
                let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut bytes);
                let bytes = &mut bytes[..match tensor.codec {
                    Codec::Int8 => INT8_BLOCK_ELEMS + 4,
                    _ => 2 * INT8_BLOCK_ELEMS,
                }];
                let rounder = rounder.tile(number as u64, flat);
                SectionMut::new(tensor, bytes, INT8_BLOCK_ELEMS).encode(&padded, &mut [], rounder);
                Section::new(tensor, bytes, INT8_BLOCK_ELEMS).decode(&[], &mut padded);
                values.copy_from_slice(&padded[..values.len()]);
            }
        }
    }
}
