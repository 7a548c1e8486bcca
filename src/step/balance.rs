//! Drives that become faster or slower than their share of the data: each rank measures its drives,
//! and when one rank finds that a drive has changed, the ranks of the node give every drive another
//! share of what is written from then on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::coord::{Communicator, Topology, gather_all};
use crate::error::{Error, Result};
use crate::io::{Direction, DriveMeters, Reading};
use crate::plan::Plan;
use crate::storage::balance::{Change, DriveLoad, NOISE, WeightKeeper, rates as rates_of};
use crate::storage::{DRIVES_TARGET, ShardFiles, Shares};
use crate::units::{DriveIndex, Rank};

/// A measurement ends with the step after which the busiest drive has been busy for this long.
const BUSY_NS_MIN: u64 = 50_000_000;
/// A direction of a drive counts as measured if it had this many operations.
const OPS_MIN: u64 = 2;
/// If the busiest drive is busy for a smaller part of the steps' time, the drives are not what
/// limits the steps, and the measurement is not used.
const BUSY_PART_MIN: f64 = 0.5;

/// What ranks of a node call the same drive: its device, and which of several directories on that
/// device, if the user has given weights to directories.
type DriveKey = (u64, u32);

/// One rank's view of its drives.
pub(super) struct Balance {
    is_on: bool,
    meters: Arc<DriveMeters>,
    keys: Vec<DriveKey>,
    /// The ranks of this node.
    local: Vec<Rank>,
    keeper: WeightKeeper,
    /// Readings at the beginning of the measurement under way, and the time that steps took since.
    begin: Vec<[Reading; 2]>,
    steps: Duration,
    /// The last whole measurement.
    measured: Vec<DriveLoad>,
    has_evidence: bool,
    /// What the log has said about each drive.
    reported: Vec<ReportedRate>,
    has_warned_bound: bool,
}

/// What a drive does for this rank, in bytes per second; 0 where that is not known.
#[derive(Clone, Copy, Default)]
struct ReportedRate {
    /// The rate that the log has reported last, or would have if it had reported one.
    bytes_per_s: f64,
    /// The highest rate measured while the drive was busy all the time.
    bytes_per_s_max: f64,
}

impl Balance {
    /// `has_own_weights`: the user has given weights, so two directories on one device count as two
    /// drives.
    pub fn new(
        plan: &Plan,
        files: &ShardFiles,
        meters: Arc<DriveMeters>,
        topology: &Topology,
        has_own_weights: bool,
    ) -> Self {
        let drives = plan.config().drives.paths.len();
        let key = |drive: usize| {
            let found = rustix::fs::fstat(files.file(DriveIndex::from_index(drive)));
            let device = found.map_or(drive as u64, |found| found.st_dev);
            (device, if has_own_weights { drive as u32 } else { 0 })
        };
        Self {
            is_on: plan.config().drives.reweight && drives > 1,
            begin: meters.read(),
            meters,
            keys: (0..drives).map(key).collect(),
            local: topology.local_ranks().collect(),
            keeper: WeightKeeper::new(&plan.placement().shares()),
            steps: Duration::ZERO,
            measured: Vec::new(),
            has_evidence: false,
            reported: vec![ReportedRate::default(); drives],
            has_warned_bound: false,
        }
    }

    /// Gives the drives other weights, of all that is written from now on.
    ///
    /// # Errors
    /// Usage if there is not one weight for each drive, or a weight is out of range.
    pub fn set_weights(&mut self, plan: &Plan, host: &str, weights: &[f64]) -> Result<()> {
        let fits = weights.len() == self.keys.len();
        let in_range = weights.iter().all(|weight| weight.is_finite() && *weight >= 0.0);
        if !(fits && in_range && weights.iter().any(|weight| *weight > 0.0)) {
            return Err(Error::usage(
                "the drives' weights must be one for each drive, finite, not negative and not all \
                 zero",
            )
            .with("weights", format!("{weights:?}"))
            .with("drives", self.keys.len()));
        }
        self.keeper.set(weights);
        let shares = plan.reweigh(weights);
        self.warn_if_bound(host, &shares);
        Ok(())
    }

    /// Takes the weights that the placement has now, as after going back to a record.
    pub fn begin(&mut self, plan: &Plan) {
        self.keeper.set(&plan.placement().shares());
    }

    /// When this rank's last write to each drive ended; long ago if there was none.
    pub fn last_swap_outs(&self) -> Vec<Instant> {
        self.meters.last_done(Direction::SwapOut)
    }

    /// Adds the time of a step.
    pub fn end_step(&mut self, took: Duration) {
        self.steps += took;
    }

    /// Whether this rank has measured a change, so that all ranks should compare their
    /// measurements. Called before the all-reduce of a step and not at its end, so that writes
    /// behind the last step are counted too.
    pub fn find_evidence(&mut self) -> bool {
        if self.is_on && self.steps > Duration::ZERO {
            self.look();
        }
        self.has_evidence
    }

    fn look(&mut self) {
        let now = self.meters.read();
        let busiest = now
            .iter()
            .zip(&self.begin)
            .flat_map(|(now, begin)| [0, 1].map(|way| now[way].busy_ns - begin[way].busy_ns));
        let busiest = busiest.max().unwrap_or(0);
        if busiest < BUSY_NS_MIN {
            return;
        }
        let pairs = self.begin.iter().zip(&now);
        let measured: Vec<DriveLoad> = pairs.map(|(begin, now)| load_between(begin, now)).collect();
        let are_drives_the_limit = busiest as f64 >= BUSY_PART_MIN * self.steps.as_nanos() as f64;
        (self.begin, self.steps) = (now, Duration::ZERO);
        if are_drives_the_limit {
            let loads = self.keys.iter().copied().zip(measured);
            self.measured = self.loads_of(loads);
            self.has_evidence = self.keeper.look(&mut self.measured);
            for (reported, load) in self.reported.iter_mut().zip(&self.measured) {
                let known = load.known_bytes_per_s;
                if reported.bytes_per_s == 0.0 {
                    reported.bytes_per_s = known;
                }
                reported.bytes_per_s_max = reported.bytes_per_s_max.max(known);
            }
        }
    }

