//! The owner file: which process holds a shard directory. Whether that process is alive is decided
//! by the lock on the state file, which ends with its last write. This file serves messages, and
//! file systems without locks.

use std::io::Write;

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::lock::Life;
use super::private::PrivateDirectory;

pub(super) const OWNER: &str = "owner";

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
    /// When the process was started, in clock ticks since the machine was: with the boot id, no
    /// other process has the same number and this.
    #[serde(default)]
    pub started_at_ticks: Option<u64>,
    /// Whether the job shares its drives with no other.
    #[serde(default)]
    pub exclusive: bool,
}

/// The kernel's boot id. If it differs from an earlier one, the machine was down in between.
pub fn boot_id() -> String {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    boot_id.unwrap_or_default().trim().to_owned()
}

/// When a process of this machine was started (proc(5), stat); `None` if it does not run.
fn started_at_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything. The state follows, and 19 fields later the time.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
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
            started_at_ticks: started_at_ticks(std::process::id()),
            exclusive,
        }
    }

    pub(super) fn write(&self, directory: &PrivateDirectory) -> std::io::Result<()> {
        let text = toml::to_string(self).map_err(std::io::Error::other)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
        directory.open_file(OWNER, flags)?.write_all(text.as_bytes())
    }

    /// The owner that a directory's file names; `None` if it cannot be read.
    pub(super) fn read(directory: &PrivateDirectory) -> Option<Self> {
        toml::from_str(&String::from_utf8(directory.read(OWNER).ok()?).ok()?).ok()
    }

    /// Whether the process still runs, as far as that can be told without a lock. Another directory
    /// of this very process counts as left behind.
    pub(super) fn life(&self) -> Life {
        if self.boot_id == boot_id() {
            let runs = self.pid != std::process::id()
                && self.started_at_ticks.is_some()
                && started_at_ticks(self.pid) == self.started_at_ticks;
            return if runs { Life::Alive } else { Life::Dead };
        }
        if rustix::system::uname().nodename().to_str() == Ok(&self.host) {
            // This machine has been down since.
            return Life::Dead;
        }
        Life::Unknown(format!("process {} on {} may be alive", self.pid, self.host))
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { rank, ranks, host, pid, .. } = self;
        write!(f, "rank {rank} of {ranks}, process {pid} on {host}")
    }
}
