//! The owner file: which process holds a shard directory. It serves messages only. Whether that
//! process is alive is decided by the lock on the state file, which ends with its last write.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// The process that holds a shard directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The job's name.
    pub job: String,
    /// The rank.
    pub rank: u32,
    /// Number of ranks.
    pub ranks: u32,
    /// The host.
    pub host: String,
    /// The process.
    pub pid: u32,
    /// The kernel's boot id. If it differs now, the process has ended.
    pub boot_id: String,
    /// Whether the job shares its drives with no other.
    #[serde(default)]
    pub exclusive: bool,
}

/// The kernel's boot id. If it differs from an earlier one, the machine was down in between.
pub fn boot_id() -> String {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    boot_id.unwrap_or_default().trim().to_owned()
}

impl Owner {
    /// This process as the owner.
    pub fn this_process(job: &str, rank: u32, ranks: u32, host: &str, exclusive: bool) -> Self {
        Self {
            job: job.to_owned(),
            rank,
            ranks,
            host: host.to_owned(),
            pid: std::process::id(),
            boot_id: boot_id(),
            exclusive,
        }
    }

    /// Writes the file.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        let text = toml::to_string(self).map_err(std::io::Error::other)?;
        std::fs::write(path, text)
    }

    /// Reads the file; `None` if it cannot be read.
    pub fn read(path: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(path).ok()?;
        toml::from_str(&text).ok()
    }

    /// The owner that the file names, in words.
    pub fn describe(path: &Path) -> String {
        match Self::read(path) {
            Some(Self { rank, ranks, host, pid, .. }) => {
                format!("rank {rank} of {ranks}, process {pid} on {host}")
            }
            None => "an owner that left no readable name".to_owned(),
        }
    }
}
