//! Numbers that look random and are the same for the same seed.

/// A stream of numbers: splitmix64 (Steele, Lea, Flood, OOPSLA 2014).
#[derive(Clone, Debug)]
pub(super) struct Random {
    state: u64,
}

impl Random {
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
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
