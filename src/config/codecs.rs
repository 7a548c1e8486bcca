//! `[codecs]`: how each state tensor is stored on the drives.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::demand;
use crate::error::Result;
use crate::state::{Codec, OptimizerKind, Rounding, StateTensor};

/// `[codecs]`: how each state tensor of the built-in optimizers is stored on the drives. Entries
/// for tensors that the configured optimizer does not have mean nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CodecsConfig {
    /// The master parameters: `fp32` (default) or `remainder16`, which loses nothing either.
    pub master: Codec,
    /// The first moment of AdamW, Adam and Lion: `fp32` (default), `bf16` or `int8`.
    pub exp_avg: Codec,
    /// The second moment of AdamW and Adam: `fp32` (default), `bf16` or `int8`.
    pub exp_avg_sq: Codec,
    /// SGD's momentum: `fp32` (default), `bf16` or `int8`.
    pub momentum_buffer: Codec,
    /// Adagrad's sum of squares: `fp32` (default), `bf16` or `int8`.
    pub sum: Codec,
    /// How moments are rounded: `nearest` (default) or `stochastic`.
    pub rounding: Rounding,
    /// The seed of stochastic rounding: any number, the same on all ranks. Default 0.
    pub seed: u64,
}

impl CodecsConfig {
    /// The codec of the state tensor of this name; of an unknown name, that of the master.
    pub fn of(&self, tensor: &str) -> Codec {
        match tensor {
            "exp_avg" => self.exp_avg,
            "exp_avg_sq" => self.exp_avg_sq,
            "momentum_buffer" => self.momentum_buffer,
            "sum" => self.sum,
            _ => self.master,
        }
    }

    /// Sets the codec of the state tensor of this name; false if there is none of that name.
    pub fn set(&mut self, tensor: &str, codec: Codec) -> bool {
        let place = match tensor {
            "master" => &mut self.master,
            "exp_avg" => &mut self.exp_avg,
            "exp_avg_sq" => &mut self.exp_avg_sq,
            "momentum_buffer" => &mut self.momentum_buffer,
            "sum" => &mut self.sum,
            _ => return false,
        };
        *place = codec;
        true
    }

    /// The state tensors of an optimizer, in the order in which a chunk stores them.
    pub fn state_tensors(&self, optimizer: OptimizerKind) -> Vec<StateTensor> {
        optimizer.state_tensors(|name| self.of(name))
    }

    pub(super) fn validate(&self) -> Result<()> {
        let master = self.master;
        let is_lossless = matches!(master, Codec::Fp32 | Codec::Remainder16);
        demand(is_lossless, "codecs.master", master.name(), "fp32 or remainder16")?;
        for (key, codec) in [
            ("codecs.exp_avg", self.exp_avg),
            ("codecs.exp_avg_sq", self.exp_avg_sq),
            ("codecs.momentum_buffer", self.momentum_buffer),
            ("codecs.sum", self.sum),
        ] {
            demand(codec != Codec::Remainder16, key, codec.name(), "fp32, bf16 or int8")?;
        }
        Ok(())
    }
}

/// A choice for all tensors in one word: `fp32`, `remainder16`, `bf16`, `int8`, or one of the last
/// two joined to `remainder16` by `+`. That one is the master's codec, the others the moments'.
impl FromStr for CodecsConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut master, mut moments) = (Codec::Fp32, Codec::Fp32);
        for word in text.split('+') {
            match word.trim() {
                "fp32" => (),
                "remainder16" => master = Codec::Remainder16,
                "bf16" => moments = Codec::Bf16,
                "int8" => moments = Codec::Int8,
                other => {
                    return Err(format!(
                        "`{other}` is none of fp32, remainder16, bf16 and int8, joined by +"
                    ));
                }
            }
        }
        Ok(Self {
            master,
            exp_avg: moments,
            exp_avg_sq: moments,
            momentum_buffer: moments,
            sum: moments,
            ..Self::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_word_chooses_for_all() {
        let chosen: CodecsConfig = "bf16+remainder16".parse().unwrap();
        let codecs: Vec<Codec> =
            chosen.state_tensors(OptimizerKind::AdamW).iter().map(|tensor| tensor.codec).collect();
        assert_eq!(codecs, [Codec::Remainder16, Codec::Bf16, Codec::Bf16]);
        assert!("fp16".parse::<CodecsConfig>().unwrap_err().contains("`fp16`"));
    }
}
