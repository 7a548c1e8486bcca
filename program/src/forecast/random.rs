//! Numbers that look random and are the same for the same seed.

use optswap::internals::units::{SPLITMIX64_GAMMA, mix64};

/// A stream of numbers: splitmix64.
#[derive(Clone, Debug)]
pub(super) struct Random {
    state: u64,
}

impl Random {
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    fn next(&mut self) -> u64 {
        let bits = mix64(self.state);
        self.state = self.state.wrapping_add(SPLITMIX64_GAMMA);
        bits
    }

    /// Above 0 and at most 1.
    fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Exponentially distributed with this mean.
    pub fn exponential(&mut self, mean: f64) -> f64 {
        -mean * self.uniform().ln()
    }

    /// A speed that varies around 1 by this relative standard deviation and is never negative:
    /// log-normal with median 1.
    pub fn speed(&mut self, spread: f64) -> f64 {
        if spread <= 0.0 {
            return 1.0;
        }
        // Box and Muller, 1958.
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        let normal = radius * (std::f64::consts::TAU * self.uniform()).cos();
        let sigma = (1.0 + spread * spread).ln().sqrt();
        (sigma * normal).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distributions_have_their_mean_and_spread() {
        let mut random = Random::new(1);
        let count = 100_000;
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let delays: Vec<f64> = (0..count).map(|_| random.exponential(3.0)).collect();
        assert!((mean(&delays) - 3.0).abs() < 0.05);
        let speeds: Vec<f64> = (0..count).map(|_| random.speed(0.1)).collect();
        let center = mean(&speeds);
        let variance = mean(&speeds.iter().map(|it| (it - center).powi(2)).collect::<Vec<_>>());
        assert!((center - 1.005).abs() < 0.005 && (variance.sqrt() - 0.1).abs() < 0.005);
        assert_eq!(random.speed(0.0), 1.0);
    }
}
