//! Where a measurement ran, so that it can be run again, or compared with one from elsewhere.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use optswap::internals::config::{DrivesConfig, MachineFacts, number_ranges};
use optswap::internals::coord::{Communicator, Topology, gather_all};
use optswap::internals::error::Result;
use optswap::internals::storage::{DriveDetails, DriveProfile};

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeFacts {
    /// Its name.
    pub host: String,
    /// Kernel release.
    pub kernel: String,
    /// Processors that are online.
    pub cpus: usize,
    /// Memory that the ranks may use together; 0 if it is not known.
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
    /// What the site's description expects of it, in GB/s: reading, writing, both directions
    /// together.
    pub expected_gb_per_s: Option<[f64; 3]>,
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
    /// Their NUMA nodes.
    #[serde(default)]
    pub numa_nodes: String,
    /// Its drives.
    #[serde(default)]
    pub drives: Vec<PathBuf>,
    /// What named the drives, such as `--drives` or the site.
    #[serde(default)]
    pub drives_named_by: String,
    /// Whether the file on each of its drives was opened for direct I/O.
    #[serde(default)]
    pub direct_io: Vec<bool>,
}

/// Collective: every node, as its first rank sees it, and every rank's place.
///
/// # Errors
/// Those of a collective: a rank that is lost or does not come.
pub fn survey(
    comm: &dyn Communicator,
    drives: &DrivesConfig,
) -> Result<(Vec<NodeFacts>, Vec<RankPlace>)> {
    let topology = Topology::discover(comm)?;
    let facts = MachineFacts::probe();
    let place = RankPlace {
        rank: comm.rank().0,
        host: comm.host().to_owned(),
        cpus: number_ranges(&facts.cpus_allowed),
        numa_nodes: number_ranges(&facts.nodes_allowed()),
        drives: drives.paths.clone(),
        drives_named_by: drives.named_by.clone(),
        direct_io: Vec::new(),
    };
    let roots = drives_of_node(comm, &topology, &drives.paths)?;
    let is_first = topology.local_ranks().next() == Some(comm.rank());
    let node = is_first.then(|| NodeFacts {
        host: comm.host().to_owned(),
        kernel: facts.kernel.clone(),
        cpus: facts.cpus_online.len(),
        memory_bytes: facts.memory.map_or(0, |(bytes, _)| bytes.0),
        drives: roots.iter().map(|root| drive(root, drives)).collect(),
    });
    // Sent as JSON: a flattened field is a map, which the encoding between ranks does not support.
    let node = node.and_then(|node| serde_json::to_string(&node).ok());
    let nodes: Vec<Option<String>> = gather_all(comm, &node)?;
    let nodes = nodes.into_iter().flatten().filter_map(|text| serde_json::from_str(&text).ok());
    Ok((nodes.collect(), gather_all(comm, &place)?))
}

/// Collective: the drives that any rank of this node names, in the order in which they do.
///
/// # Errors
/// Those of a collective: a rank that is lost or does not come.
pub(super) fn drives_of_node(
    comm: &dyn Communicator,
    topology: &Topology,
    roots: &[PathBuf],
) -> Result<Vec<PathBuf>> {
    let named: Vec<Vec<PathBuf>> = gather_all(comm, &roots.to_vec())?;
    let mut of_node: Vec<PathBuf> = Vec::new();
    for root in topology.local_ranks().flat_map(|rank| &named[rank.index()]) {
        if !of_node.contains(root) {
            of_node.push(root.clone());
        }
    }
    Ok(of_node)
}

fn drive(root: &Path, drives: &DrivesConfig) -> NodeDrive {
    let unknown = || DriveDetails { root: root.to_owned(), ..DriveDetails::default() };
    let profile = DriveProfile::read(root).unwrap_or_else(|error| {
        tracing::warn!("{error}");
        None
    });
    let index = drives.paths.iter().position(|path| path == root);
    let expected = index.and_then(|index| drives.expected_gb_per_s.get(index));
    NodeDrive {
        details: DriveDetails::of(root).unwrap_or_else(|_| unknown()),
        profile,
        expected_gb_per_s: expected.copied().flatten(),
    }
}
