//! How long operations took: percentiles over all ranks together. The histograms of the ranks are
//! added, because percentiles cannot be averaged.

use std::path::Path;

use serde::{Deserialize, Serialize};

use optswap::internals::telemetry::RankRecord;
use optswap::internals::timers::Latency;

/// Seconds from submission to completion, over all recorded steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LatencyPercentiles {
    /// Operations.
    pub operations: u64,
    /// The mean.
    pub mean_seconds: f64,
    /// Half took no longer, up to 3 %.
    pub p50_seconds: f64,
    /// 99 of 100 took no longer.
    pub p99_seconds: f64,
    /// 999 of 1000 took no longer.
    pub p999_seconds: f64,
    /// The longest, exactly.
    pub max_seconds: f64,
}

impl LatencyPercentiles {
    fn of(latency: &Latency) -> Self {
        let seconds = |ns: u64| ns as f64 / 1e9;
        let operations = latency.count();
        Self {
            operations,
            mean_seconds: seconds(latency.sum_ns()) / operations.max(1) as f64,
            p50_seconds: seconds(latency.quantile_ns(0.5)),
            p99_seconds: seconds(latency.quantile_ns(0.99)),
            p999_seconds: seconds(latency.quantile_ns(0.999)),
            max_seconds: seconds(latency.max_ns()),
        }
    }

    /// The percentiles 50, 99 and 99.9, and the longest, in seconds.
    pub(super) fn points(&self) -> [f64; 4] {
        [self.p50_seconds, self.p99_seconds, self.p999_seconds, self.max_seconds]
    }
}

/// Both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latencies {
    /// Of reads.
    pub read: LatencyPercentiles,
    /// Of writes.
    pub write: LatencyPercentiles,
}

impl Latencies {
    /// Of some ranks together; below one directory, or on all their drives.
    pub(super) fn of<'a>(
        records: impl Iterator<Item = &'a RankRecord>,
        root: Option<&Path>,
    ) -> Self {
        let (mut read, mut write) = (Latency::default(), Latency::default());
        let is_meant = |path: &Path| root.is_none_or(|root| path.starts_with(root));
        for drive in records.flat_map(|record| &record.drives).filter(|it| is_meant(&it.path)) {
            read.add(&drive.totals.read_latency);
            write.add(&drive.totals.write_latency);
        }
        Self { read: LatencyPercentiles::of(&read), write: LatencyPercentiles::of(&write) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use optswap::internals::io::DriveTotals;
    use optswap::internals::telemetry::DriveRecord;

    /// A rank with one operation of each of these microseconds on one drive.
    fn rank(path: &str, us: impl Iterator<Item = u64>) -> RankRecord {
        let mut totals = DriveTotals::default();
        us.for_each(|us| totals.read_latency.record(Duration::from_micros(us)));
        let drives = vec![DriveRecord { path: path.into(), totals, limit: None }];
        RankRecord {
            rank: 0,
            host: "a".to_owned(),
            elems: 1,
            steps: 1,
            drives,
            timers: Vec::new(),
            counters: Vec::new(),
            kernel_read_bytes: 0,
            kernel_written_bytes: 0,
            series: Default::default(),
            picture: Vec::new(),
        }
    }

    #[test]
    fn histograms_are_added_and_percentiles_are_not_averaged() {
        // 990 fast operations, 10 slow ones; the slow rank has few.
        let ranks = [
            rank("/d0/optswap/job/shard-00000/state", (0..990).map(|_| 100)),
            rank("/d1/optswap/job/shard-00001/state", (0..10).map(|_| 10_000)),
        ];
        let near = |found: f64, expected: f64| (found / expected - 1.0).abs() < 0.035;
        let world = Latencies::of(ranks.iter(), None).read;
        assert_eq!(world.operations, 1000);
        assert!(near(world.mean_seconds, 199e-6), "{world:?}");
        assert!(near(world.p50_seconds, 100e-6) && near(world.p99_seconds, 100e-6), "{world:?}");
        assert!(near(world.p999_seconds, 10e-3), "{world:?}");
        assert_eq!(world.max_seconds, 10e-3);
        let slow = Latencies::of(ranks.iter(), Some(Path::new("/d1"))).read;
        assert_eq!((slow.operations, slow.p50_seconds), (10, 10e-3));
        assert_eq!(Latencies::of(ranks.iter(), None).write, LatencyPercentiles::default());
    }
}
