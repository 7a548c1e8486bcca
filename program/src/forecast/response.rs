//! How long a step of one rank takes when its drives are slower or faster than nominal, or the norm
//! is known late. It is a table that is computed once, so that many thousand steps can be looked
//! up.

use super::Bandwidth;
use super::rank::{BUFFERS_FEW, Rank};

/// Speeds relative to the nominal one, by powers of 2: from an eighth to twice as fast.
const PER_OCTAVE: i32 = 8;
const OCTAVES_BELOW: i32 = 3;
const OCTAVES_ABOVE: i32 = 1;
/// Steps from no delay to the longest one.
const DELAYS: u32 = 5;

pub(super) struct Response {
    /// By speed, then by delay.
    rows: Vec<Vec<f64>>,
    /// From one column to the next, in seconds.
    delay_step: f64,
}

impl Response {
    /// Of a rank whose norm is late by up to `delay_max` seconds.
    pub fn of(rank: &Rank, delay_max: f64) -> Self {
        let rank = rank.with_buffers(BUFFERS_FEW);
        let columns = if delay_max > 0.0 { DELAYS } else { 0 };
        let delay_step = delay_max / f64::from(DELAYS);
        let mut rows = Vec::new();
        for place in -OCTAVES_BELOW * PER_OCTAVE..=OCTAVES_ABOVE * PER_OCTAVE {
            let speed = 2f64.powf(f64::from(place) / f64::from(PER_OCTAVE));
            let Bandwidth { read, write, mixed } = rank.bandwidth;
            let bandwidth =
                Bandwidth { read: read * speed, write: write * speed, mixed: mixed * speed };
            let mut row = Vec::new();
            for column in 0..=columns {
                let norm_seconds = rank.norm_seconds + f64::from(column) * delay_step;
                row.push(Rank { bandwidth, norm_seconds, ..rank }.step_seconds());
            }
            rows.push(row);
        }
        Self { rows, delay_step }
    }

    /// Seconds of a step at such a speed, the norm so many seconds late.
    pub fn seconds(&self, speed: f64, delay: f64) -> f64 {
        let octaves = speed.max(1e-6).log2() + f64::from(OCTAVES_BELOW);
        let place = octaves * f64::from(PER_OCTAVE);
        let column = if delay > 0.0 { delay / self.delay_step } else { 0.0 };
        let seconds = between(self.rows.len(), place, |row| {
            let row = &self.rows[row];
            between(row.len(), column, |column| row[column])
        });
        // At speeds below the table, the time grows in proportion.
        seconds * 2f64.powf(-place.min(0.0) / f64::from(PER_OCTAVE))
    }
}

/// The value at a place between two entries of a table; at its ends, the last one.
fn between(entries: usize, place: f64, value: impl Fn(usize) -> f64) -> f64 {
    let place = place.clamp(0.0, (entries - 1) as f64);
    let low = (place as usize).min(entries.saturating_sub(2));
    let part = place - low as f64;
    if part == 0.0 {
        return value(low);
    }
    value(low) * (1.0 - part) + value(low + 1) * part
}

#[cfg(test)]
mod tests {
    use super::super::rank::tests::rank;
    use super::*;

    #[test]
    fn steps_take_as_long_as_their_drives_or_the_norm() {
        let rank = rank();
        for response in [Response::of(&rank, 0.0), Response::of(&rank, 0.01)] {
            for (speed, seconds) in [(1.0, 1.0), (0.5, 2.0), (0.01, 100.0), (2.0, 0.5)] {
                let found = response.seconds(speed, 0.0);
                assert!((found / seconds - 1.0).abs() < 1e-6, "{speed}: {found}");
            }
            let found = response.seconds(0.72, 0.0) * 0.72;
            assert!((found - 1.0).abs() < 2e-3, "{found}");
        }
        // What ten buffers hold is read and written meanwhile; the rest waits.
        let late = Response::of(&rank, 5.0).seconds(1.0, 4.0);
        assert!((4.9..5.0).contains(&late), "{late}");
    }
}
