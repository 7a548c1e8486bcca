//! Where ranks run and which NUMA nodes their drives are near: logged once at the start, as a table
//! that stays short for many ranks, with a warning where cores or drives could be placed better.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::config::{Config, MachineFacts, allotted_cpus, compress_names, cpu_list, number_ranges};
use crate::coord::{Communicator, Topology, gather_to_first};
use crate::error::Result;
use crate::storage::Device;
use crate::telemetry::TextTable;
use crate::units::{Rank, counted};

/// Rows of the table at most. Where ranks are placed without a pattern it would need more; then
/// each rank's own log has its place.
const ROWS_MAX: usize = 40;

/// Where one rank runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Seat {
    host: String,
    /// Processors in its affinity mask, and their NUMA nodes.
    cpus: Vec<u32>,
    nodes: Vec<u32>,
    /// Processors that the job could use on its host.
    host_cpus: Vec<u32>,
    /// Its drives, each with its NUMA node, if that is known.
    drives: Vec<(String, Option<u32>)>,
    /// What named them.
    named_by: String,
}

impl Seat {
    fn look(config: &Config, comm: &dyn Communicator) -> Self {
        let facts = MachineFacts::probe();
        let allotted =
            allotted_cpus().map_or_else(|| facts.cpus_online.clone(), |it| cpu_list(&it));
        let drives = config.drives.paths.iter().map(|path| {
            let device = Device::of(path).unwrap_or_default();
            (path.display().to_string(), device.numa_node)
        });
        Self {
            host: comm.host().to_owned(),
            nodes: facts.nodes_allowed(),
            host_cpus: facts.cpus_online.into_iter().filter(|cpu| allotted.contains(cpu)).collect(),
            cpus: facts.cpus_allowed,
            drives: drives.collect(),
            named_by: config.drives.named_by.clone(),
        }
    }

    /// Whether cores and drives are on NUMA nodes that have nothing in common.
    fn is_far(&self) -> bool {
        let mut known = self.drives.iter().filter_map(|(_, node)| *node).peekable();
        let has_drives = known.peek().is_some();
        has_drives && !self.nodes.is_empty() && known.all(|node| !self.nodes.contains(&node))
    }
}

impl fmt::Display for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [drives, near, named_by] = drive_cells(self);
        write!(
            f,
            "cores {}, NUMA {}, drives {drives} (NUMA {near}, named by {named_by})",
            number_ranges(&self.cpus),
            number_ranges(&self.nodes)
        )
    }
}

/// Collective: logs where all ranks run on rank 0, and on every other rank its own place.
///
/// # Errors
/// Peer, not agreed, if another rank does not come in time.
pub(super) fn announce(
    config: &Config,
    comm: &dyn Communicator,
    topology: &Topology,
) -> Result<()> {
    let seat = Seat::look(config, comm);
    let Some(seats) = gather_to_first(comm, &seat)? else {
        tracing::info!("this rank: {seat}");
        return Ok(());
    };
    let numbers = |ranks: &Vec<Rank>| ranks.iter().map(|rank| rank.index()).collect();
    let hosts: Vec<Vec<usize>> = topology.nodes().iter().map(numbers).collect();
    tracing::info!(
        "{} on {}:\n{}",
        counted(seats.len() as u64, "rank"),
        counted(hosts.len() as u64, "node"),
        { table(&seats, &hosts) }
    );
    for warning in warnings(&seats, &hosts) {
        tracing::warn!("{warning}");
    }
    Ok(())
}

/// Hosts whose ranks sit alike.
struct Alike<'a> {
    hosts: Vec<&'a [usize]>,
}

