//! A drive's profile: its measured bandwidths, kept in a file beside the data so that later jobs
//! stripe by them. Measuring them is not done here.

use std::io::{ErrorKind as IoKind, Write};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::directory::TOP;
use super::private::PrivateDirectory;
use super::space::explained;
use crate::error::{Error, ErrorKind, Result};

const PROFILE: &str = "profile.toml";

/// The bandwidths of one drive, as `optswap probe` measured them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DriveProfile {
    /// Bandwidth of reading alone.
    pub read_bytes_per_s: f64,
    /// Bandwidth of writing alone.
    pub write_bytes_per_s: f64,
    /// Bandwidth of both directions together, reading and writing equal parts at the same time.
    pub mixed_bytes_per_s: f64,
    /// The same bandwidth while all other drives of the node that were probed with it worked too.
    /// It is lower if drives share a device or a switch. 0 if it was not measured.
    #[serde(default)]
    pub mixed_together_bytes_per_s: f64,
    /// How much the mixed bandwidth varies from moment to moment: standard deviation / mean.
    #[serde(default)]
    pub spread: f64,
    /// Processor time in nanoseconds that one byte took in either direction. 0 if it was not
    /// measured.
    #[serde(default)]
    pub cpu_ns_per_byte: f64,
    /// When it was measured: seconds since 1970.
    pub probed_at_unix_s: u64,
}

impl DriveProfile {
    /// The path of a drive's profile.
    pub fn path(root: &Path) -> PathBuf {
        root.join(TOP).join(PROFILE)
    }

    /// The profile of the drive that `root` is a directory on; none if it was never probed.
    ///
    /// # Errors
    /// Unavailable if there is a file that cannot be read, or with values that no drive has.
    pub fn read(root: &Path) -> Result<Option<Self>> {
        let path = Self::path(root);
        let unusable = |why: Box<dyn std::error::Error + Send + Sync>| {
            Error::new(ErrorKind::Unavailable, "the profile of a drive cannot be used")
                .with("path", path.display())
                .because(why)
                .hint("measure the drive again with optswap probe, or remove the file")
        };
        let directory = PrivateDirectory::open_shared(root, TOP);
        let Some(directory) = directory.map_err(|error| unusable(error.into()))? else {
            return Ok(None);
        };
        let bytes = match directory.read(PROFILE) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == IoKind::NotFound => return Ok(None),
            Err(error) => return Err(unusable(error.into())),
        };
        let text = String::from_utf8(bytes).map_err(|error| unusable(error.into()))?;
        let profile: Self = toml::from_str(&text).map_err(|error| unusable(error.into()))?;
        match profile.problem() {
            Some(problem) => Err(unusable(problem.into())),
            None => Ok(Some(profile)),
        }
    }

    /// Replaces the profile atomically: a reader finds the old one or the new one.
    ///
    /// # Errors
    /// Cannot create, if the file cannot be written.
    pub fn write(&self, root: &Path) -> Result<()> {
        let refused = |error: std::io::Error| {
            let message = "the profile of a drive cannot be written";
            let refused = Error::new(ErrorKind::CannotCreate, message);
            explained(refused.with("path", Self::path(root).display()), error, root)
        };
        let text = toml::to_string(self).map_err(|error| refused(std::io::Error::other(error)))?;
        let new = format!("{PROFILE}.{}", std::process::id());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
        let put = || {
            let directory = PrivateDirectory::create_shared(root, TOP)?;
            directory.open_file(&new, flags)?.write_all(text.as_bytes())?;
            directory.rename(&new, PROFILE)
        };
        PrivateDirectory::retry(put).map_err(|error| {
            if let Ok(Some(directory)) = PrivateDirectory::open_shared(root, TOP) {
                let _ = directory.remove_file(&new);
            }
            refused(error)
        })
    }

    /// The drive's share of a stripe, relative to other drives: the bandwidth of both directions
    /// together, as a step uses it, while the other drives work too.
    pub fn weight(&self) -> f64 {
        match self.mixed_together_bytes_per_s {
            0.0 => self.mixed_bytes_per_s,
            together => together,
        }
    }

    fn problem(&self) -> Option<String> {
        let measured = [
            ("read_bytes_per_s", self.read_bytes_per_s),
            ("write_bytes_per_s", self.write_bytes_per_s),
            ("mixed_bytes_per_s", self.mixed_bytes_per_s),
        ];
        let optional = [
            ("mixed_together_bytes_per_s", self.mixed_together_bytes_per_s),
            ("spread", self.spread),
            ("cpu_ns_per_byte", self.cpu_ns_per_byte),
        ];
        let wrong = |(key, value): (&str, f64)| format!("{key} = {value} is no measured value");
        let is_measured = |value: f64| value.is_finite() && value > 0.0;
        let is_optional = |value: f64| value.is_finite() && value >= 0.0;
        let first = measured.into_iter().find(|(_, value)| !is_measured(*value));
        first.or_else(|| optional.into_iter().find(|(_, value)| !is_optional(*value))).map(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_read_as_it_was_written() {
        let drive = tempfile::tempdir().unwrap();
        assert_eq!(DriveProfile::read(drive.path()).unwrap(), None);
        let mut profile = DriveProfile {
            read_bytes_per_s: 3.1e9,
            write_bytes_per_s: 1.25e9,
            mixed_bytes_per_s: 2.2e9,
            probed_at_unix_s: 1_700_000_000,
            ..DriveProfile::default()
        };
        assert_eq!(profile.weight(), 2.2e9);
        profile.write(drive.path()).unwrap();
        assert_eq!(DriveProfile::read(drive.path()).unwrap(), Some(profile.clone()));
        profile.mixed_together_bytes_per_s = 1.1e9;
        profile.write(drive.path()).unwrap();
        assert_eq!(DriveProfile::read(drive.path()).unwrap().unwrap().weight(), 1.1e9);
        let names = std::fs::read_dir(drive.path().join("optswap")).unwrap();
        assert_eq!(names.count(), 1, "a half-written profile stayed");
        let jobs = crate::storage::ShardDirectory::all_on(drive.path(), None).unwrap();
        assert!(jobs.is_empty(), "a profile was taken for a job");
    }

    #[test]
    fn values_that_no_drive_has_are_refused() {
        let drive = tempfile::tempdir().unwrap();
        std::fs::create_dir(drive.path().join("optswap")).unwrap();
        let whole = "read_bytes_per_s = 1e9\nwrite_bytes_per_s = 1e9\nmixed_bytes_per_s = 1e9\n\
                     probed_at_unix_s = 1\n";
        for (text, words) in [
            (whole.replacen("1e9", "0.0", 1), "read_bytes_per_s = 0 is no measured value"),
            (format!("{whole}spread = nan\n"), "spread = NaN"),
            (whole.replace("probed_at_unix_s = 1\n", ""), "missing field `probed_at_unix_s`"),
            ("read".to_owned(), "TOML parse error"),
        ] {
            std::fs::write(DriveProfile::path(drive.path()), text).unwrap();
            let error = DriveProfile::read(drive.path()).unwrap_err();
            assert_eq!(error.exit_code(), 69);
            assert!(error.to_string().contains(words), "{words}: {error}");
        }
    }
}
