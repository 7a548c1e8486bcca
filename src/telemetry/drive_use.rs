//! What all ranks of a node together moved on each of its drives, compared with what the drive can
//! do.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::records::{DriveLimit, RankRecord};
use crate::timers::Timer;

/// How much of a drive was used, by all ranks of its node together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DriveUse {
    /// The node.
    pub host: String,
    /// The directory that the user named.
    pub drive: String,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Operations that read.
    pub reads: u64,
    /// Operations that wrote.
    pub writes: u64,
    /// Seconds with an operation of the busiest rank in flight.
    pub busy_s: f64,
    /// The part of these in which nothing was written.
    pub reads_alone_s: f64,
    /// The part of these in which nothing was read.
    pub writes_alone_s: f64,
    /// Seconds of all steps of the rank that took longest; or `busy_s`, if that is longer.
    pub step_s: f64,
    /// Median and 99th percentile of the latencies of reads, in seconds, of the slowest rank.
    pub read_latency_s: [f64; 2],
    /// The same for writes.
    pub write_latency_s: [f64; 2],
    /// The most operations that a rank had in flight.
    pub depth_max: u32,
    /// The drive's measured bandwidths, if they are known.
    pub limit: Option<DriveLimit>,
    /// Bytes per second in its best step; 0 if that is not known.
    pub best_bytes_per_s: f64,
}

impl DriveUse {
    /// Bytes moved in both directions, per second of the steps.
    pub fn bytes_per_s(&self) -> f64 {
        ratio((self.read_bytes + self.written_bytes) as f64, self.step_s)
    }

    /// The time that the drive needs at its limit, as a fraction of the steps' time: at 1 it could
    /// not have been faster. `None` if its limit is not known.
    pub fn share_of_limit(&self) -> Option<f64> {
        let limit = self.limit?;
        let (read, written) = (self.read_bytes as f64, self.written_bytes as f64);
        // As much as is moved both ways runs at the mixed rate, the rest at that of its direction.
        let both = 2.0 * read.min(written);
        let alone = if read > written {
            ratio(read - written, limit.read_bytes_per_s)
        } else {
            ratio(written - read, limit.write_bytes_per_s)
        };
        let least_s = ratio(both, limit.mixed_bytes_per_s) + alone;
        (self.step_s > 0.0 && least_s > 0.0).then(|| least_s / self.step_s)
    }

    /// Its bandwidth as a fraction of that in its best step, if that is known.
    pub fn share_of_best(&self) -> Option<f64> {
        (self.best_bytes_per_s > 0.0).then(|| self.bytes_per_s() / self.best_bytes_per_s)
    }
}

/// `part / whole`; 0 if the whole is 0.
pub(super) fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

/// Every drive of the world with what all ranks moved on it, sorted by node and path.
pub(super) fn drive_uses(records: &[RankRecord]) -> Vec<DriveUse> {
    let mut uses: BTreeMap<(String, String), (DriveUse, Vec<u64>)> = BTreeMap::new();
    for record in records {
        for (index, drive) in record.drives.iter().enumerate() {
            let name = drive.root().display().to_string();
            let key = (record.host.clone(), name.clone());
            let (it, best) = uses.entry(key).or_insert_with(|| (new_use(record, name), Vec::new()));
            let totals = &drive.totals;
            it.read_bytes += totals.read_bytes;
            it.written_bytes += totals.written_bytes;
            it.reads += totals.reads;
            it.writes += totals.writes;
            // Writes that go on after a step keep the drive busy for longer than the step.
            let busy_s = totals.busy_ns as f64 / 1e9;
            it.step_s = it.step_s.max(record.seconds(Timer::Step)).max(busy_s);
            let seconds = |ns: u64| ns as f64 / 1e9;
            if seconds(totals.busy_ns) > it.busy_s {
                it.busy_s = seconds(totals.busy_ns);
                let alone = |other_ns: u64| seconds(totals.busy_ns.saturating_sub(other_ns));
                it.reads_alone_s = alone(totals.write_busy_ns);
                it.writes_alone_s = alone(totals.read_busy_ns);
            }
            for (share, at) in [(0.5, 0), (0.99, 1)] {
                let (read, write) = (&totals.read_latency, &totals.write_latency);
                it.read_latency_s[at] = it.read_latency_s[at].max(seconds(read.quantile_ns(share)));
                it.write_latency_s[at] =
                    it.write_latency_s[at].max(seconds(write.quantile_ns(share)));
            }
            it.depth_max = it.depth_max.max(totals.depth_max);
            it.limit = it.limit.or(drive.limit);
            add_rates(best, record, index);
        }
    }
    let finish = |(mut it, rates): (DriveUse, Vec<u64>)| {
        it.best_bytes_per_s = rates.into_iter().max().unwrap_or(0) as f64;
        it
    };
    uses.into_values().map(finish).collect()
}

fn new_use(record: &RankRecord, drive: String) -> DriveUse {
    DriveUse {
        host: record.host.clone(),
        drive,
        read_bytes: 0,
        written_bytes: 0,
        reads: 0,
        writes: 0,
        busy_s: 0.0,
        reads_alone_s: 0.0,
        writes_alone_s: 0.0,
        step_s: 0.0,
        read_latency_s: [0.0; 2],
        write_latency_s: [0.0; 2],
        depth_max: 0,
        limit: None,
        best_bytes_per_s: 0.0,
    }
}

/// Adds this rank's bytes per second in each of the last steps to those of other ranks.
fn add_rates(rates: &mut Vec<u64>, record: &RankRecord, drive: usize) {
    let series = &record.series;
    let Some(of) = series.drives.get(drive) else { return };
    rates.resize(rates.len().max(series.len()), 0);
    for (index, rate) in rates.iter_mut().enumerate().take(series.len()) {
        let bytes = of.read_bytes[index] + of.written_bytes[index];
        let ns = series.step_ns[index].max(of.busy_ns[index]);
        *rate += ratio(bytes as f64, ns as f64 / 1e9) as u64;
    }
}
