//! Descriptors, pure data: what a model's parameters are, which state tensors an optimizer keeps
//! for them, how those lie on a drive, and the hyper-parameters of an update.

mod codec;
mod inventory;
mod loss_scale;
mod optimizer;

use serde::{Deserialize, Serialize};

pub use codec::{Codec, INT8_BLOCK_ELEMS, Rounding};
pub use inventory::{Inventory, Parameter};
pub use loss_scale::{LossScaleRule, LossScaler, LossScalerState, ScaleChange};
pub use optimizer::{MASTER, OptimizerKind, OptimizerSpec, StateTensor, StateTensorSpec};

/// Hyper-parameters of AdamW (Loshchilov and Hutter, "Decoupled Weight Decay Regularization",
/// arXiv 1711.05101), with torch's names and defaults. Read anew at every step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hyperparameters {
    /// Learning rate.
    pub lr: f64,
    /// Decay rates of the first and second moment.
    pub betas: [f64; 2],
    /// Added to the denominator.
    pub eps: f64,
    /// Decoupled weight decay: every step multiplies the master by `1 - lr * weight_decay`.
    pub weight_decay: f64,
}

impl Default for Hyperparameters {
    fn default() -> Self {
        Self { lr: 1e-3, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 1e-2 }
    }
}

impl Hyperparameters {
    /// The first value that is out of range, as `name = value: what is allowed`.
    pub fn problem(&self) -> Option<String> {
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let not_negative = |value: f64| value.is_finite() && value >= 0.0;
        if !not_negative(self.lr) {
            return Some(format!("lr = {}: must be finite and not negative", self.lr));
        }
        if let Some(beta) = self.betas.iter().find(|beta| !(0.0..1.0).contains(*beta)) {
            return Some(format!("betas has {beta}: each must be at least 0 and below 1"));
        }
        if !positive(self.eps) {
            return Some(format!("eps = {}: must be finite and above 0", self.eps));
        }
        if !not_negative(self.weight_decay) {
            let value = self.weight_decay;
            return Some(format!("weight_decay = {value}: must be finite and not negative"));
        }
        None
    }
}
