//! Where a measurement ran: what makes it possible to run it again, or to see why another differs.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::MachineFacts;
use crate::coord::{Communicator, Topology, gather_all};
use crate::error::Result;
use crate::storage::{DriveDetails, DriveProfile};

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeFacts {
    /// Its name.
    pub host: String,
    /// Kernel release.
    pub kernel: String,
    /// Processors that are there.
    pub cpus: usize,
    /// Memory that the ranks may use together; 0 if nothing tells.
    pub memory_bytes: u64,
    /// The drives that its ranks name.
    pub drives: Vec<NodeDrive>,
}

/// A drive of a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeDrive {
    /// What it is.
    #[serde(flatten)]
    pub details: DriveDetails,
    /// What it can do, if it was probed.
    pub profile: Option<DriveProfile>,
}

/// Where one rank runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankPlace {
    /// The rank.
    pub rank: u32,
    /// Its node.
    pub host: String,
    /// The processors that it may use, such as `0-7`.
    pub cpus: String,
}

/// Collective: every node, as its first rank sees it, and every rank's place.
///
/// # Errors
/// As every collective.
pub fn look_around(
    comm: &dyn Communicator,
    roots: &[PathBuf],
) -> Result<(Vec<NodeFacts>, Vec<RankPlace>)> {
    let topology = Topology::discover(comm)?;
    let facts = MachineFacts::probe();
    let place = RankPlace {
        rank: comm.rank().0,
        host: comm.host().to_owned(),
        cpus: ranges(&facts.cpus_allowed),
    };
    let is_first = topology.local_ranks().next() == Some(comm.rank());
    let node = is_first.then(|| NodeFacts {
        host: comm.host().to_owned(),
        kernel: facts.kernel.clone(),
        cpus: facts.cpus_online.len(),
        memory_bytes: facts.memory.map_or(0, |(bytes, _)| bytes.0),
        drives: roots.iter().map(|root| drive(root)).collect(),
    });
    // A flattened value is a map, which the ranks' own encoding does not know.
    let node = node.and_then(|node| serde_json::to_string(&node).ok());
    let nodes: Vec<Option<String>> = gather_all(comm, &node)?;
    let nodes = nodes.into_iter().flatten().filter_map(|text| serde_json::from_str(&text).ok());
    Ok((nodes.collect(), gather_all(comm, &place)?))
}

fn drive(root: &Path) -> NodeDrive {
    let unknown = || DriveDetails { root: root.to_owned(), ..DriveDetails::default() };
    let profile = DriveProfile::read(root).unwrap_or_else(|error| {
        tracing::warn!("{error}");
        None
    });
    NodeDrive { details: DriveDetails::of(root).unwrap_or_else(|_| unknown()), profile }
}

/// Sorted numbers as the kernel writes them: `0-3,8`.
fn ranges(numbers: &[u32]) -> String {
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == *number => *last = *number,
            _ => parts.push((*number, *number)),
        }
    }
    let part = |(first, last): &(u32, u32)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    parts.iter().map(part).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_ranges() {
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0-2,5,7-8");
        assert_eq!(ranges(&[]), "");
    }
}