fn alike<'a>(seats: &[Seat], hosts: &'a [Vec<usize>]) -> Vec<Alike<'a>> {
    let same = |a: usize, b: usize| {
        let (a, b) = (&seats[a], &seats[b]);
        (&a.cpus, &a.nodes, &a.drives, &a.named_by) == (&b.cpus, &b.nodes, &b.drives, &b.named_by)
    };
    let mut groups: Vec<Alike<'a>> = Vec::new();
    for ranks in hosts {
        let fits = |group: &&mut Alike<'_>| {
            let first = group.hosts[0];
            first.len() == ranks.len() && first.iter().zip(ranks).all(|(a, b)| same(*a, *b))
        };
        match groups.iter_mut().find(fits) {
            Some(group) => group.hosts.push(ranks),
            None => groups.push(Alike { hosts: vec![ranks] }),
        }
    }
    groups
}

fn table(seats: &[Seat], hosts: &[Vec<usize>]) -> String {
    let header = ["hosts", "ranks", "cores", "NUMA", "drives", "drives' NUMA", "named by"];
    let mut table = TextTable::of_words(header);
    let mut left_out = 0;
    for group in alike(seats, hosts) {
        let first = group.hosts[0];
        let has_own = |rank: usize| (&seats[rank].drives, &seats[rank].named_by);
        // Local ranks with the same cores and drives share a row.
        let alike =
            |a: &usize, b: &usize| seats[*a].cpus == seats[*b].cpus && has_own(*a) == has_own(*b);
        for (index, run) in first.chunk_by(alike).enumerate() {
            if table.row_count() >= ROWS_MAX {
                left_out += 1;
                continue;
            }
            let start = first.iter().position(|rank| *rank == run[0]).unwrap_or(0);
            let places = start..start + run.len();
            let ranks = group.hosts.iter().flat_map(|ranks| ranks[places.clone()].iter().copied());
            let seat = &seats[run[0]];
            let [ranks, cores, numa] =
                [rank_list(ranks), number_ranges(&seat.cpus), number_ranges(&seat.nodes)];
            let hosts = if index == 0 { host_names(seats, &group) } else { String::new() };
            let [drives, near, named_by] = if index == 0 || has_own(run[0]) != has_own(first[0]) {
                drive_cells(seat)
            } else {
                [const { String::new() }; 3]
            };
            table.add_row([hosts, ranks, cores, numa, drives, near, named_by]);
        }
    }
    match left_out {
        0 => table.to_string(),
        more => format!(
            "{table}\nand {more} more rows: the ranks sit without a pattern (--log-ranks all or \
             --log-dir DIR: each tells its own place)"
        ),
    }
}

fn host_names(seats: &[Seat], group: &Alike<'_>) -> String {
    compress_names(group.hosts.iter().map(|ranks| seats[ranks[0]].host.as_str()))
}

/// Drives, their NUMA nodes, and what named them.
fn drive_cells(seat: &Seat) -> [String; 3] {
    let drives = compress_names(seat.drives.iter().map(|(path, _)| path.as_str()));
    let node = |(_, node): &(String, Option<u32>)| node.map_or("-".to_owned(), |it| it.to_string());
    let mut near: Vec<String> = seat.drives.iter().map(node).collect();
    if near.iter().all(|node| *node == near[0]) {
        near.truncate(1);
    }
    [drives, near.join(","), seat.named_by.clone()]
}

fn warnings(seats: &[Seat], hosts: &[Vec<usize>]) -> Vec<String> {
    let mut warnings = Vec::new();
    let far: Vec<usize> = (0..seats.len()).filter(|rank| seats[*rank].is_far()).collect();
    if let Some(example) = far.first().map(|rank| &seats[*rank]) {
        let nodes: Vec<u32> = example.drives.iter().filter_map(|(_, node)| *node).collect();
        warnings.push(format!(
            "the cores of {} are on other NUMA nodes ({} on {}) than their drives ({}): bind the \
             ranks there (mpirun --map-by numa, srun --cpu-bind), or name other drives",
            ranks_in_words(&far),
            number_ranges(&example.nodes),
            example.host,
            number_ranges(&nodes),
        ));
    }
    let crowded: Vec<&Vec<usize>> = hosts.iter().filter(|ranks| is_crowded(seats, ranks)).collect();
    if let Some(ranks) = crowded.first() {
        let idle = idle_cpus(seats, ranks);
        let names = crowded.iter().map(|ranks| seats[ranks[0]].host.as_str());
        warnings.push(format!(
            "ranks share cores although others are idle ({} on {}): on {}; give each rank its own \
             (mpirun --map-by slot:PE=k, srun --cpus-per-task=k), or all of them to all \
             (mpirun --bind-to none)",
            number_ranges(&idle),
            seats[ranks[0]].host,
            compress_names(names),
        ));
    }
    warnings
}

