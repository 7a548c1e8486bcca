//! The drives that were chosen for a node.

use std::path::PathBuf;

/// A node's drives, and the rule that named them.
#[derive(Debug, PartialEq)]
pub struct ChosenDrives {
    /// A directory on each drive.
    pub paths: Vec<PathBuf>,
    /// Relative speeds of the drives, if the site's description gives them; else empty.
    pub weights: Vec<f64>,
    /// The bandwidths in GB/s that the site's description gives for each drive (see
    /// [`SiteDrive::gb_per_s`](crate::config::SiteDrive::gb_per_s)); else empty.
    pub expected: Vec<Option<[f64; 3]>>,
    /// The rule that named the drives, such as `--drives` or `$SLURM_TMPDIR`, for messages.
    pub rule: String,
}

impl ChosenDrives {
    /// Drives of which nothing but their directories is known.
    pub(super) fn plain(paths: Vec<PathBuf>, rule: &str) -> Self {
        Self { paths, weights: Vec::new(), expected: Vec::new(), rule: rule.to_owned() }
    }
}
