//! A sum of f64 values that does not depend on their order: a fixed-point number wide enough for
//! every f64, in limbs of 32 bits (Kulisch's accumulator). Limbs of different ranks may simply be
//! added, so one integer all-reduce gives every rank the same exact sum.

/// Bits below the binary point: the smallest f64 is 2^-1074.
const FRACTION_BITS: usize = 1074;
const LIMB_BITS: usize = 32;

/// Limbs of an [`ExactSum`]: bits 2^-1074 up to 2^1024, and room for 2^60 addends.
pub const LIMBS: usize = (FRACTION_BITS + 1024 + 60).div_ceil(LIMB_BITS);

/// An exact sum of non-negative finite values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExactSum {
    limbs: [u64; LIMBS],
    /// Additions since the last normalisation; each adds less than 2^32 to a limb.
    pending: u32,
}

/// An [`ExactSum`] without the zeros around its limbs.
#[derive(Clone, Debug)]
pub struct PackedSum {
    first: usize,
    limbs: Box<[u32]>,
}

impl PackedSum {
    /// The sum to be added to.
    pub fn unpacked(&self) -> ExactSum {
        let mut sum = ExactSum::default();
        let limbs = &mut sum.limbs[self.first..self.first + self.limbs.len()];
        limbs.iter_mut().zip(&self.limbs).for_each(|(limb, packed)| *limb = u64::from(*packed));
        sum
    }
}

impl Default for ExactSum {
    fn default() -> Self {
        Self { limbs: [0; LIMBS], pending: 0 }
    }
}

impl ExactSum {
    /// Adds a finite value that is not negative.
    pub fn add(&mut self, value: f64) {
        debug_assert!(value.is_finite() && value >= 0.0);
        let bits = value.to_bits();
        let exponent = (bits >> 52) as usize;
        let fraction = bits & ((1 << 52) - 1);
        // Subnormal numbers have exponent 0 and no hidden bit, but the scale of exponent 1.
        let mantissa = if exponent == 0 { fraction } else { fraction | 1 << 52 };
        let shift = exponent.max(1) - 1;
        let (limb, bit) = (shift / LIMB_BITS, shift % LIMB_BITS);
        let wide = u128::from(mantissa) << bit;
        for (i, part) in self.limbs[limb..limb + 3].iter_mut().enumerate() {
            *part += (wide >> (i * LIMB_BITS)) as u64 & 0xffff_ffff;
        }
        self.pending += 1;
        if self.pending == 1 << 30 {
            self.normalise();
        }
    }

    /// Adds another sum.
    pub fn merge(&mut self, mut other: Self) {
        other.normalise();
        for (mine, theirs) in self.limbs.iter_mut().zip(other.limbs) {
            *mine += theirs;
        }
        self.pending += 1;
        self.normalise();
    }

    /// The limbs, each below 2^32, so that those of 2^32 ranks can be added without overflow.
    pub fn limbs(mut self) -> [u64; LIMBS] {
        self.normalise();
        self.limbs
    }

    /// The sum whose limbs, possibly those of many ranks added, are these.
    ///
    /// Missing limbs count as zero.
    pub fn from_limbs(limbs: &[u64]) -> Self {
        let mut sum = Self::default();
        let known = limbs.len().min(LIMBS);
        sum.limbs[..known].copy_from_slice(&limbs[..known]);
        sum.normalise();
        sum
    }

    /// The same sum in as few bytes as it takes, to be kept.
    pub fn packed(self) -> PackedSum {
        let limbs = self.limbs();
        let is_set = |limb: &u64| *limb != 0;
        let first = limbs.iter().position(is_set).unwrap_or(0);
        let end = limbs.iter().rposition(is_set).map_or(first, |last| last + 1);
        PackedSum { first, limbs: limbs[first..end].iter().map(|limb| *limb as u32).collect() }
    }

    fn normalise(&mut self) {
        let mut carry = 0;
        for limb in &mut self.limbs {
            let value = *limb + carry;
            *limb = value & 0xffff_ffff;
            carry = value >> LIMB_BITS;
        }
        self.pending = 0;
    }

    /// The sum as f64: the leading 96 bits or more, rounded. A function of the exact value alone.
    pub fn value(mut self) -> f64 {
        self.normalise();
        let Some(top) = self.limbs.iter().rposition(|limb| *limb != 0) else { return 0.0 };
        let low = top.saturating_sub(3);
        let leading = self.limbs[low..=top].iter().rev();
        let leading = leading.fold(0u128, |value, limb| value << LIMB_BITS | u128::from(*limb));
        let exponent = (low * LIMB_BITS) as i32 - FRACTION_BITS as i32;
        // In two factors, because 2^-1074 alone times a large number would round twice.
        leading as f64 * exp2(exponent / 2) * exp2(exponent - exponent / 2)
    }
}

/// 2 to an exponent within the normal range of f64.
fn exp2(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn single_values_come_back() {
        for value in [0.0, 1.0, 1e-300, 1e300, 0.1, f64::MIN_POSITIVE, 2f64.powi(-600), 3.5e77] {
            let mut sum = ExactSum::default();
            sum.add(value);
            assert_eq!(sum.value(), value);
        }
    }

    #[test]
    fn nothing_is_lost_between_large_and_small() {
        let mut sum = ExactSum::default();
        sum.add(1e30);
        (0..1000).for_each(|_| sum.add(1e-3));
        let mut small = ExactSum::from_limbs(&sum.clone().limbs());
        let mut large = ExactSum::default();
        large.add(1e30);
        let large = large.limbs();
        for (limb, minus) in small.limbs.iter_mut().zip(large) {
            *limb = limb.wrapping_sub(minus);
        }
        assert!((small.value() - 1.0).abs() < 1e-12);
    }

    proptest! {
        #[test]
        fn order_and_grouping_do_not_matter(
            values in prop::collection::vec(0.0f64..1e80, 1..50),
            cut in 0usize..50,
        ) {
            let add_all = |values: &[f64]| {
                let mut sum = ExactSum::default();
                values.iter().for_each(|value| sum.add(*value));
                sum
            };
            let cut = cut.min(values.len());
            let mut reversed = values.clone();
            reversed.reverse();
            let whole = add_all(&values);
            let mut merged = add_all(&values[..cut]);
            merged.merge(add_all(&values[cut..]));
            let ranks: Vec<u64> = add_all(&values[..cut]).limbs().iter()
                .zip(add_all(&values[cut..]).limbs()).map(|(a, b)| a + b).collect();
            prop_assert_eq!(whole.clone().limbs(), add_all(&reversed).limbs());
            prop_assert_eq!(whole.clone().limbs(), merged.limbs());
            prop_assert_eq!(whole.clone().limbs(), ExactSum::from_limbs(&ranks).limbs());
            let packed = whole.clone().packed().unpacked();
            prop_assert_eq!(whole.clone().limbs(), packed.limbs());
            let naive: f64 = values.iter().sum();
            prop_assert!((whole.value() - naive).abs() <= naive * 1e-13);
        }
    }
}
