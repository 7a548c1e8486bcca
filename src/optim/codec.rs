//! The codecs of state tensors: loops that decode the elements of a section to f32 and encode them
//! again, with the same bits on every processor.

use half::bf16;

use super::rounding::{TileRounder, round_nearest};
use super::section::{Section, SectionMut};
use super::width::Kernel;
use crate::state::{INT8_BLOCK_ELEMS, Rounding};

/// See [`Section::decode`].
pub(super) struct Decode<'s, 'a> {
    pub section: Section<'s>,
    pub uppers: &'a [bf16],
    pub out: &'a mut [f32],
}

impl Kernel for Decode<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { section, uppers, out } = self;
        match section {
            Section::Fp32(values) => out.copy_from_slice(values),
            Section::Bf16(codes) => {
                for (out, code) in out.iter_mut().zip(codes) {
                    *out = f32::from_bits(u32::from(*code) << 16);
                }
            }
            Section::Remainder16(lowers) => {
                let (live, padding) = out.split_at_mut(uppers.len());
                for ((out, lower), upper) in live.iter_mut().zip(lowers).zip(uppers) {
                    *out = join_halves(*upper, *lower);
                }
                padding.fill(0.0);
            }
            Section::Int8 { codes, scales, is_signed } => {
                let blocks = out.chunks_mut(INT8_BLOCK_ELEMS).zip(codes.chunks(INT8_BLOCK_ELEMS));
                for ((out, codes), scale) in blocks.zip(scales) {
                    if is_signed {
                        decode_signed(codes, *scale, out);
                    } else {
                        decode_unsigned(codes, *scale, out);
                    }
                }
            }
        }
    }
}

/// See [`SectionMut::encode`].
pub(super) struct Encode<'s, 'a> {
    pub section: &'a mut SectionMut<'s>,
    pub values: &'a [f32],
    pub uppers: &'a mut [bf16],
    pub rounder: TileRounder,
}

impl Kernel for Encode<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { section, values, uppers, rounder } = self;
        match section {
            SectionMut::Fp32(out) => out.copy_from_slice(values),
            SectionMut::Bf16(codes) => encode_bf16(values, codes, rounder),
            SectionMut::Remainder16(lowers) => {
                for ((lower, upper), value) in lowers.iter_mut().zip(uppers).zip(values) {
                    (*upper, *lower) = split_halves(*value);
                }
            }
            SectionMut::Int8 { codes, scales, is_signed } => {
                let blocks =
                    codes.chunks_mut(INT8_BLOCK_ELEMS).zip(values.chunks(INT8_BLOCK_ELEMS));
                for (block, ((codes, values), scale)) in blocks.zip(scales.iter_mut()).enumerate() {
                    *scale = largest_magnitude(values);
                    let rounder = rounder.from(block * INT8_BLOCK_ELEMS);
                    encode_int8(values, *scale, codes, rounder, *is_signed);
                }
            }
        }
    }
}

#[inline(always)]
fn encode_bf16(values: &[f32], codes: &mut [u16], rounder: TileRounder) {
    match rounder.rounding() {
        Rounding::Nearest => {
            for (code, value) in codes.iter_mut().zip(values) {
                *code = bf16_nearest(*value);
            }
        }
        Rounding::Stochastic => {
            let len = codes.len();
            let values = &values[..len];
            for at in 0..len {
                codes[at] = bf16_stochastic(values[at], rounder.bits(at));
            }
        }
    }
}

/// Encodes one block.
#[inline(always)]
fn encode_int8(
    values: &[f32],
    scale: f32,
    codes: &mut [u8],
    rounder: TileRounder,
    is_signed: bool,
) {
    // One loop for each case, so that no loop has a branch in it.
    let stochastic = |number, at| rounder.round_stochastic(number, at);
    match (is_signed, rounder.rounding()) {
        (true, Rounding::Nearest) => encode_signed(values, scale, codes, round_nearest),
        (true, Rounding::Stochastic) => encode_signed(values, scale, codes, stochastic),
        (false, Rounding::Nearest) => encode_unsigned(values, scale, codes, round_nearest),
        (false, Rounding::Stochastic) => encode_unsigned(values, scale, codes, stochastic),
    }
}

