//! Which ranks share a node.

use super::{Communicator, OfRanks, gather_alike};
use crate::error::Result;
use crate::units::Rank;

/// Where every rank runs: its host's name, and its node. Ranks share a node if the communicator
/// says so, or, if it does not know, if their hosts have the same name.
#[derive(Clone, Debug)]
pub struct Topology {
    /// Every rank's host and [`Communicator::node`].
    places: OfRanks<(String, Option<u32>)>,
    /// The ranks of every node, in rank order; nodes in the order of their first ranks.
    nodes: Vec<Vec<Rank>>,
    rank: Rank,
}

impl Topology {
    /// Collective: learns where every rank runs.
    ///
    /// # Errors
    /// Those of the communicator: peer if a rank does not answer in time.
    pub fn discover(comm: &dyn Communicator) -> Result<Self> {
        let places = gather_alike(comm, &(comm.host().to_owned(), comm.node()))?;
        Ok(Self::new(places, comm.rank()))
    }

    fn new(places: OfRanks<(String, Option<u32>)>, rank: Rank) -> Self {
        let mut order = std::collections::HashMap::new();
        let mut nodes: Vec<Vec<Rank>> = Vec::new();
        for (rank, (host, node)) in places.iter().enumerate() {
            // A number counts more than a name.
            let name = if node.is_none() { host.as_str() } else { "" };
            let node_index = *order.entry((*node, name)).or_insert(nodes.len());
            if node_index == nodes.len() {
                nodes.push(Vec::new());
            }
            nodes[node_index].push(Rank::from_index(rank));
        }
        Self { places, nodes, rank }
    }

    /// The host of a rank, if there is such a rank.
    pub fn host(&self, rank: Rank) -> Option<&str> {
        self.places.of(rank).map(|(host, _)| host.as_str())
    }

    /// The number of ranks.
    pub fn size(&self) -> usize {
        self.places.iter().len()
    }

    /// The ranks of every node, in rank order; nodes in the order of their first ranks.
    pub fn nodes(&self) -> &[Vec<Rank>] {
        &self.nodes
    }

    /// The ranks on this rank's node, in rank order.
    pub fn local_ranks(&self) -> impl Iterator<Item = Rank> {
        let mine = self.nodes.iter().find(|ranks| ranks.contains(&self.rank));
        mine.into_iter().flatten().copied()
    }

    /// In words, where the names of hosts do not agree with the nodes; `None` if they agree.
    pub fn misnamed(&self) -> Option<String> {
        let host = |rank: &Rank| self.host(*rank).unwrap_or_default();
        for ranks in &self.nodes {
            if let Some(other) = ranks.iter().find(|rank| host(rank) != host(&ranks[0])) {
                return Some(format!(
                    "{} and {other} share a node, but call it {} and {}: tables that go by \
                     names show two nodes",
                    ranks[0],
                    host(&ranks[0]),
                    host(other)
                ));
            }
        }
        let mut first_of = std::collections::HashMap::new();
        for first in self.nodes.iter().map(|ranks| ranks[0]) {
            if let Some(other) = first_of.insert(host(&first), first) {
                return Some(format!(
                    "{other} and {first} do not share a node, but both call it {}: tables \
                     that go by names show one node. Give every host a name of its own; containers \
                     of one host need its shared memory to count as one node",
                    host(&first)
                ));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topology(places: &[(&str, Option<u32>)], rank: u32) -> Topology {
        let places = places.iter().map(|(host, node)| ((*host).to_owned(), *node));
        Topology::new(OfRanks::of_each(places.collect()), Rank(rank))
    }

    fn local(topology: &Topology) -> Vec<u32> {
        topology.local_ranks().map(|rank| rank.0).collect()
    }

    #[test]
    fn ranks_of_one_host_name_share_a_node_if_nothing_else_is_known() {
        let found = topology(&[("a", None), ("b", None), ("a", None)], 2);
        assert_eq!(local(&found), [0, 2]);
        assert_eq!(found.nodes(), [vec![Rank(0), Rank(2)], vec![Rank(1)]]);
        assert_eq!(found.misnamed(), None);
    }

    #[test]
    fn what_the_communicator_knows_counts_more_than_names() {
        let twins = topology(&[("a", Some(0)), ("a", Some(1)), ("a", Some(0))], 1);
        assert_eq!(local(&twins), [1]);
        let words = twins.misnamed().unwrap();
        assert!(words.starts_with("rank 0 and rank 1 do not share a node"), "{words}");
        let aliases = topology(&[("a", Some(0)), ("b", Some(0))], 1);
        assert_eq!(local(&aliases), [0, 1]);
        assert!(aliases.misnamed().unwrap().contains("call it a and b"));
        let plain = topology(&[("a", Some(0)), ("b", Some(1)), ("b", Some(1))], 0);
        assert_eq!(plain.misnamed(), None);
    }
}
