//! Descriptors, pure data: what a model's parameters are, which state tensors an optimizer keeps
//! for them, how those lie on a drive, and the hyper-parameters of an update.

mod codec;
mod inventory;
mod loss_scale;
mod names;
mod optimizer;

use serde::{Deserialize, Serialize};

pub use codec::{Codec, INT8_BLOCK_ELEMS, Rounding};
pub use inventory::{Inventory, Parameter};
pub use loss_scale::{LossScaleRule, LossScaler, LossScalerState, ScaleChange};
pub(crate) use names::names;
pub use optimizer::{MASTER, OptimizerKind, OptimizerSpec, StateTensor, StateTensorSpec};

/// The hyper-parameters of a parameter group, with the names and defaults of torch's AdamW. Every
/// step reads them anew, so a program may change them between two steps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hyperparameters {
    /// Learning rate: finite and not negative. Default 1e-3.
    pub lr: f64,
    /// Decay rates of the first and second moment, each at least 0 and below 1; the first one is
    /// SGD's momentum. Default [0.9, 0.999].
    pub betas: [f64; 2],
    /// Added to the denominator: finite and above 0. Default 1e-8.
    pub eps: f64,
    /// Weight decay: finite and not negative. AdamW and Lion multiply the master by
    /// `1 - lr * weight_decay` in every step; the other kinds add `weight_decay` times the master
    /// to the gradient. Default 0.01.
    pub weight_decay: f64,
}

impl Default for Hyperparameters {
    fn default() -> Self {
        Self { lr: 1e-3, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 1e-2 }
    }
}

impl Hyperparameters {
    /// Describes the first value that is out of range, as `name = value: what is allowed`; `None`
    /// if all are in range.
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