fn ranks_in_words(ranks: &[usize]) -> String {
    let word = if ranks.len() == 1 { "rank" } else { "ranks" };
    format!("{word} {}", rank_list(ranks.iter().copied()))
}

/// Processors of the host that none of these ranks may use.
fn idle_cpus(seats: &[Seat], ranks: &[usize]) -> Vec<u32> {
    let is_used = |cpu: &u32| ranks.iter().any(|rank| seats[*rank].cpus.contains(cpu));
    seats[ranks[0]].host_cpus.iter().copied().filter(|cpu| !is_used(cpu)).collect()
}

/// Whether ranks of a host share processors while others are idle. Ranks that all may use the same
/// processors share them on purpose, unless there are more ranks than those.
fn is_crowded(seats: &[Seat], ranks: &[usize]) -> bool {
    let overlap = |a: &[u32], b: &[u32]| a != b && a.iter().any(|cpu| b.contains(cpu));
    let shares = |rank: &usize| {
        let cpus = &seats[*rank].cpus;
        let twins = ranks.iter().filter(|other| seats[**other].cpus == *cpus).count();
        twins > cpus.len().max(1) || ranks.iter().any(|other| overlap(&seats[*other].cpus, cpus))
    };
    !idle_cpus(seats, ranks).is_empty() && ranks.iter().any(shares)
}

