//! Which optimizer: what it keeps for each parameter, by the names that torch gives it.

use serde::{Deserialize, Serialize};

use super::codec::Codec;

/// One of a chunk's arrays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateTensor {
    /// The name a user of the optimizer knows.
    pub name: &'static str,
    /// How it lies on the drive.
    pub codec: Codec,
    /// Whether its values may be negative.
    pub is_signed: bool,
}

impl StateTensor {
    /// The tensor of a name that some optimizer has.
    pub fn named(name: &str, codec: Codec) -> Option<Self> {
        let mut all = OptimizerKind::ALL.iter().flat_map(|kind| kind.state_tensors(|_| codec));
        all.find(|tensor| tensor.name == name)
    }
}

/// The name of the fp32 parameters, the first state tensor of every optimizer.
pub const MASTER: &str = "master";

/// An update rule. All keep an fp32 master and moments that begin with zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101).
    #[default]
    AdamW,
    /// Adam with weight decay as part of the gradient (Kingma and Ba, arXiv 1412.6980).
    Adam,
    /// Stochastic gradient descent with momentum, as torch has it: no dampening.
    Sgd,
    /// Lion (Chen et al., arXiv 2302.06675).
    Lion,
    /// Adagrad (Duchi, Hazan and Singer, JMLR 12, 2011).
    Adagrad,
}

impl OptimizerKind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::AdamW, Self::Adam, Self::Sgd, Self::Lion, Self::Adagrad];

    /// Names of the moments, and whether each may be negative.
    pub fn moments(self) -> &'static [(&'static str, bool)] {
        match self {
            Self::AdamW | Self::Adam => &[("exp_avg", true), ("exp_avg_sq", false)],
            Self::Sgd => &[("momentum_buffer", true)],
            Self::Lion => &[("exp_avg", true)],
            Self::Adagrad => &[("sum", false)],
        }
    }

    /// The state tensors in the order in which they lie in an extent; `codec` tells how each does.
    pub fn state_tensors(self, codec: impl Fn(&str) -> Codec) -> Vec<StateTensor> {
        let tensor = |name, is_signed| StateTensor { name, codec: codec(name), is_signed };
        let moments = self.moments().iter().map(|(name, is_signed)| tensor(name, *is_signed));
        std::iter::once(tensor(MASTER, true)).chain(moments).collect()
    }

    /// The name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::AdamW => "adamw",
            Self::Adam => "adam",
            Self::Sgd => "sgd",
            Self::Lion => "lion",
            Self::Adagrad => "adagrad",
        }
    }
}
