//! Rounding, also at random: bits that are a function of seed, step, tensor and element, so that
//! any rank, thread and chunk size rounds an element alike.

use crate::state::Rounding;
use crate::units::mix64;

/// How one step rounds.
#[derive(Clone, Copy, Debug)]
pub struct Rounder {
    rounding: Rounding,
    key: u64,
}

/// How the elements of a tile of one tensor are rounded.
#[derive(Clone, Copy, Debug)]
pub(super) struct TileRounder {
    rounding: Rounding,
    key: u32,
    /// Low half of the flat index of the tile's first element.
    first: u32,
}

impl Rounder {
    /// The rounding of one step (attempt).
    pub fn new(rounding: Rounding, seed: u64, attempt: u64) -> Self {
        Self { rounding, key: mix64(mix64(seed) ^ attempt) }
    }

    /// Of the elements of a tensor from `flat` on.
    #[inline(always)]
    pub(super) fn tile(self, tensor: u64, flat: u64) -> TileRounder {
        let key = mix64(self.key ^ (flat >> 32) ^ tensor << 60) as u32;
        TileRounder { rounding: self.rounding, key, first: flat as u32 }
    }
}

impl TileRounder {
    pub fn nearest() -> Self {
        Rounder::new(Rounding::Nearest, 0, 0).tile(0, 0)
    }

    pub fn rounding(self) -> Rounding {
        self.rounding
    }

    /// The same for the elements from `offset` of the tile on.
    #[inline(always)]
    pub fn from(self, offset: usize) -> Self {
        Self { first: self.first.wrapping_add(offset as u32), ..self }
    }

    /// Random bits of an element: the finaliser of MurmurHash3 (public domain, Appleby).
    #[inline(always)]
    pub fn bits(self, at: usize) -> u32 {
        let mut bits = self.first.wrapping_add(at as u32) ^ self.key;
        bits = (bits ^ (bits >> 16)).wrapping_mul(0x85eb_ca6b);
        bits = (bits ^ (bits >> 13)).wrapping_mul(0xc2b2_ae35);
        bits ^ (bits >> 16)
    }

    /// A number that is not negative, as a whole one. Within a thousandth of one it is taken for
    /// that, so that what was decoded is encoded to itself.
    #[inline(always)]
    pub fn round_stochastic(self, number: f32, at: usize) -> i32 {
        let below = floor(number);
        let part = number - below as f32;
        let chance = (self.bits(at) >> 8) as f32 / (1u32 << 24) as f32;
        below.wrapping_add(i32::from(part > chance.clamp(0.001, 0.999)))
    }
}

/// A number that is not negative, as the nearest whole one.
#[inline(always)]
pub(super) fn round_nearest(number: f32, _at: usize) -> i32 {
    floor(number + 0.5)
}

/// The whole part of a number that is not negative, and 0 for NaN; of what is beyond 4,096, that.
/// (A cast would be exact for larger ones as well, and is not vectorised.)
#[inline(always)]
fn floor(number: f32) -> i32 {
    // Not `clamp`, which leaves NaN as it is.
    #[allow(clippy::manual_clamp, reason = "NaN becomes 0")]
    let number = number.max(0.0).min(4096.0);
    // From 2^23 on, floats are whole numbers and their bits count up.
    let nearest = (number + 8_388_608.0).to_bits().wrapping_sub(0x4b00_0000) as i32;
    nearest.wrapping_sub(i32::from(nearest as f32 > number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floor_is_that_of_every_code_and_its_neighbours() {
        for whole in 0..=4096 {
            let number = whole as f32;
            assert_eq!(floor(number), whole);
            assert_eq!(floor(number.next_up()), whole.min(4096));
            assert_eq!(floor(number.next_down()), (whole - 1).max(0));
            assert_eq!(floor(number + 0.5), whole);
        }
        assert_eq!(floor(f32::NAN), 0);
        assert_eq!(floor(f32::INFINITY), 4096);
    }
}
