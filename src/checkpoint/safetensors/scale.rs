//! Weights of eight bits that have a scale in a tensor of its own: one number for all of them, for
//! each row, or for each block of 128 x 128.

use super::source::TensorSource;
use crate::error::Result;

/// The side of a block, as DeepSeek-V3 and those after it have them.
const BLOCK_SIDE: usize = 128;

/// How the numbers of a scale lie over those of a weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scale {
    /// The scale's tensor.
    pub tensor: String,
    /// The weight's dimensions.
    shape: Vec<usize>,
    /// For each dimension, how many of the weight's positions have one of the scale's.
    sides: Vec<usize>,
}

impl Scale {
    /// The scale of a weight, by the shapes of both. `None` if it is of another kind than those
    /// that are known.
    pub fn new(tensor: &str, weight: &[usize], scale: &[usize]) -> Option<Self> {
        let mut of_dims = scale.to_vec();
        // A number for everything, or one for each row.
        if scale.iter().product::<usize>() == 1 {
            of_dims = vec![1; weight.len()];
        } else if scale.len() == 1 && weight.first() == scale.first() {
            of_dims.resize(weight.len(), 1);
        }
        if of_dims.len() != weight.len() {
            return None;
        }
        let sides: Option<Vec<usize>> = weight.iter().zip(&of_dims).map(side).collect();
        Some(Self { tensor: tensor.to_owned(), shape: weight.to_vec(), sides: sides? })
    }

    /// Multiplies values of the weight, from its element `offset` on, by their scales.
    pub fn apply(&self, source: &TensorSource, offset: u64, values: &mut [f32]) -> Result<()> {
        if values.is_empty() {
            return Ok(());
        }
        // Of the scale, only what lies over these positions of the first dimension is read.
        let per_first: usize = self.shape.iter().skip(1).product();
        let scales_per_first: usize = self.dims().skip(1).map(|(_, scales)| scales).product();
        let first_side = self.sides.first().copied().unwrap_or(1);
        let (start, end) = (offset as usize, offset as usize + values.len());
        let first = start / per_first / first_side;
        let last = (end - 1) / per_first / first_side;
        let mut scales = vec![0.0; (last - first + 1) * scales_per_first];
        source.read(&self.tensor, (first * scales_per_first) as u64, &mut scales)?;
        // Neighbours in the last dimension that share a number are multiplied at once.
        let last_dim = self.shape.last().copied().unwrap_or(1);
        let last_side = self.sides.last().copied().unwrap_or(1);
        let mut at = start;
        while at < end {
            let column = at % last_dim;
            let until = ((column / last_side + 1) * last_side).min(last_dim);
            let count = (until - column).min(end - at);
            let scale = scales[self.index(at) - first * scales_per_first];
            values[at - start..][..count].iter_mut().for_each(|value| *value *= scale);
            at += count;
        }
        Ok(())
    }

    /// For each dimension, the side of its blocks and how many there are.
    fn dims(&self) -> impl DoubleEndedIterator<Item = (usize, usize)> + ExactSizeIterator {
        self.shape.iter().zip(&self.sides).map(|(dim, side)| (*side, dim.div_ceil(*side)))
    }

    /// Where the scale of an element of the weight is in the scale's tensor.
    fn index(&self, elem: usize) -> usize {
        let (mut rest, mut index, mut stride) = (elem, 0, 1);
        for (dim, (side, scales)) in self.shape.iter().zip(self.dims()).rev() {
            index += rest % dim / side * stride;
            rest /= dim;
            stride *= scales;
        }
        index
    }
}

/// How many positions of one dimension share a scale: all, one, or a block.
fn side((dim, scales): (&usize, &usize)) -> Option<usize> {
    match *scales {
        1 => Some(*dim),
        scales if scales == *dim => Some(1),
        scales if scales == dim.div_ceil(BLOCK_SIDE) => Some(BLOCK_SIDE),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_of_every_known_kind_find_their_elements() {
        let index = |weight: &[usize], scale: &[usize], elem| {
            Scale::new("s", weight, scale).map(|it| it.index(elem))
        };
        // A number for all, for each row, for each column.
        assert_eq!(index(&[4, 6], &[], 23), Some(0));
        assert_eq!(index(&[4, 6], &[1], 23), Some(0));
        assert_eq!(index(&[4, 6], &[4, 1], 13), Some(2));
        assert_eq!(index(&[4, 6], &[4], 13), Some(2));
        assert_eq!(index(&[4, 6], &[1, 6], 13), Some(1));
        // Blocks, of which the last ones are cut.
        assert_eq!(index(&[200, 300], &[2, 3], 130 * 300 + 257), Some(5));
        // Experts in one tensor, each with scales of its own.
        assert_eq!(index(&[3, 200, 300], &[3, 2, 3], 2 * 60_000 + 257), Some(14));
        assert_eq!(index(&[3, 4, 6], &[3, 1, 6], 24 + 6 + 5), Some(11));
        // Groups of another size, and shapes that do not fit.
        for (weight, scale) in [(&[64, 64][..], &[64, 2][..]), (&[4, 6], &[6]), (&[4], &[2, 2])] {
            assert_eq!(index(weight, scale, 0), None, "{weight:?} {scale:?}");
        }
    }
}