/// A master as the bf16 parameter nearest to it (of two, the one farther from zero) and its lower
/// half. Nearest-even would lose a bit on ties; this way the lower half alone tells whether the
/// upper one was rounded away from zero. Every bit pattern comes back. The parameter of a NaN is a
/// NaN, unless its payload has bits that no arithmetic makes.
#[inline(always)]
pub fn split_halves(master: f32) -> (bf16, u16) {
    let bits = master.to_bits();
    (bf16::from_bits((bits.wrapping_add(0x8000) >> 16) as u16), bits as u16)
}

/// The master of [`split_halves`].
#[inline(always)]
pub fn join_halves(upper: bf16, lower: u16) -> f32 {
    let high = upper.to_bits().wrapping_sub(lower >> 15);
    f32::from_bits(u32::from(high) << 16 | u32::from(lower))
}

/// To nearest, ties to even; NaN stays NaN.
#[inline(always)]
pub(super) fn bf16_nearest(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
    let quiet_nan = (bits >> 16) as u16 | 0x40;
    if value.is_nan() { quiet_nan } else { rounded }
}

/// Away from zero with the probability of the part that is cut off.
#[inline(always)]
fn bf16_stochastic(value: f32, random: u32) -> u16 {
    let bits = value.to_bits();
    let rounded = (bits.wrapping_add(random & 0xffff) >> 16) as u16;
    let quiet_nan = (bits >> 16) as u16 | 0x40;
    if value.is_nan() { quiet_nan } else { rounded }
}

/// The largest magnitude of a block. Floats that are not negative are ordered as their bits are.
#[inline(always)]
fn largest_magnitude(values: &[f32]) -> f32 {
    let bits = values.iter().map(|value| value.to_bits() & 0x7fff_ffff);
    f32::from_bits(bits.fold(0, u32::max))
}

// Loops count with plain ranges and wrapping arithmetic: a check for overflow in them would keep
// them from being vectorised.

/// Code q stands for scale * (q / 127)^2 with q's sign: small values keep more digits. (127 times
/// the rounded 1 / 127 is exactly one, so the largest value keeps its bits.)
#[inline(always)]
fn decode_signed(codes: &[u8], scale: f32, out: &mut [f32]) {
    for (out, code) in out.iter_mut().zip(codes) {
        let part = f32::from(*code as i8) * (1.0 / 127.0);
        *out = part * part.abs() * scale;
    }
}

/// Code q stands for scale * (q / 255)^4, so that the square root, which the update divides by,
/// spans almost five decimal orders.
#[inline(always)]
fn decode_unsigned(codes: &[u8], scale: f32, out: &mut [f32]) {
    for (out, code) in out.iter_mut().zip(codes) {
        let part = f32::from(*code) * (1.0 / 255.0);
        let square = part * part;
        *out = square * square * scale;
    }
}

#[inline(always)]
fn encode_signed(values: &[f32], scale: f32, codes: &mut [u8], round: impl Fn(f32, usize) -> i32) {
    let (len, inverse) = (codes.len(), 1.0 / scale);
    let values = &values[..len];
    for at in 0..len {
        let number = (values[at].abs() * inverse).sqrt() * 127.0;
        let whole = round(number, at).min(127);
        codes[at] = if values[at] < 0.0 { whole.wrapping_neg() } else { whole } as u8;
    }
}