    /// What each of this rank's drives did, from the measurements of several ranks. Directories on
    /// one device share what the device did.
    fn loads_of(&self, measured: impl Iterator<Item = (DriveKey, DriveLoad)>) -> Vec<DriveLoad> {
        let mut by_key: BTreeMap<DriveKey, DriveLoad> = BTreeMap::new();
        for (key, load) in measured {
            let sum = by_key.entry(key).or_default();
            *sum = sum.and(&load);
        }
        let load_of = |key: &DriveKey| {
            let twins = self.keys.iter().filter(|it| *it == key).count() as u64;
            let load = by_key.get(key).copied().unwrap_or_default();
            let known_bytes_per_s = load.known_bytes_per_s / twins as f64;
            DriveLoad { bytes: load.bytes.map(|bytes| bytes / twins), known_bytes_per_s, ..load }
        };
        self.keys.iter().map(load_of).collect()
    }

    /// Collective: all ranks exchange their measurements, and the ranks of each node decide by
    /// theirs whether its drives get other shares.
    ///
    /// # Errors
    /// Peer, not agreed, if another rank does not come in time.
    pub fn reweigh(&mut self, plan: &Plan, comm: &dyn Communicator) -> Result<()> {
        self.has_evidence = false;
        let mine = self.keys.iter().copied().zip(self.measured.iter().copied());
        let all = gather_all(comm, &mine.collect::<Vec<_>>())?;
        let local = self.local.iter().flat_map(|rank| all[rank.index()].iter().copied());
        let loads = self.loads_of(local);
        let Some(changes) = self.keeper.decide(&loads) else { return Ok(()) };
        let before = plan.placement().shares();
        let shares = plan.reweigh(self.keeper.weights());
        if self.local.first() == Some(&comm.rank()) {
            let rates = rates_of(&loads);
            for change in changes {
                let drive = change.drive;
                let path = plan.config().drives.paths[drive].display().to_string();
                let moves = [before[drive], shares.given[drive]];
                self.report_change(comm.host(), &path, &change, &rates, moves);
            }
            self.warn_if_bound(comm.host(), &shares);
        }
        Ok(())
    }

    /// Warns once that a drive has changed. A change that only corrects its share is logged as
    /// information.
    fn report_change(
        &mut self,
        host: &str,
        path: &str,
        change: &Change,
        rates: &[Option<f64>],
        [before, after]: [f64; 2],
    ) {
        let rate = rates[change.drive].unwrap_or(0.0);
        // A rank that was stopped for a while may not have measured anything yet.
        let own_rate = rates_of(&self.measured).get(change.drive).copied().flatten();
        let own_rate = own_rate.unwrap_or(0.0);
        let reported = &mut self.reported[change.drive];
        let [before, after] = [percent(before), percent(after)];
        let mbps = |rate: f64| format!("{:.0}", rate / 1e6);
        let others = rates.iter().enumerate().filter(|(drive, _)| *drive != change.drive);
        let others: Vec<String> = others.map(|(_, rate)| mbps(rate.unwrap_or(0.0))).collect();
        let (own, others) = (mbps(rate), others.join(", "));
        if (own_rate / NOISE..own_rate * NOISE).contains(&reported.bytes_per_s) {
            if before != after {
                tracing::info!(
                    target: DRIVES_TARGET,
                    "the share of {path} on {host} is put right, from {before} to {after}: it does \
                     {own} MB/s each way while it is busy, the others {others}",
                );
            }
            return;
        }
        // The files may have no room for another share.
        let moves = if before == after {
            format!("stays at {after}")
        } else {
            format!("goes from {before} to {after}")
        };
        tracing::warn!(
            target: DRIVES_TARGET,
            "the drive {path} on {host} has become {}: {own} MB/s each way while it is busy (the \
             others {others}); its share of what is written {moves}",
            if change.factor < 1.0 { "slower" } else { "faster" },
        );
        // A drive that has rested is faster for a while than it will be.
        let most = reported.bytes_per_s_max;
        reported.bytes_per_s = if most > 0.0 { own_rate.min(most) } else { own_rate };
    }

    fn warn_if_bound(&mut self, host: &str, shares: &Shares) {
        if !shares.are_bound() || std::mem::replace(&mut self.has_warned_bound, true) {
            return;
        }
        tracing::warn!(
            target: DRIVES_TARGET,
            "on {host} the files have no room for the shares that the drives can do, {}: they get \
             {}, which is the best there is; a new job does better with a larger \
             drives.stripe_headroom, or with drives.weights set to the former",
            percents(&shares.wanted),
            percents(&shares.given),
        );
    }
}

/// What a drive did between two readings of its meters, for each direction in which it did enough.
fn load_between(begin: &[Reading; 2], end: &[Reading; 2]) -> DriveLoad {
    let mut load = DriveLoad::default();
    for way in [0, 1] {
        if end[way].ops - begin[way].ops >= OPS_MIN {
            load.bytes[way] = end[way].bytes - begin[way].bytes;
            load.busy_ns[way] = end[way].busy_ns - begin[way].busy_ns;
            load.observers[way] = 1;
        }
    }
    load
}

fn percents(shares: &[f64]) -> String {
    shares.iter().map(|share| percent(*share)).collect::<Vec<_>>().join(", ")
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}
