//! A search for good settings: one axis after the other, in large steps first and then in small
//! ones. It measures nothing itself; the caller says how good each setting is.

use serde::{Deserialize, Serialize};

use optswap::internals::error::Result;

/// A gain below this factor does not count, because repeated measurements differ by as much.
pub(super) const GAIN_MIN: f64 = 1.03;

/// The settings that are tuned, beside the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// `drives.stripe_unit`, bytes.
    pub stripe_unit: u64,
    /// `io.depth`.
    pub depth: u64,
    /// `swap.chunk_elements`.
    pub chunk_elems: u64,
}

/// A setting that was tried.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Trial {
    /// The setting.
    pub setting: Setting,
    /// Bytes per second of the slowest node, both directions together.
    pub bytes_per_s: f64,
}

#[derive(Clone, Copy, Debug)]
enum Axis {
    StripeUnit,
    Depth,
    Chunk,
}

impl Axis {
    const ALL: [Self; 3] = [Self::Depth, Self::StripeUnit, Self::Chunk];

    /// The setting with this value times 2 to the power of `steps`, if it is allowed.
    fn moved(self, setting: Setting, steps: i32) -> Option<Setting> {
        let scaled = |value: u64| match steps {
            up @ 0.. => value.checked_shl(up as u32),
            down => value.checked_shr(down.unsigned_abs()),
        };
        let within = |value: u64, min: u64, max: u64| (min..=max).contains(&value).then_some(value);
        Some(match self {
            Self::StripeUnit => Setting {
                stripe_unit: within(scaled(setting.stripe_unit)?, 64 << 10, 16 << 20)?,
                ..setting
            },
            Self::Depth => Setting { depth: within(scaled(setting.depth)?, 1, 512)?, ..setting },
            Self::Chunk => Setting {
                chunk_elems: within(scaled(setting.chunk_elems)?, 64 << 10, 8 << 20)?,
                ..setting
            },
        })
    }
}

/// Looks for a setting better than `start`. `measure` gives bytes per second, or nothing if there
/// is no time left or the setting is impossible. Gives all trials; the best one comes last.
///
/// # Errors
/// Those of `measure`.
pub(super) fn search(
    start: Setting,
    measure: &mut dyn FnMut(Setting) -> Result<Option<f64>>,
) -> Result<Vec<Trial>> {
    let mut trials: Vec<Trial> = Vec::new();
    let mut try_it = |setting: Setting, trials: &mut Vec<Trial>| -> Result<Option<f64>> {
        if let Some(known) = trials.iter().find(|trial| trial.setting == setting) {
            return Ok(Some(known.bytes_per_s));
        }
        let found = measure(setting)?;
        trials.extend(found.map(|bytes_per_s| Trial { setting, bytes_per_s }));
        Ok(found)
    };
    let Some(bytes_per_s) = try_it(start, &mut trials)? else { return Ok(trials) };
    let mut best = Trial { setting: start, bytes_per_s };
    for stride in [2, 1] {
        for axis in Axis::ALL {
            for direction in [stride, -stride] {
                // Go on in this direction as long as it becomes better.
                while let Some(setting) = axis.moved(best.setting, direction) {
                    match try_it(setting, &mut trials)? {
                        Some(it) if it > best.bytes_per_s * GAIN_MIN => {
                            best = Trial { setting, bytes_per_s: it };
                        }
                        _ => break,
                    }
                }
            }
        }
    }
    trials.retain(|trial| trial.setting != best.setting);
    trials.push(best);
    Ok(trials)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Setting = Setting { stripe_unit: 1 << 20, depth: 64, chunk_elems: 1 << 20 };

    /// Best at this setting, and worse by a tenth for each doubling away from it.
    fn peak(at: Setting) -> impl Fn(Setting) -> f64 {
        let away = |a: u64, b: u64| (a as f64 / b as f64).log2().abs();
        move |it| {
            let steps = away(it.stripe_unit, at.stripe_unit)
                + away(it.depth, at.depth)
                + away(it.chunk_elems, at.chunk_elems);
            1e9 * 0.9f64.powf(steps)
        }
    }

    #[test]
    fn a_peak_is_found_in_few_trials() {
        let at = Setting { stripe_unit: 256 << 10, depth: 32, chunk_elems: 4 << 20 };
        let quality = peak(at);
        let trials = search(START, &mut |setting| Ok(Some(quality(setting)))).unwrap();
        assert_eq!(trials.last().unwrap().setting, at);
        assert!(trials.len() < 25, "{}", trials.len());
    }

    #[test]
    fn nothing_gained_means_nothing_changed() {
        // Noise of two percent.
        let mut count = 0;
        let mut noise = |_| {
            count += 1;
            Ok(Some(1e9 * (1.0 + 0.02 * f64::from(count % 2))))
        };
        assert_eq!(search(START, &mut noise).unwrap().last().unwrap().setting, START);
    }

    #[test]
    fn the_search_ends_when_time_is_over() {
        let mut left = 4;
        let mut measure = |setting: Setting| {
            left -= 1;
            Ok((left >= 0).then_some(1e9 * setting.depth as f64))
        };
        let trials = search(START, &mut measure).unwrap();
        assert!(trials.len() <= 4 && trials.last().unwrap().setting.depth > 64);
        assert!(search(START, &mut |_| Ok(None)).unwrap().is_empty());
    }
}
