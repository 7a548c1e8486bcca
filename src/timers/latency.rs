//! A histogram of the latencies of operations, of fixed size, with buckets 3 % wide.

use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Buckets of one octave: each is at most 1/32 of its latency wide.
const PER_OCTAVE: usize = 32;
const PER_OCTAVE_BITS: u32 = PER_OCTAVE.trailing_zeros();
/// The first bucket ends here; it has all shorter operations.
const FIRST_BITS: u32 = 10;
/// The last bucket begins here, at 137 s; it has all longer operations.
const LAST_BITS: u32 = 37;
const BUCKETS: usize = 1 + (LAST_BITS - FIRST_BITS) as usize * PER_OCTAVE + 1;

/// A histogram of latencies from 1 us to 137 s; recording is one addition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latency {
    counts: Box<[u64]>,
    sum_ns: u64,
    max_ns: u64,
}

impl Default for Latency {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS].into_boxed_slice(), sum_ns: 0, max_ns: 0 }
    }
}

fn bucket_of(ns: u64) -> usize {
    if ns < 1 << FIRST_BITS {
        return 0;
    }
    let bits = 63 - ns.leading_zeros();
    if bits >= LAST_BITS {
        return BUCKETS - 1;
    }
    let within = (ns >> (bits - PER_OCTAVE_BITS)) as usize - PER_OCTAVE;
    1 + (bits - FIRST_BITS) as usize * PER_OCTAVE + within
}

/// Where a bucket ends, exclusively.
fn end_of(bucket: usize) -> u64 {
    let octaves = bucket as u64 / PER_OCTAVE as u64;
    let within = bucket as u64 % PER_OCTAVE as u64;
    (PER_OCTAVE as u64 + within) << (octaves + u64::from(FIRST_BITS - PER_OCTAVE_BITS))
}

impl Latency {
    /// Adds one operation.
    pub fn record(&mut self, duration: Duration) {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket_of(ns)] += 1;
        self.sum_ns = self.sum_ns.saturating_add(ns);
        self.max_ns = self.max_ns.max(ns);
    }

    /// Adds all operations of another histogram.
    pub fn add(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(sum, more)| *sum += more);
        self.sum_ns = self.sum_ns.saturating_add(other.sum_ns);
        self.max_ns = self.max_ns.max(other.max_ns);
    }

    /// Number of operations.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The latencies of all operations together, in nanoseconds.
    pub fn sum_ns(&self) -> u64 {
        self.sum_ns
    }

    /// The longest latency, in nanoseconds.
    pub fn max_ns(&self) -> u64 {
        self.max_ns
    }

    /// The latency in nanoseconds that a share of all operations, from 0 to 1, did not exceed;
    /// exact within 3 %.
    pub fn quantile_ns(&self, share: f64) -> u64 {
        let wanted = (self.count() as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return end_of(bucket).min(self.max_ns);
            }
        }
        self.max_ns
    }

    /// Number of operations that took at most `limit_ns`, which must be a power of two, where a
    /// bucket ends.
    pub fn count_below(&self, limit_ns: u64) -> u64 {
        let below = |bucket: &usize| end_of(*bucket) <= limit_ns;
        (0..BUCKETS).take_while(below).map(|bucket| self.counts[bucket]).sum()
    }
}

/// The form in which a histogram is sent and stored: only buckets that are not empty.
#[derive(Serialize, Deserialize)]
struct Sparse {
    sum_ns: u64,
    max_ns: u64,
    p50_ns: u64,
    p99_ns: u64,
    /// Number of a bucket, and operations in it.
    buckets: Vec<(u16, u64)>,
}

impl Serialize for Latency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let filled = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        let (p50_ns, p99_ns) = (self.quantile_ns(0.5), self.quantile_ns(0.99));
        let buckets = filled.map(|(bucket, count)| (bucket as u16, *count)).collect();
        let (sum_ns, max_ns) = (self.sum_ns, self.max_ns);
        Sparse { sum_ns, max_ns, p50_ns, p99_ns, buckets }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Latency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let sparse = Sparse::deserialize(deserializer)?;
        let mut latency = Self { sum_ns: sparse.sum_ns, max_ns: sparse.max_ns, ..Self::default() };
        for (bucket, count) in sparse.buckets {
            let place = latency.counts.get_mut(usize::from(bucket));
            *place.ok_or_else(|| D::Error::custom("no such bucket of a histogram"))? = count;
        }
        Ok(latency)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(latencies_ns: &[u64]) -> Latency {
        let mut latency = Latency::default();
        latencies_ns.iter().for_each(|ns| latency.record(Duration::from_nanos(*ns)));
        latency
    }

    #[test]
    fn every_latency_is_in_a_bucket_that_is_narrow() {
        for bits in 0..64 {
            for ns in [1u64 << bits, (1 << bits) + (1 << bits) / 3, (2u64 << bits).wrapping_sub(1)]
            {
                let end = end_of(bucket_of(ns));
                if (1 << FIRST_BITS..1 << LAST_BITS).contains(&ns) {
                    assert!(end > ns && end - ns <= ns / 32 + 1, "{ns} in a bucket up to {end}");
                }
            }
        }
        assert_eq!((bucket_of(0), bucket_of(u64::MAX)), (0, BUCKETS - 1));
    }

    #[test]
    fn quantiles_are_near_and_survive_the_way_to_other_ranks() {
        let latency = of(&(1..=1000).map(|us| us * 1000).collect::<Vec<_>>());
        for (share, ns) in [(0.5, 500_000), (0.99, 990_000), (1.0, 1_000_000)] {
            let found = latency.quantile_ns(share);
            assert!(found >= ns && found <= ns + ns / 25, "{share}: {found}");
        }
        assert_eq!((latency.count(), latency.max_ns()), (1000, 1_000_000));
        assert_eq!(latency.count_below(1 << 18), 262);
        let text = serde_json::to_string(&latency).unwrap();
        assert_eq!(serde_json::from_str::<Latency>(&text).unwrap(), latency);
        let mut both = latency.clone();
        both.add(&of(&[5_000_000_000]));
        assert_eq!((both.count(), both.max_ns()), (1001, 5_000_000_000));
        assert_eq!(Latency::default().quantile_ns(0.5), 0);
    }
}
