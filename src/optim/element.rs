//! The number formats in which the update takes gradients and gives parameters.

use std::ops::Range;

use half::{bf16, f16};

use super::codec::bf16_nearest;

/// Length of the slice of zeros that every format has.
const ZEROS: usize = 64 << 10;

/// A gradient element: read as f32.
pub trait GradElem: bytemuck::Pod + Send + Sync {
    /// The value as f32, exactly.
    fn load(self) -> f32;

    /// Zeros, for elements without a gradient.
    fn zeros() -> &'static [Self];

    /// Gradients, with their format known at run time.
    fn slice(grads: &[Self]) -> GradSlice<'_>;
}

impl GradElem for f32 {
    #[inline(always)]
    fn load(self) -> f32 {
        self
    }

    fn zeros() -> &'static [Self] {
        static ALL: [f32; ZEROS] = [0.0; ZEROS];
        &ALL
    }

    fn slice(grads: &[Self]) -> GradSlice<'_> {
        GradSlice::F32(grads)
    }
}

impl GradElem for bf16 {
    #[inline(always)]
    fn load(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    fn zeros() -> &'static [Self] {
        static ALL: [bf16; ZEROS] = [bf16::ZERO; ZEROS];
        &ALL
    }

    fn slice(grads: &[Self]) -> GradSlice<'_> {
        GradSlice::Bf16(grads)
    }
}

impl GradElem for f16 {
    /// Without a table or a branch, so that the kernel stays vectorised: the bits are moved to
    /// where an f32 has them, and the exponent is put right by a multiplication, which is exact for
    /// subnormal numbers too.
    #[inline(always)]
    fn load(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let moved = (bits & 0x7fff) << 13;
        let scaled = f32::from_bits(moved) * f32::from_bits(0x7780_0000);
        // Infinity and NaN have the largest exponent in both formats.
        let special = moved | 0x7f80_0000;
        let magnitude = if moved >= 0x0f80_0000 { special } else { scaled.to_bits() };
        f32::from_bits(magnitude | (bits & 0x8000) << 16)
    }

    fn zeros() -> &'static [Self] {
        static ALL: [f16; ZEROS] = [f16::ZERO; ZEROS];
        &ALL
    }

    fn slice(grads: &[Self]) -> GradSlice<'_> {
        GradSlice::F16(grads)
    }
}

/// A parameter element: what the training job holds of the master.
pub trait ParamElem: Copy + Send + Sync {
    /// Whether parameters of this format can be the upper halves of their masters.
    const IS_UPPER_HALF: bool = false;

    /// The master in this format.
    fn emit(master: f32) -> Self;

    /// Parameters as the upper halves of their masters; nothing for formats that are none.
    fn upper_halves(_params: &[Self]) -> &[bf16] {
        &[]
    }

    /// As [`Self::upper_halves`], to be changed.
    fn upper_halves_mut(_params: &mut [Self]) -> &mut [bf16] {
        &mut []
    }

    /// Parameters, with their format known at run time.
    fn slice_mut(params: &mut [Self]) -> ParamSliceMut<'_>;
}

impl ParamElem for f32 {
    #[inline(always)]
    fn emit(master: f32) -> Self {
        master
    }

    fn slice_mut(params: &mut [Self]) -> ParamSliceMut<'_> {
        ParamSliceMut::F32(params)
    }
}

impl ParamElem for bf16 {
    const IS_UPPER_HALF: bool = true;

    /// Rounds to nearest, ties to even; NaN stays NaN.
    #[inline(always)]
    fn emit(master: f32) -> Self {
        Self::from_bits(bf16_nearest(master))
    }

    fn upper_halves(params: &[Self]) -> &[bf16] {
        params
    }

    fn upper_halves_mut(params: &mut [Self]) -> &mut [bf16] {
        params
    }

    fn slice_mut(params: &mut [Self]) -> ParamSliceMut<'_> {
        ParamSliceMut::Bf16(params)
    }
}