#[inline(always)]
fn encode_unsigned(
    values: &[f32],
    scale: f32,
    codes: &mut [u8],
    round: impl Fn(f32, usize) -> i32,
) {
    let (len, inverse) = (codes.len(), 1.0 / scale);
    let values = &values[..len];
    for at in 0..len {
        let number = (values[at] * inverse).sqrt().sqrt() * 255.0;
        let whole = round(number, at).min(255);
        // A moment that is not zero stays so: it is divided by.
        let least = i32::from(values[at] > 0.0);
        codes[at] = whole.max(least) as u8;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rayon::prelude::*;

    use super::*;
    use crate::optim::rounding::Rounder;
    use crate::state::{Codec, StateTensor};

    #[test]
    fn halves_of_every_bit_pattern_join_to_it() {
        (0..=u16::MAX).into_par_iter().for_each(|high| {
            let mut differences = 0u32;
            for low in 0..=u16::MAX {
                let bits = u32::from(high) << 16 | u32::from(low);
                let (upper, lower) = split_halves(f32::from_bits(bits));
                differences |= join_halves(upper, lower).to_bits() ^ bits;
            }
            assert_eq!(differences, 0, "upper half {high:04x}");
        });
    }

    #[test]
    fn the_upper_half_is_the_nearest_bf16() {
        for high in 0..=u16::MAX {
            for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits(u32::from(high) << 16 | low);
                let upper = split_halves(value).0;
                if value.is_nan() {
                    // Quiet NaNs as processors make them.
                    let is_made = low == 0 && high & 0x40 != 0;
                    assert!(!is_made || upper.is_nan(), "{:08x}", value.to_bits());
                    continue;
                }
                let even = bf16::from_f32(value);
                let is_tie = low == 0x8000;
                assert!(upper == even || is_tie, "{:08x}", value.to_bits());
                if is_tie {
                    assert_eq!(upper.to_bits(), high.wrapping_add(1));
                }
            }
        }
    }

    fn tensor(codec: Codec, is_signed: bool) -> StateTensor {
        StateTensor { name: "exp_avg".into(), codec, is_signed, initial: 0.0 }
    }

    fn round_trip(codec: Codec, is_signed: bool, values: &[f32], rounder: TileRounder) -> Vec<f32> {
        let mut bytes = vec![0u64; codec.section_bytes(values.len() as u64) as usize / 8];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut bytes);
        let tensor = tensor(codec, is_signed);
        SectionMut::new(&tensor, bytes, values.len()).encode(values, &mut [], rounder);
        let mut out = vec![0.0; values.len()];
        Section::new(&tensor, bytes, values.len()).decode(&[], &mut out);
        out
    }

    fn values() -> impl Strategy<Value = Vec<f32>> {
        let value = prop_oneof![
            3 => (-30i32..10, -1.0f32..1.0).prop_map(|(exponent, x)| x * 2f32.powi(exponent)),
            1 => Just(0.0f32),
        ];
        prop::collection::vec(value, 4096..=4096)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn what_was_decoded_is_encoded_to_itself(values in values(), seed: u64) {
            for rounding in [Rounding::Nearest, Rounding::Stochastic] {
                let rounder = Rounder::new(rounding, seed, 1).tile(1, 0);
                let again = Rounder::new(rounding, seed, 2).tile(1, 0);
                for (codec, is_signed) in
                    [(Codec::Bf16, true), (Codec::Int8, true), (Codec::Int8, false)]
                {
                    let magnitudes = values.iter().map(|value| value.abs()).collect();
                    let values = if is_signed { values.clone() } else { magnitudes };
                    let once = round_trip(codec, is_signed, &values, rounder);
                    let twice = round_trip(codec, is_signed, &once, again);
                    prop_assert_eq!(&once, &twice);
                    for (value, coded) in values.iter().zip(&once) {
                        prop_assert!(is_signed || (*value > 0.0) == (*coded > 0.0));
                        prop_assert!(value * coded >= 0.0);
                    }
                }
            }
        }
    }

    #[test]
    fn int8_errors_are_within_a_code() {
        let magnitudes: Vec<f32> = (0..4096).map(|i| 1.5f32.powi(-(i % 25)) + 1e-6).collect();
        let coded = round_trip(Codec::Int8, false, &magnitudes, TileRounder::nearest());
        for (value, coded) in magnitudes.iter().zip(coded) {
            // The square root lies on a square grid of 255 codes.
            let codes = |value: f32| value.sqrt().sqrt() / 1.000_001f32.powf(0.25) * 255.0;
            assert!((codes(*value) - codes(coded)).abs() < 0.51, "{value} became {coded}");
        }
    }

    #[test]
    fn stochastic_rounding_keeps_the_mean() {
        for (codec, is_signed) in [(Codec::Bf16, true), (Codec::Int8, true), (Codec::Int8, false)] {
            let mut values = vec![0.123_456_f32; 4096];
            values.iter_mut().step_by(INT8_BLOCK_ELEMS).for_each(|value| *value = 1.0);
            let (mut sum, mut distinct) = (0.0, std::collections::BTreeSet::new());
            for step in 0..50 {
                let rounder = Rounder::new(Rounding::Stochastic, 7, step).tile(1, 0);
                let coded = round_trip(codec, is_signed, &values, rounder);
                sum += coded[1..256].iter().map(|value| f64::from(*value)).sum::<f64>();
                distinct.extend(coded[1..256].iter().map(|value| value.to_bits()));
            }
            let mean = sum / (50.0 * 255.0);
            assert_eq!(distinct.len(), 2, "the two neighbours");
            // Codes are spaced as squares or fourth powers are, so the mean of the codes is exact
            // and that of the values almost.
            assert!((mean / 0.123_456 - 1.0).abs() < 2e-3, "{codec:?}: {mean}");
        }
    }
}
