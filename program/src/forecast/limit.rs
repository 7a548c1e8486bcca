//! The limit that drives set to a step: T = max(read / read bandwidth, written / write bandwidth,
//! (read + written) / mixed bandwidth), bandwidths summed over the drives of a node.

use serde::{Deserialize, Serialize};

use optswap::internals::storage::DriveProfile;

/// What drives can do, in bytes per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bandwidth {
    /// Reading alone.
    pub read: f64,
    /// Writing alone.
    pub write: f64,
    /// Both directions together.
    pub mixed: f64,
}

/// What binds a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Binding {
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Both at the same time.
    Mixed,
}

impl Bandwidth {
    /// A drive that does this in each direction, and both at the same time.
    pub fn symmetric(bytes_per_s: f64) -> Self {
        Self { read: bytes_per_s, write: bytes_per_s, mixed: 2.0 * bytes_per_s }
    }

    /// A drive as its site expects it to be, in GB/s: reading, writing, both directions together.
    pub fn expected(gb_per_s: [f64; 3]) -> Self {
        let [read, write, mixed] = gb_per_s.map(|gb| gb * 1e9);
        Self { read, write, mixed }
    }

    /// A drive as it was probed, while its neighbours work too.
    pub fn of(profile: &DriveProfile) -> Self {
        // Where drives share a bus or a controller, each direction loses as large a part as both
        // together.
        let share = profile.weight() / profile.mixed_bytes_per_s;
        let share = if share.is_finite() { share.min(1.0) } else { 1.0 };
        Self {
            read: profile.read_bytes_per_s * share,
            write: profile.write_bytes_per_s * share,
            mixed: profile.mixed_bytes_per_s * share,
        }
    }

    /// Several drives as one.
    pub fn sum(drives: impl IntoIterator<Item = Self>) -> Self {
        drives.into_iter().fold(Self::default(), |sum, drive| Self {
            read: sum.read + drive.read,
            write: sum.write + drive.write,
            mixed: sum.mixed + drive.mixed,
        })
    }

    /// The least time to read and write so many bytes, and what sets it.
    pub fn seconds(&self, read_bytes: f64, written_bytes: f64) -> (f64, Binding) {
        let all = [
            (read_bytes / self.read, Binding::Read),
            (written_bytes / self.write, Binding::Write),
            ((read_bytes + written_bytes) / self.mixed, Binding::Mixed),
        ];
        let mut longest = (0.0, Binding::Mixed);
        for (seconds, binding) in all {
            // A direction that moves nothing at no speed gives NaN, which is not longer.
            if seconds > longest.0 {
                longest = (seconds, binding);
            }
        }
        longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_of_three_sets_the_limit() {
        let drives = Bandwidth::sum([Bandwidth::symmetric(300e6), Bandwidth::symmetric(100e6)]);
        let (seconds, _) = drives.seconds(400e6, 400e6);
        assert!((seconds - 1.0).abs() < 1e-9);
        let drive = Bandwidth { read: 3e9, write: 1e9, mixed: 1.5e9 };
        assert_eq!(drive.seconds(3e9, 0.0), (2.0, Binding::Mixed));
        assert_eq!(drive.seconds(1e9, 3e9), (3.0, Binding::Write));
        let drive = Bandwidth { mixed: 9e9, ..drive };
        assert_eq!(drive.seconds(9e9, 0.0), (3.0, Binding::Read));
        assert_eq!(Bandwidth::default().seconds(0.0, 0.0).0, 0.0);
    }

    #[test]
    fn neighbours_take_their_share() {
        let profile = DriveProfile {
            read_bytes_per_s: 2e9,
            write_bytes_per_s: 1e9,
            mixed_bytes_per_s: 1.6e9,
            mixed_together_bytes_per_s: 0.8e9,
            ..DriveProfile::default()
        };
        let expected = Bandwidth { read: 1e9, write: 0.5e9, mixed: 0.8e9 };
        assert_eq!(Bandwidth::of(&profile), expected);
    }
}