impl ParamElem for f16 {
    /// Rounds to nearest, ties to even; what is too large becomes infinity, NaN stays NaN.
    #[inline(always)]
    fn emit(master: f32) -> Self {
        let bits = master.to_bits();
        let magnitude = bits & 0x7fff_ffff;
        // Normal results: round at the thirteenth bit, then move the exponent.
        let odd = (magnitude >> 13) & 1;
        let rounded = (magnitude.wrapping_add(0xfff + odd).wrapping_sub(0x3800_0000) >> 13) as u16;
        // Subnormal results: adding 0.5 leaves them, rounded by the addition itself, in the lowest
        // bits of the sum.
        let small = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000) as u16;
        let finite = if magnitude < 0x3880_0000 { small } else { rounded };
        let quiet_nan = 0x7e00 | ((magnitude >> 13) as u16 & 0x1ff);
        let large = if magnitude > 0x7f80_0000 { quiet_nan } else { 0x7c00 };
        let result = if magnitude >= 0x477f_f000 { large } else { finite };
        Self::from_bits(result | (bits >> 16) as u16 & 0x8000)
    }

    fn slice_mut(params: &mut [Self]) -> ParamSliceMut<'_> {
        ParamSliceMut::F16(params)
    }
}

/// Nothing is emitted; a slice of units takes no memory.
impl ParamElem for () {
    #[inline(always)]
    fn emit(_master: f32) -> Self {}

    fn slice_mut(params: &mut [Self]) -> ParamSliceMut<'_> {
        ParamSliceMut::Units(params)
    }
}

/// Gradients in one of the formats that the update reads.
#[derive(Clone, Copy, Debug)]
pub enum GradSlice<'a> {
    /// IEEE single precision.
    F32(&'a [f32]),
    /// The upper half of an f32.
    Bf16(&'a [bf16]),
    /// IEEE half precision.
    F16(&'a [f16]),
}

impl<'a> GradSlice<'a> {
    /// The gradients of these elements of the slice.
    pub(super) fn part(self, at: Range<usize>) -> Self {
        match self {
            Self::F32(grads) => Self::F32(&grads[at]),
            Self::Bf16(grads) => Self::Bf16(&grads[at]),
            Self::F16(grads) => Self::F16(&grads[at]),
        }
    }
}

/// Parameters in one of the formats that the update emits.
#[derive(Debug)]
pub enum ParamSliceMut<'a> {
    /// No parameters.
    Units(&'a mut [()]),
    /// IEEE single precision: the masters themselves.
    F32(&'a mut [f32]),
    /// The upper half of an f32.
    Bf16(&'a mut [bf16]),
    /// IEEE half precision.
    F16(&'a mut [f16]),
}

impl ParamSliceMut<'_> {
    /// Number of elements.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Units(params) => params.len(),
            Self::F32(params) => params.len(),
            Self::Bf16(params) => params.len(),
            Self::F16(params) => params.len(),
        }
    }

    /// The parameters of these elements of the slice.
    pub(super) fn part(&mut self, at: Range<usize>) -> ParamSliceMut<'_> {
        match self {
            Self::Units(params) => ParamSliceMut::Units(&mut params[at]),
            Self::F32(params) => ParamSliceMut::F32(&mut params[at]),
            Self::Bf16(params) => ParamSliceMut::Bf16(&mut params[at]),
            Self::F16(params) => ParamSliceMut::F16(&mut params[at]),
        }
    }

    /// Parameters as the upper halves of their masters; nothing for formats that are none.
    pub(super) fn upper_halves(&mut self) -> &mut [bf16] {
        match self {
            Self::Bf16(params) => params,
            _ => &mut [],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f16_agrees_with_the_half_crate_on_every_value() {
        for bits in 0..=u16::MAX {
            let value = f16::from_bits(bits);
            let same = value.load().to_bits() == value.to_f32().to_bits();
            assert!(same || (value.is_nan() && value.load().is_nan()), "{bits:04x}");
        }
        // Every upper half with every way of rounding, at both places where f16 cuts.
        for high in 0..=u16::MAX {
            for low in [0, 1, 0xfff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x7fff, 0x8000, 0xffff] {
                let value = f32::from_bits(u32::from(high) << 16 | low);
                let (ours, theirs) = (<f16 as ParamElem>::emit(value), f16::from_f32(value));
                let same = ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan());
                assert!(same, "{:08x}: {:04x}", value.to_bits(), ours.to_bits());
            }
        }
    }

    #[test]
    fn bf16_agrees_with_the_half_crate_on_every_upper_half_and_rounding_case() {
        for high in 0..=u16::MAX {
            for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits(u32::from(high) << 16 | low);
                let (ours, theirs) = (<bf16 as ParamElem>::emit(value), bf16::from_f32(value));
                assert_eq!(ours.to_bits(), theirs.to_bits(), "{:08x}", value.to_bits());
            }
            let value = bf16::from_bits(high);
            // The half crate quiets signalling NaNs; a plain widening keeps every bit.
            assert!(value.is_nan() || value.load().to_bits() == value.to_f32().to_bits());
        }
    }
}
