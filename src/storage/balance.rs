//! Whether drives are as fast as their weights say, and other weights if not: pure decisions from
//! measurements.
//!
//! A drive is measured in bytes per second of busy time. A drive that waits for work most of the
//! time may look a little slower than it is, because its queue is short, but never slower for its
//! share than one that is always busy. So weights that follow the measurements settle where all
//! drives are equally busy.

use serde::{Deserialize, Serialize};

use super::shares::normalized;

/// What one drive moved in some steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DriveLoad {
    /// Bytes, read and written.
    pub bytes: [u64; 2],
    /// Nanoseconds with at least one read, and with at least one write, in flight.
    pub busy_ns: [u64; 2],
    /// Number of ranks whose measurements are added up here, read and written.
    pub observers: [u32; 2],
    /// Its rate in bytes per second, as in [`rates`], when it was last busy all the time; 0 if it
    /// never was.
    pub known_bytes_per_s: f64,
}

impl DriveLoad {
    /// The sum of two measurements of the same drive by different ranks.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let both = |a: [u64; 2], b: [u64; 2]| [a[0] + b[0], a[1] + b[1]];
        let [first, second] = [self.observers, other.observers];
        Self {
            bytes: both(self.bytes, other.bytes),
            busy_ns: both(self.busy_ns, other.busy_ns),
            observers: [first[0] + second[0], first[1] + second[1]],
            known_bytes_per_s: self.known_bytes_per_s + other.known_bytes_per_s,
        }
    }

    /// Bytes per second of busy time, read and written. Ranks that keep the drive busy at the same
    /// time share it, so their rates are added up.
    pub fn bytes_per_s(&self) -> [Option<f64>; 2] {
        [0, 1].map(|way| {
            let busy_s = self.busy_ns[way] as f64 / 1e9 / f64::from(self.observers[way]);
            (self.bytes[way] > 0 && busy_s > 0.0).then(|| self.bytes[way] as f64 / busy_s)
        })
    }
}

/// The rate of every drive, in bytes per second of the direction that takes longer in a step;
/// `None` for a drive that moved nothing.
pub fn rates(loads: &[DriveLoad]) -> Vec<Option<f64>> {
    let moved = [0, 1].map(|way| loads.iter().map(|load| load.bytes[way]).sum::<u64>() as f64);
    let most = moved[0].max(moved[1]);
    let rate = |load: &DriveLoad| {
        let [read, written] = load.bytes_per_s();
        let seconds = |way: usize, rate: Option<f64>| rate.map(|rate| moved[way] / most / rate);
        let longest = seconds(0, read).into_iter().chain(seconds(1, written)).reduce(f64::max);
        longest.filter(|longest| *longest > 0.0).map(|longest| 1.0 / longest)
    };
    loads.iter().map(rate).collect()
}

/// A drive that is busy for less than this part of the busiest one's time waits for others.
const SATURATED: f64 = 0.85;
/// A drive that waits is taken to be as fast as it was when it was always busy, unless it is now
/// slower beyond noise, or faster than by this factor: idle drives are faster for a moment.
const BURST: f64 = 1.6;

/// A drive that waits gets at most this many times its weight at once, since it may be faster only
/// for a moment.
const RAISE_MAX: f64 = 4.0;

/// How long each drive is busy, as a fraction of the busiest one's time.
fn busy_parts(loads: &[DriveLoad]) -> Vec<f64> {
    let busy = |load: &DriveLoad| {
        let way = |way: usize| match load.observers[way] {
            0 => 0.0,
            observers => load.busy_ns[way] as f64 / f64::from(observers),
        };
        way(0).max(way(1))
    };
    let busiest = loads.iter().map(busy).fold(0.0, f64::max);
    loads.iter().map(|load| if busiest > 0.0 { busy(load) / busiest } else { 1.0 }).collect()
}

/// The rates that decisions are based on: those measured, but for drives that wait for others, the
/// rate that is known of them. Waiting drives without a known rate are taken to differ from each
/// other as their weights do.
fn believable_rates(loads: &[DriveLoad], weights: &[f64]) -> Vec<Option<f64>> {
    let rates = rates(loads);
    let waits: Vec<bool> = busy_parts(loads).iter().map(|part| *part < SATURATED).collect();
    let unknown = |drive: &usize| waits[*drive] && loads[*drive].known_bytes_per_s == 0.0;
    let strangers = (0..loads.len()).filter(unknown);
    let strangers = strangers.filter_map(|drive| Some((rates[drive]?, weights[drive])));
    let (rate, weight) = strangers.fold((0.0, 0.0), |sum, it| (sum.0 + it.0, sum.1 + it.1));
    let believable = |drive: usize| {
        let (own, known) = (rates[drive]?, loads[drive].known_bytes_per_s);
        Some(if !waits[drive] {
            own
        } else if known == 0.0 {
            if weight > 0.0 { weights[drive] * rate / weight } else { own }
        } else if (known / NOISE..known * BURST).contains(&own) {
            known
        } else {
            own.min(known * RAISE_MAX)
        })
    };
    (0..loads.len()).map(believable).collect()
}

