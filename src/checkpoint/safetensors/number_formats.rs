//! The types of safetensors that are floating-point numbers, widened to f32.

use half::{bf16, f16};
use safetensors::Dtype;

/// Bytes of an element of a type that can be widened to f32; `None` for all others.
pub(super) fn elem_bytes(dtype: Dtype) -> Option<usize> {
    match dtype {
        Dtype::F64 => Some(8),
        Dtype::F32 => Some(4),
        Dtype::BF16 | Dtype::F16 => Some(2),
        dtype if is_f8(dtype) || dtype == Dtype::F8_E8M0 => Some(1),
        _ => None,
    }
}

/// Whether a type has numbers of eight bits, which weights share with a scale beside them.
pub(super) fn is_f8(dtype: Dtype) -> bool {
    use Dtype::{F8_E4M3, F8_E4M3FNUZ, F8_E5M2, F8_E5M2FNUZ};
    [F8_E5M2, F8_E4M3, F8_E5M2FNUZ, F8_E4M3FNUZ].contains(&dtype)
}

/// Whether a type has whole numbers, or truth values.
pub(super) fn is_integer(dtype: Dtype) -> bool {
    use Dtype::{BOOL, I8, I16, I32, I64, U8, U16, U32, U64};
    [BOOL, U8, I8, I16, U16, I32, U32, I64, U64].contains(&dtype)
}

/// Widens little-endian values, [`elem_bytes`] each, to f32. An f64 is rounded to nearest.
pub(super) fn widen(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        Dtype::F64 => each(bytes, out, |bytes| f64::from_le_bytes(bytes) as f32),
        Dtype::BF16 => each(bytes, out, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        Dtype::F16 => each(bytes, out, |bytes| f16::from_le_bytes(bytes).to_f32()),
        // The upper byte of an f16.
        Dtype::F8_E5M2 => each(bytes, out, |[byte]| f16::from_le_bytes([0, byte]).to_f32()),
        Dtype::F8_E4M3 => each(bytes, out, |[byte]| match byte & 0x7f {
            0x7f => f32::NAN,
            _ => small_float(byte, 3, 7),
        }),
        Dtype::F8_E4M3FNUZ => each(bytes, out, |[byte]| unsigned_zero(byte, 3, 8)),
        Dtype::F8_E5M2FNUZ => each(bytes, out, |[byte]| unsigned_zero(byte, 2, 16)),
        Dtype::F8_E8M0 => each(bytes, out, |[byte]| match byte {
            255 => f32::NAN,
            exponent => 2f32.powi(i32::from(exponent) - 127),
        }),
        _ => each(bytes, out, f32::from_le_bytes),
    }
}

fn each<const N: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    let (values, _) = bytes.as_chunks::<N>();
    out.iter_mut().zip(values).for_each(|(out, bytes)| *out = value(*bytes));
}

/// A sign, an exponent and a fraction in eight bits (arXiv 2209.05433), without infinities.
fn small_float(bits: u8, fraction_bits: i32, bias: i32) -> f32 {
    let sign = if bits & 0x80 == 0 { 1.0 } else { -1.0 };
    let exponent = i32::from((bits & 0x7f) >> fraction_bits);
    let fraction = f32::from(bits & ((1 << fraction_bits) - 1)) * 2f32.powi(-fraction_bits);
    match exponent {
        0 => sign * fraction * 2f32.powi(1 - bias),
        _ => sign * (1.0 + fraction) * 2f32.powi(exponent - bias),
    }
}

/// The same in a format whose only NaN is the negative zero (arXiv 2206.02915).
fn unsigned_zero(bits: u8, fraction_bits: i32, bias: i32) -> f32 {
    if bits == 0x80 { f32::NAN } else { small_float(bits, fraction_bits, bias) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_floats_widen_exactly() {
        let value = |dtype, byte: u8| {
            let mut out = [0.0];
            widen(dtype, &[byte], &mut out);
            out[0]
        };
        assert_eq!(value(Dtype::F8_E4M3, 0x7e), 448.0);
        assert_eq!(value(Dtype::F8_E4M3, 0x01), 2f32.powi(-9));
        assert_eq!(value(Dtype::F8_E4M3, 0xb8), -1.0);
        assert!(value(Dtype::F8_E4M3, 0x7f).is_nan() && value(Dtype::F8_E4M3, 0xff).is_nan());
        assert_eq!(value(Dtype::F8_E5M2, 0x7b), 57344.0);
        assert_eq!(value(Dtype::F8_E5M2, 0xfc), f32::NEG_INFINITY);
        assert_eq!(value(Dtype::F8_E4M3FNUZ, 0x7f), 240.0);
        assert_eq!(value(Dtype::F8_E5M2FNUZ, 0xff), -57344.0);
        assert!(value(Dtype::F8_E4M3FNUZ, 0x80).is_nan());
        assert_eq!(value(Dtype::F8_E8M0, 127), 1.0);
        assert_eq!(value(Dtype::F8_E8M0, 0), 2f32.powi(-127));
        assert!(value(Dtype::F8_E8M0, 255).is_nan());
    }
}
