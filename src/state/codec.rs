//! How a state tensor lies on a drive: its codec, how many bytes that takes, and how values are
//! rounded into it. The arithmetic is in `optim`.

use serde::{Deserialize, Serialize};

use crate::units::round_up;

/// Elements that share one scale of [`Codec::Int8`].
pub const INT8_BLOCK_ELEMS: usize = 256;

/// Sections of an extent are whole multiples of this, for direct I/O on every drive.
const SECTION_GRAIN_BYTES: u64 = 4096;

/// How a state tensor lies on a drive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// IEEE binary32, little endian, as in memory: 4 bytes an element.
    #[default]
    Fp32,
    /// The lower 16 bits of a binary32 master whose upper half is the bf16 parameter that the
    /// training job holds: 2 bytes an element, and nothing is lost.
    Remainder16,
    /// bf16: 2 bytes an element, rounded.
    Bf16,
    /// Eight bits an element and one binary32 scale for each [`INT8_BLOCK_ELEMS`] elements.
    Int8,
}

impl Codec {
    /// Bytes of a tensor of so many elements (whole blocks), scales included.
    pub fn section_bytes(self, padded_elems: u64) -> u64 {
        let bytes = match self {
            Self::Fp32 => 4 * padded_elems,
            Self::Remainder16 | Self::Bf16 => 2 * padded_elems,
            Self::Int8 => padded_elems + self.scale_bytes(padded_elems),
        };
        round_up(bytes, SECTION_GRAIN_BYTES)
    }

    /// Bytes of a tensor's scales, which lie behind its elements.
    fn scale_bytes(self, padded_elems: u64) -> u64 {
        round_up(4 * padded_elems / INT8_BLOCK_ELEMS as u64, SECTION_GRAIN_BYTES)
    }

    /// The name in configurations and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Remainder16 => "remainder16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }
}

/// How values are rounded into a codec that cannot hold them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rounding {
    /// To the nearest; of two, bf16 takes the even one, int8 the larger.
    #[default]
    Nearest,
    /// Up or down at random, so that the mean is exact. The random bits are a function of seed,
    /// step, tensor and element, so that results do not depend on ranks, chunks or threads.
    Stochastic,
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
