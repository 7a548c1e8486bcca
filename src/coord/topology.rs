//! Which ranks share a node.

use super::{Communicator, gather_all};
use crate::error::Result;
use crate::units::Rank;

/// Where every rank runs. A node is a host name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    hosts: Vec<String>,
    rank: Rank,
}

impl Topology {
    /// Collective: learns where every rank runs.
    ///
    /// # Errors
    /// As every collective.
    pub fn discover(comm: &dyn Communicator) -> Result<Self> {
        let hosts = gather_all(comm, &comm.host().to_owned())?;
        Ok(Self { hosts, rank: comm.rank() })
    }

    /// The host of every rank.
    pub fn hosts(&self) -> &[String] {
        &self.hosts
    }

    /// The ranks on this rank's node, in rank order.
    pub fn local_ranks(&self) -> impl Iterator<Item = Rank> {
        let here = &self.hosts[self.rank.index()];
        let ranks = self.hosts.iter().enumerate();
        ranks.filter(move |(_, host)| *host == here).map(|(rank, _)| Rank::from_index(rank))
    }
}
