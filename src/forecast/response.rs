//! How long a step of one rank takes when its drives are slower or faster than they should be, or
//! the norm is known late: a table, so that many thousand steps take no time.

use super::Bandwidth;
use super::rank::{BUFFERS_FEW, Rank};

/// Speeds relative to the nominal one, by powers of 2: from an eighth to twice as fast.
const PER_OCTAVE: i32 = 8;
const OCTAVES_BELOW: i32 = 3;
const OCTAVES_ABOVE: i32 = 1;
/// Delays between nothing and the longest one.
const DELAYS: usize = 6;

pub(super) struct Response {
    /// By speed, then by delay.
    seconds: Vec<[f64; DELAYS]>,
    delay_max: f64,
}

impl Response {
    /// Of a rank whose norm is late by up to `delay_max` seconds.
    pub fn of(rank: &Rank, delay_max: f64) -> Self {
        let rank = rank.with_buffers(BUFFERS_FEW);
        let row = |place: i32| {
            let speed = 2f64.powf(f64::from(place) / f64::from(PER_OCTAVE));
            let Bandwidth { read, write, mixed } = rank.bandwidth;
            let bandwidth =
                Bandwidth { read: read * speed, write: write * speed, mixed: mixed * speed };
            let mut row = [0.0; DELAYS];
            for (place, seconds) in row.iter_mut().enumerate() {
                let late = delay_max * place as f64 / (DELAYS - 1) as f64;
                let norm_seconds = rank.norm_seconds + late;
                *seconds = match delay_max == 0.0 && place > 0 {
                    // Nobody is late.
                    true => 0.0,
                    false => Rank { bandwidth, norm_seconds, ..rank }.step_seconds(),
                };
            }
            row
        };
        let places = -OCTAVES_BELOW * PER_OCTAVE..=OCTAVES_ABOVE * PER_OCTAVE;
        Self { seconds: places.map(row).collect(), delay_max }
    }

    /// Seconds of a step at such a speed, the norm so many seconds late.
    pub fn seconds(&self, speed: f64, delay: f64) -> f64 {
        let octaves = speed.max(1e-6).log2() + f64::from(OCTAVES_BELOW);
        let place = octaves * f64::from(PER_OCTAVE);
        let (first, last) = (0.0, (self.seconds.len() - 1) as f64);
        let found = place.clamp(first, last);
        let low = (found.floor() as usize).min(self.seconds.len() - 2);
        let between = found - low as f64;
        let [a, b] = [low, low + 1].map(|row| self.in_row(row, delay));
        // What is slower than the table has time in proportion.
        (a + (b - a) * between) * 2f64.powf((found - place) / f64::from(PER_OCTAVE)).max(1.0)
    }

    fn in_row(&self, row: usize, delay: f64) -> f64 {
        let row = &self.seconds[row];
        if self.delay_max == 0.0 {
            return row[0];
        }
        let place = delay / self.delay_max * (DELAYS - 1) as f64;
        let low = (place as usize).min(DELAYS - 2);
        row[low] + (row[low + 1] - row[low]) * (place - low as f64)
    }
}