/// How far each drive's rate is from its weight, as a factor: 0.25 for a drive that does a quarter
/// of what its weight says, compared with all drives together.
fn factors(rates: &[Option<f64>], weights: &[f64]) -> Vec<f64> {
    let known = || rates.iter().zip(weights).filter_map(|(rate, weight)| Some(((*rate)?, weight)));
    let (rate, weight) = known().fold((0.0, 0.0), |sum, it| (sum.0 + it.0, sum.1 + it.1));
    let factor = |(own, own_weight): (&Option<f64>, &f64)| match own {
        Some(own) if *own_weight > 0.0 && rate > 0.0 => own / own_weight * weight / rate,
        _ => 1.0,
    };
    rates.iter().zip(weights).map(factor).collect()
}

/// The factor of the drive in the middle, by weight.
fn middle(factors: &[f64], weights: &[f64]) -> f64 {
    let mut sorted: Vec<(f64, f64)> =
        factors.iter().copied().zip(weights.iter().copied()).collect();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let half = weights.iter().sum::<f64>() / 2.0;
    let mut below = 0.0;
    let reaches = |(_, weight): &&(f64, f64)| {
        below += weight;
        below > half - 1e-9
    };
    // Of two in the middle, the faster one.
    let upper = sorted.iter().find(reaches).map_or(1.0, |it| it.0);
    let is_even = (below - half).abs() < 1e-9;
    let above = sorted.iter().map(|it| it.0).find(|factor| *factor > upper);
    if is_even { above.unwrap_or(upper) } else { upper }
}

/// Factors up to this are noise.
pub const NOISE: f64 = 1.25;
/// What factors beyond noise must amount to, multiplied over measurements. A drive at a quarter of
/// its rate is noticed at once, one at two thirds after a few measurements.
const ENOUGH: f64 = 2.0;
/// Number of measurements after a change in which smaller factors count. The first of them may
/// still be half from before the change.
const SETTLING: u32 = 4;
/// What counts as noise and as enough in these measurements.
const NOISE_SETTLING: f64 = 1.08;
const ENOUGH_SETTLING: f64 = 1.01;
/// No drive is taken to be slower than this fraction of the fastest: it would get no work at all,
/// and its recovery would go unnoticed.
const SLOWEST: f64 = 0.01;
/// If a drive is slow again within this many measurements after it was given more, more evidence is
/// needed the next time.
const SOON: u32 = 16;
const PATIENCE_MAX: f64 = 64.0;
/// Number of measurements without an alarm after a false one.
const PAUSE: u32 = 8;

/// What is noise and what is enough evidence, as logarithms.
fn thresholds(is_settling: bool) -> (f64, f64) {
    let (noise, enough) =
        if is_settling { (NOISE_SETTLING, ENOUGH_SETTLING) } else { (NOISE, ENOUGH) };
    (noise.ln(), enough.ln())
}

/// A drive whose speed has changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Which drive.
    pub drive: usize,
    /// Its rate relative to its weight: below 1 if it is slower than its weight says.
    pub factor: f64,
}

/// Keeps the weights of a node's drives and detects when they are no longer right, by a cumulative
/// sum of what is beyond noise (CUSUM; Page, Biometrika 1954): for each drive one sum for being
/// slower and one for being faster.
#[derive(Clone, Debug)]
pub struct WeightKeeper {
    weights: Vec<f64>,
    /// The rate of each drive when it was last busy all the time; 0 if it never was.
    known_bytes_per_s: Vec<f64>,
    /// The sums, as logarithms of factors.
    slower: Vec<f64>,
    faster: Vec<f64>,
    /// The factor by which more evidence is needed for "faster".
    patience: Vec<f64>,
    /// Measurements since a drive was given more.
    since_raised: Vec<u32>,
    settling: u32,
    pause: u32,
}

impl WeightKeeper {
    /// Begins with these weights.
    pub fn new(weights: &[f64]) -> Self {
        let drives = weights.len();
        Self {
            weights: normalized(weights),
            known_bytes_per_s: vec![0.0; drives],
            slower: vec![0.0; drives],
            faster: vec![0.0; drives],
            patience: vec![1.0; drives],
            since_raised: vec![u32::MAX; drives],
            settling: 0,
            pause: 0,
        }
    }

