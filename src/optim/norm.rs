//! The squared gradient norm, one block of 4,096 elements of the flat space at a time. A block's
//! sum has a fixed order; blocks are added exactly. So the norm is the same for any cut of the flat
//! space into ranks, chunks, pieces or threads.

use super::exact_sum::{ExactSum, PackedSum};
use super::width::{Kernel, on_widest};
use crate::units::BLOCK_ELEMS;

/// Partial sums of a block: element i goes to sum i modulo this.
const LANES: usize = 16;

/// Norm and overflow of some blocks.
#[derive(Clone, Debug, Default)]
pub struct BlockNorm {
    /// Sum of squares of the finite blocks.
    pub squares: ExactSum,
    /// Blocks with an infinity or NaN in them.
    pub overflows: u64,
}

impl BlockNorm {
    /// Adds one block; a short last block counts as filled up with zeros.
    pub fn add_block(&mut self, block: &[f32]) {
        debug_assert!(block.len() as u64 <= BLOCK_ELEMS);
        let sum = sum_of_squares(block);
        if sum.is_finite() {
            self.squares.add(sum);
        } else {
            self.overflows += 1;
        }
    }

    /// Adds those of other blocks.
    pub fn merge(&mut self, other: Self) {
        self.squares.merge(other.squares);
        self.overflows += other.overflows;
    }

    /// The same in as few bytes as it takes, to be kept.
    pub fn packed(self) -> PackedNorm {
        PackedNorm { squares: self.squares.packed(), overflows: self.overflows }
    }
}

/// A [`BlockNorm`] without the limbs that are zero, which are most of its 560 bytes.
#[derive(Clone, Debug)]
pub struct PackedNorm {
    squares: PackedSum,
    overflows: u64,
}

impl PackedNorm {
    /// The norm to be added to.
    pub fn unpacked(&self) -> BlockNorm {
        BlockNorm { squares: self.squares.unpacked(), overflows: self.overflows }
    }
}

/// The sum of squares in f64, in sixteen lanes that are added pairwise at the end. A square of f32
/// values cannot overflow f64, so the sum is finite exactly if every element is.
pub fn sum_of_squares(block: &[f32]) -> f64 {
    on_widest(Squares(block))
}

struct Squares<'a>(&'a [f32]);

impl Kernel for Squares<'_> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        let mut lanes = [0.0f64; LANES];
        let (whole, rest) = self.0.as_chunks::<LANES>();
        for values in whole {
            for (lane, value) in lanes.iter_mut().zip(values) {
                let value = f64::from(*value);
                *lane += value * value;
            }
        }
        for (lane, value) in lanes.iter_mut().zip(rest) {
            let value = f64::from(*value);
            *lane += value * value;
        }
        let mut width = LANES;
        while width > 1 {
            width /= 2;
            for lane in 0..width {
                lanes[lane] += lanes[lane + width];
            }
        }
        lanes[0]
    }
}

#[cfg(test)]
mod tests {
    use super::super::width::{on_width, widths};
    use super::*;

    #[test]
    fn the_sum_is_that_of_the_squares() {
        let block: Vec<f32> = (0..4096).map(|i| i as f32).collect();
        assert_eq!(sum_of_squares(&block), 4095.0 * 4096.0 * 8191.0 / 6.0);
        assert_eq!(sum_of_squares(&[3.0, 4.0]), 25.0);
        let large = 2f32.powi(127);
        assert_eq!(sum_of_squares(&[large; 4096]), 4096.0 * f64::from(large).powi(2));
    }

    #[test]
    fn every_width_gives_the_same_bits() {
        let block: Vec<f32> = (0..4093).map(|i| (i as f32).sin() * 1e3f32.powi(i % 7)).collect();
        for len in [0, 1, 15, 16, 17, 4093] {
            let bits = |width| on_width(width, Squares(&block[..len])).to_bits();
            assert!(widths().all(|width| bits(width) == Squares(&block[..len]).run().to_bits()));
        }
    }

    #[test]
    fn infinities_and_nans_are_counted_not_added() {
        let mut norm = BlockNorm::default();
        norm.add_block(&[1.0, 2.0]);
        norm.add_block(&[1.0, f32::NAN]);
        norm.add_block(&[f32::NEG_INFINITY]);
        assert_eq!(norm.overflows, 2);
        assert_eq!(norm.squares.value(), 5.0);
    }
}
