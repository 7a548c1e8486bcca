//! The owner file: who holds a shard directory, for the message only. Liveness is the lock on the
//! state file, which ends with the last write of a dead process; this file cannot end it.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// Who holds a shard directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The job's name.
    pub job: String,
    /// Rank and number of ranks.
    pub rank: u32,
    /// Number of ranks.
    pub ranks: u32,
    /// The host.
    pub host: String,
    /// The process.
    pub pid: u32,
    /// The kernel's boot id: the process ended with that boot at the latest.
    pub boot_id: String,
    /// Whether the job shares its drives with no other.
    #[serde(default)]
    pub exclusive: bool,
}

/// The kernel's boot id: another one means that the machine was down in between.
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

    /// Reads the file, as far as it can be read.
    pub fn read(path: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(path).ok()?;
        toml::from_str(&text).ok()
    }

    /// Who the file names, as far as it can be read.
    pub fn describe(path: &Path) -> String {
        match Self::read(path) {
            Some(Self { rank, ranks, host, pid, .. }) => {
                format!("rank {rank} of {ranks}, process {pid} on {host}")
            }
            None => "an owner that left no readable name".to_owned(),
        }
    }
}