    /// The weights.
    pub fn weights(&self) -> &[f64] {
        &self.weights
    }

    /// Enters a measurement and returns whether there is enough evidence that the weights are
    /// wrong. Writes into the measurement the rate that is known of each drive.
    pub fn look(&mut self, loads: &mut [DriveLoad]) -> bool {
        let known = self.known_bytes_per_s.iter();
        loads.iter_mut().zip(known).for_each(|(load, known)| load.known_bytes_per_s = *known);
        let is_settling = self.settling > 0;
        self.settling = self.settling.saturating_sub(1);
        self.pause = self.pause.saturating_sub(1);
        let mut has_evidence = false;
        let factors = factors(&believable_rates(loads, &self.weights), &self.weights);
        self.learn(loads);
        // If one drive is faster than its weight says, the others do not count as slower.
        let middle = middle(&factors, &self.weights);
        for (drive, factor) in factors.into_iter().enumerate() {
            self.since_raised[drive] = self.since_raised[drive].saturating_add(1);
            let (below, beyond) = (middle / factor.max(1e-6), factor.max(1e-6));
            let (noise, enough) = thresholds(is_settling);
            self.slower[drive] = (self.slower[drive] + below.ln() - noise).max(0.0);
            has_evidence |= self.slower[drive] > enough;
            let patience = self.patience[drive];
            let (noise, enough) = thresholds(is_settling && patience <= 1.0);
            self.faster[drive] = (self.faster[drive] + beyond.ln() - noise).max(0.0);
            has_evidence |= self.faster[drive] > enough * patience;
        }
        has_evidence && self.pause == 0
    }

    fn learn(&mut self, loads: &mut [DriveLoad]) {
        let (rates, parts) = (rates(loads), busy_parts(loads));
        for (drive, load) in loads.iter_mut().enumerate() {
            let known = &mut self.known_bytes_per_s[drive];
            let Some(rate) = rates[drive] else { continue };
            let is_news = !(rate / NOISE..rate * NOISE).contains(known);
            *known = if parts[drive] < SATURATED {
                // It waits, so it could have moved at least what it did in the busiest one's time.
                if *known > 0.0 { known.max(rate * parts[drive]) } else { 0.0 }
            } else if is_news {
                rate
            } else {
                (*known + rate) / 2.0
            };
            load.known_bytes_per_s = *known;
        }
    }

    /// Decides from what all ranks of the node have measured. Returns the drives whose speed has
    /// changed if there are new weights, else `None`.
    pub fn decide(&mut self, loads: &[DriveLoad]) -> Option<Vec<Change>> {
        let factors = factors(&believable_rates(loads, &self.weights), &self.weights);
        let distance = |factor: f64| factor.max(1e-6).ln().abs();
        let farthest = factors.iter().copied().map(distance).fold(0.0, f64::max);
        self.slower.fill(0.0);
        self.faster.fill(0.0);
        if farthest < NOISE_SETTLING.ln() {
            self.pause = PAUSE;
            return None;
        }
        for (drive, factor) in factors.iter().enumerate() {
            if *factor < 1.0 / NOISE && self.since_raised[drive] < SOON {
                self.patience[drive] = (4.0 * self.patience[drive]).min(PATIENCE_MAX);
            }
            if *factor > NOISE {
                self.since_raised[drive] = 0;
            }
        }
        // A drive that was not measured keeps its weight.
        let weights = self.weights.iter().zip(&factors).map(|(weight, factor)| weight * factor);
        let weights: Vec<f64> = weights.collect();
        let fastest = weights.iter().copied().fold(0.0, f64::max);
        let floor = |weight: f64| if weight > 0.0 { weight.max(SLOWEST * fastest) } else { 0.0 };
        self.weights = normalized(&weights.into_iter().map(floor).collect::<Vec<_>>());
        // A change while the last one settles does not prolong the settling.
        if self.settling == 0 {
            self.settling = SETTLING;
        }
        let changes = factors.iter().enumerate();
        let is_farthest = |(_, factor): &(usize, &f64)| distance(**factor) > 0.8 * farthest;
        let changes = changes.filter(is_farthest);
        Some(changes.map(|(drive, factor)| Change { drive, factor: *factor }).collect())
    }

    /// Begins again with these weights.
    pub fn set(&mut self, weights: &[f64]) {
        *self = Self::new(weights);
    }
}

#[cfg(test)]
mod tests;
