//! Synthetic masters and gradients: pure functions of seed, step and flat index, so that any rank
//! makes its own part and the whole is the same for any number of ranks.

use crate::units::{SPLITMIX64_GAMMA, mix64};

/// A number in [-1, 1) for a key: the upper 24 bits of splitmix64's output number `key`.
fn uniform(key: u64) -> f32 {
    let bits = mix64(key.wrapping_sub(1).wrapping_mul(SPLITMIX64_GAMMA));
    (bits >> 40) as f32 / (1u32 << 23) as f32 - 1.0
}

/// A different stream of keys for every seed and step.
fn stream(seed: u64, step: u64) -> u64 {
    seed.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(step.wrapping_mul(0x2545_f491_4f6c_dd1d))
}

/// Gradients of the elements from `flat_start` on at a step (from 1), between -0.01 and 0.01.
pub fn fill_synthetic_gradients<G>(
    seed: u64,
    step: u64,
    flat_start: u64,
    out: &mut [G],
    convert: impl Fn(f32) -> G,
) {
    let stream = stream(seed, step);
    for (flat, value) in (flat_start..).zip(out) {
        *value = convert(0.01 * uniform(stream.wrapping_add(flat)));
    }
}

/// Initial masters of the elements from `flat_start` on, between -0.1 and 0.1.
pub fn fill_synthetic_masters(seed: u64, flat_start: u64, out: &mut [f32]) {
    let stream = stream(seed, u64::MAX);
    for (flat, value) in (flat_start..).zip(out) {
        *value = 0.1 * uniform(stream.wrapping_add(flat));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_agree_with_the_whole_and_look_random() {
        let mut whole = vec![0.0f32; 10_000];
        fill_synthetic_gradients(7, 3, 0, &mut whole, |g| g);
        let mut part = vec![0.0f32; 100];
        fill_synthetic_gradients(7, 3, 5000, &mut part, |g| g);
        assert_eq!(part, whole[5000..5100]);
        let mean = whole.iter().sum::<f32>() / whole.len() as f32;
        assert!(mean.abs() < 3e-4, "{mean}");
        assert!(whole.iter().all(|g| g.abs() <= 0.01));
        let mut other = vec![0.0f32; 100];
        fill_synthetic_gradients(7, 4, 5000, &mut other, |g| g);
        assert_ne!(part, other);
    }
}