/// Ranks, with strides: `0-7`, `3-507:8`.
fn rank_list(ranks: impl Iterator<Item = usize>) -> String {
    let mut sorted: Vec<usize> = ranks.collect();
    sorted.sort_unstable();
    let mut parts = Vec::new();
    let mut rest = sorted.as_slice();
    while let [first, after @ ..] = rest {
        let stride = after.first().map_or(1, |second| second - first);
        let follows = |(index, rank): &(usize, &usize)| **rank == first + index * stride;
        let length = rest.iter().enumerate().take_while(follows).count();
        // Two ranks that are apart are no stride.
        let length = if length == 2 && stride > 1 { 1 } else { length };
        let last = rest[length - 1];
        parts.push(match (length, stride) {
            (1, _) => first.to_string(),
            (_, 1) => format!("{first}-{last}"),
            _ => format!("{first}-{last}:{stride}"),
        });
        rest = &rest[length..];
    }
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ranks of every host.
    fn hosts(seats: &[Seat]) -> Vec<Vec<usize>> {
        let numbers: Vec<usize> = (0..seats.len()).collect();
        let chunks = numbers.chunk_by(|a, b| seats[*a].host == seats[*b].host);
        chunks.map(<[usize]>::to_vec).collect()
    }

    fn seat(host: &str, cpus: &[u32], drives: &[(&str, Option<u32>)]) -> Seat {
        let drives = drives.iter().map(|(path, node)| ((*path).to_owned(), *node)).collect();
        let nodes = cpus.iter().map(|cpu| cpu / 4).collect::<std::collections::BTreeSet<_>>();
        Seat {
            host: host.to_owned(),
            cpus: cpus.to_vec(),
            nodes: nodes.into_iter().collect(),
            host_cpus: (0..8).collect(),
            drives,
            named_by: "--drives".to_owned(),
        }
    }

    const NEAR: [(&str, Option<u32>); 2] = [("/nvme0/me", Some(0)), ("/nvme1/me", Some(1))];

    #[test]
    fn many_ranks_take_few_lines() {
        let place = |rank: usize| {
            let first = (rank % 8) as u32;
            seat(&format!("node{:03}", rank / 8 + 1), &[first], &NEAR)
        };
        let mut seats: Vec<Seat> = (0..512).map(place).collect();
        seats[509].drives.truncate(1);
        let text = table(&seats, &hosts(&seats));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2 + 8 + 8, "{text}");
        assert!(lines[2].contains("node[001-063]") && lines[2].contains("0-496:8"), "{text}");
        assert!(lines[2].contains("/nvme[0-1]/me") && lines[2].contains("| 0,1 "), "{text}");
        assert!(lines[9].contains("7-503:8") && lines[10].contains("node064"), "{text}");
        // Unbound, they take one line.
        let all: Vec<u32> = (0..8).collect();
        let place = |rank: usize| seat(&format!("node{:03}", rank / 8 + 1), &all, &NEAR);
        let seats: Vec<Seat> = (0..512).map(place).collect();
        let text = table(&seats, &hosts(&seats));
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.contains("node[001-064]") && text.contains("| 0-511 "), "{text}");
        assert!(warnings(&seats, &hosts(&seats)).is_empty());
    }

    #[test]
    fn a_table_without_a_pattern_ends() {
        let place = |rank: usize| seat(&format!("h{rank}"), &[0], &[(&format!("/d{rank}"), None)]);
        let seats: Vec<Seat> = (0..100).map(place).collect();
        let text = table(&seats, &hosts(&seats));
        assert_eq!(text.lines().count(), 2 + ROWS_MAX + 1);
        assert!(text.contains("and 60 more rows: the ranks sit without a pattern"), "{text}");
    }

    #[test]
    fn local_ranks_with_drives_of_their_own_have_rows_of_their_own() {
        let own = |name: &str| seat("a", &[0, 1], &[(name, Some(0))]);
        let seats = [own("/x"), own("/y"), seat("b", &[0, 1], &NEAR), seat("b", &[2, 3], &NEAR)];
        let text = table(&seats, &hosts(&seats));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[2].contains("/x") && lines[3].contains("/y"), "{text}");
        assert!(lines[4].contains("/nvme") && !lines[5].contains("/nvme"), "{text}");
        assert!(
            seats[1].to_string().contains("cores 0-1, NUMA 0, drives /y (NUMA 0"),
            "{}",
            seats[1]
        );
    }

    #[test]
    fn ranks_far_from_their_drives_are_named() {
        let seats = [
            seat("a", &[0, 1], &[("/x", Some(1))]),
            seat("a", &[4, 5], &[("/x", Some(1))]),
            seat("b", &[0], &[("/x", None)]),
            seat("b", &[1], &NEAR),
        ];
        let [far] = warnings(&seats, &hosts(&seats)).try_into().unwrap();
        assert!(far.contains("the cores of rank 0 are") && far.contains("(0 on a)"), "{far}");
    }

    #[test]
    fn ranks_that_share_cores_beside_idle_ones_are_reported() {
        let crowd = |cpus: &[&[u32]]| {
            let seats: Vec<Seat> = cpus.iter().map(|cpus| seat("a", cpus, &NEAR)).collect();
            warnings(&seats, &hosts(&seats)).len()
        };
        assert_eq!(crowd(&[&[0], &[0]]), 1, "both on one core");
        assert_eq!(crowd(&[&[0, 1], &[1, 2]]), 1, "partly the same");
        assert_eq!(crowd(&[&[0, 1], &[2, 3]]), 0, "each its own");
        assert_eq!(crowd(&[&[0, 1, 2, 3], &[0, 1, 2, 3]]), 0, "shared on purpose");
        let all: &[u32] = &[0, 1, 2, 3, 4, 5, 6, 7];
        assert_eq!(crowd(&[all; 9]), 0, "none is idle");
    }

    #[test]
    fn lists_are_short() {
        let ranks = |list: &[usize]| rank_list(list.iter().copied());
        assert_eq!(ranks(&[0, 1, 2, 3]), "0-3");
        assert_eq!(ranks(&[0, 8, 16]), "0-16:8");
        assert_eq!(ranks(&[0, 1, 8, 9]), "0-1,8-9");
        assert_eq!(ranks(&[5, 0]), "0,5");
        assert_eq!(ranks(&[]), "");
    }
}
