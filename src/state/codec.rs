//! Codecs of state tensors: how their values are stored on the drives, in how many bytes, and how
//! they are rounded. The arithmetic is in `optim`.

use serde::{Deserialize, Serialize};

use super::names::names;
use crate::units::round_up;

/// Elements that share one scale of [`Codec::Int8`].
pub const INT8_BLOCK_ELEMS: usize = 256;

/// Sections of an extent are whole multiples of this, for direct I/O on every drive.
const SECTION_GRAIN_BYTES: u64 = 4096;

/// How the values of a state tensor are stored on the drives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// IEEE binary32, little endian, as in memory: 4 bytes an element.
    #[default]
    Fp32,
    /// The lower 16 bits of a binary32 master whose upper half is the bf16 parameter that the
    /// training job holds: 2 bytes an element, and nothing is lost.
    Remainder16,
    /// bf16: 2 bytes an element, rounded as [`Rounding`] says.
    Bf16,
    /// Eight bits an element and one binary32 scale for each [`INT8_BLOCK_ELEMS`] elements, rounded
    /// as [`Rounding`] says.
    Int8,
}

impl Codec {
    /// Bytes that a tensor of `padded_elems` elements takes on the drives, scales included: a
    /// multiple of 4,096. `padded_elems` is a multiple of
    /// [`BLOCK_ELEMS`](crate::units::BLOCK_ELEMS).
    pub fn section_bytes(self, padded_elems: u64) -> u64 {
        let bytes = match self {
            Self::Fp32 => 4 * padded_elems,
            Self::Remainder16 | Self::Bf16 => 2 * padded_elems,
            Self::Int8 => padded_elems + self.scale_bytes(padded_elems),
        };
        round_up(bytes, SECTION_GRAIN_BYTES)
    }

    /// Bytes of a tensor's scales, which are stored behind its elements.
    fn scale_bytes(self, padded_elems: u64) -> u64 {
        round_up(4 * padded_elems / INT8_BLOCK_ELEMS as u64, SECTION_GRAIN_BYTES)
    }
}

names! { Codec:
    "fp32" = Fp32,
    "remainder16" = Remainder16,
    "bf16" = Bf16,
    "int8" = Int8,
}

/// How values are rounded when their codec cannot hold them exactly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rounding {
    /// To the nearest value. Of two that are equally near, bf16 takes the even one, int8 the
    /// larger.
    #[default]
    Nearest,
    /// Up or down at random, so that the mean is exact. The random bits are a function of seed,
    /// step, tensor and element, so that results do not depend on ranks, chunks or threads.
    Stochastic,
}

names! { Rounding:
    "nearest" = Nearest,
    "stochastic" = Stochastic,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_whole_sectors_and_as_small_as_that_allows() {
        let bytes = |codec: Codec| codec.section_bytes(1 << 20);
        assert_eq!(bytes(Codec::Fp32), 4 << 20);
        assert_eq!(bytes(Codec::Remainder16), 2 << 20);
        assert_eq!(bytes(Codec::Bf16), 2 << 20);
        assert_eq!(bytes(Codec::Int8), (1 << 20) + 4 * 4096);
        assert_eq!(Codec::Int8.section_bytes(4096), 2 * 4096);
    }
}
