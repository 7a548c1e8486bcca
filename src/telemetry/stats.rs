//! Statistics over ranks and over samples.

use serde::{Deserialize, Serialize};

/// A value of every rank, summed up.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct OverRanks {
    /// The smallest.
    pub min: f64,
    /// The mean.
    pub mean: f64,
    /// The largest.
    pub max: f64,
    /// The lowest rank that has the largest.
    pub max_rank: usize,
    /// `max / mean - 1`: 0 when all ranks are alike.
    pub imbalance: f64,
}

impl OverRanks {
    /// Sums up one value per rank; `None` for no ranks.
    pub fn of(values: &[f64]) -> Option<Self> {
        let max = values.iter().copied().reduce(f64::max)?;
        let min = values.iter().copied().reduce(f64::min)?;
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let max_rank = values.iter().position(|value| *value == max)?;
        let imbalance = if mean > 0.0 { max / mean - 1.0 } else { 0.0 };
        Some(Self { min, mean, max, max_rank, imbalance })
    }
}

/// The middle value, or the mean of the two middle ones; 0 for none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        len if len % 2 == 1 => sorted[half],
        _ => (sorted[half - 1] + sorted[half]) / 2.0,
    }
}

/// The standard deviation of a sample; 0 for fewer than two values.
pub fn standard_deviation(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (values.len() - 1) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_and_samples_are_summed_up() {
        let over = OverRanks::of(&[1.0, 4.0, 4.0, 3.0]).unwrap();
        assert_eq!((over.min, over.mean, over.max, over.max_rank), (1.0, 3.0, 4.0, 1));
        assert!((over.imbalance - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!(OverRanks::of(&[0.0]).map(|over| over.imbalance), Some(0.0));
        assert_eq!(OverRanks::of(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[]), 0.0);
        assert_eq!(standard_deviation(&[2.0, 4.0, 6.0]), 2.0);
        assert_eq!(standard_deviation(&[2.0]), 0.0);
    }
}
