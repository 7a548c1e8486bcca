//! Descriptors, pure data: what a model's parameters are, which state tensors an optimizer keeps
//! for them, how those lie on a drive, and the hyper-parameters of an update.

mod inventory;

use serde::{Deserialize, Serialize};

pub use inventory::{Inventory, Parameter};

/// How a state tensor lies on a drive. More codecs join here, each with its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// IEEE binary32, little endian, as in memory.
    Fp32,
}

impl Codec {
    /// Bytes of one element on the drive.
    pub fn elem_bytes(self) -> u64 {
        match self {
            Self::Fp32 => 4,
        }
    }
}

/// One of a chunk's arrays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateTensor {
    /// The name a user of the optimizer knows.
    pub name: &'static str,
    /// How it lies on the drive.
    pub codec: Codec,
}

/// The state tensors of AdamW in the order in which they lie in an extent.
pub const ADAMW_STATE: [StateTensor; 3] = [
    StateTensor { name: "master", codec: Codec::Fp32 },
    StateTensor { name: "exp_avg", codec: Codec::Fp32 },
    StateTensor { name: "exp_avg_sq", codec: Codec::Fp32 },
];

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
