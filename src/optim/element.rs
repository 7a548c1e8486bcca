//! Number formats at the edge of the update kernel.

use half::bf16;

/// A gradient element: read as f32.
pub trait GradElem: Copy + Send + Sync {
    /// The value as f32, exactly.
    fn load(self) -> f32;
}

impl GradElem for f32 {
    #[inline(always)]
    fn load(self) -> f32 {
        self
    }
}

impl GradElem for bf16 {
    #[inline(always)]
    fn load(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

/// A parameter element: what the training job holds of the master.
pub trait ParamElem: Copy + Send + Sync {
    /// The master in this format.
    fn emit(master: f32) -> Self;
}

impl ParamElem for f32 {
    #[inline(always)]
    fn emit(master: f32) -> Self {
        master
    }
}

impl ParamElem for bf16 {
    /// Rounds to nearest, ties to even; NaN stays NaN.
    #[inline(always)]
    fn emit(master: f32) -> Self {
        let bits = master.to_bits();
        let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
        let quiet_nan = (bits >> 16) as u16 | 0x40;
        Self::from_bits(if master.is_nan() { quiet_nan } else { rounded })
    }
}

/// Nothing is emitted; a slice of units takes no memory.
impl ParamElem for () {
    #[inline(always)]
    fn emit(_master: f32) -> Self {}
}

#[cfg(test)]
mod tests {
    use super::*;

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
