//! The nodes that a plan is for: given by the speeds of their drives, or like this machine with its
//! probed drives, or those of a site's description.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::plan::PlanArgs;
use crate::forecast::{Bandwidth, DriveSpec, NodeKind};
use optswap::internals::config::{
    Config, HostRanges, SiteDrive, SiteNodes, expand_wildcards, memory_limit,
};
use optswap::internals::error::{Error, Result};
use optswap::internals::job::{
    NodeSite, directories_of, discover_drives, find_site, no_drive_named,
};
use optswap::internals::storage::{Drive, DriveProfile};

/// More nodes than this are not planned for.
const NODES_MAX: usize = 1 << 20;
/// How much a drive's speed varies within a fifth of a second, if it was not probed.
const SPREAD: f64 = 0.05;

/// `300`, or `3000:1000:1500`: MB/s.
#[derive(Clone, Copy, Debug)]
pub(super) struct DriveSpeed(Bandwidth);

impl FromStr for DriveSpeed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Option<Vec<f64>> = text.split(':').map(|part| part.parse().ok()).collect();
        let numbers = numbers.unwrap_or_default();
        let is_speed = numbers.iter().all(|mbps: &f64| mbps.is_finite() && *mbps > 0.0);
        match numbers.as_slice() {
            [mbps] if is_speed => Ok(Self(Bandwidth::symmetric(mbps * 1e6))),
            [read, write, mixed] if is_speed => {
                Ok(Self(Bandwidth { read: read * 1e6, write: write * 1e6, mixed: mixed * 1e6 }))
            }
            _ => Err("neither MB/s nor READ:WRITE:BOTH".to_owned()),
        }
    }
}

/// Nodes, and what is known of them because this machine is one of them.
pub(super) struct Nodes {
    pub kinds: Vec<NodeKind>,
    /// Nanoseconds of this machine's processors for one byte to or from a drive, as probed. `None`
    /// if this machine is none of the nodes.
    pub cpu_ns_per_byte: Option<f64>,
    /// What the site expects of where checkpoints go, for the whole job.
    pub checkpoint_gb_per_s: Option<f64>,
}

/// The nodes by the first rule that names any, as for a job's drives.
///
/// # Errors
/// Usage errors of the rule that counts.
pub(super) fn nodes(args: &PlanArgs, config: &Config) -> Result<Nodes> {
    let finder = Finder { args, config, cpu_ns_per_byte: None };
    if !args.drive_mbps.is_empty() {
        return finder.with_given_speeds();
    }
    let named = if args.drives.is_empty() { &config.drives.paths } else { &args.drives };
    if !named.is_empty() {
        return finder.on_this_machine(&expand_wildcards(named)?);
    }
    let variable = |name: &str| std::env::var(name).ok();
    if let Some(place) = find_site(args.site.as_deref(), &variable)? {
        return finder.of_site(&place, &variable);
    }
    match discover_drives(&variable)? {
        Some(chosen) => finder.on_this_machine(&chosen.paths),
        None => Err(no_drive_named().hint(
            "or tell the speeds of a node's drives with --drive-mbps, such as 6800:4000:5000",
        )),
    }
}

struct Finder<'a> {
    args: &'a PlanArgs,
    config: &'a Config,
    cpu_ns_per_byte: Option<f64>,
}

impl Finder<'_> {
    fn with_given_speeds(self) -> Result<Nodes> {
        let drive = |DriveSpeed(bandwidth): &DriveSpeed| self.drive(None, *bandwidth, SPREAD);
        let drives = self.args.drive_mbps.iter().map(drive).collect();
        self.uniform("every node".to_owned(), drives, None)
    }

    fn on_this_machine(mut self, paths: &[PathBuf]) -> Result<Nodes> {
        let drives = paths.iter().map(|path| {
            self.probed(path)?.ok_or_else(|| {
                Error::usage("a drive was never probed").with("drive", path.display()).hint(
                    "measure it with optswap probe, or tell speeds with --drive-mbps or in a \
                     site's description",
                )
            })
        });
        let drives = drives.collect::<Result<_>>()?;
        let memory = memory_limit().map(|(bytes, _)| bytes.0);
        self.uniform("as this one".to_owned(), drives, memory)
    }

    fn uniform(
        self,
        name: String,
        mut drives: Vec<DriveSpec>,
        memory_bytes: Option<u64>,
    ) -> Result<Nodes> {
        if self.args.hosts.is_some() {
            return Err(Error::usage("--hosts names hosts of a site's description")
                .hint("name it with --site, or count nodes with --nodes"));
        }
        self.set_weights(&mut drives)?;
        let memory_bytes = self.args.memory.map(|memory| memory.0).or(memory_bytes);
        let nodes = self.args.nodes.unwrap_or(1);
        let kinds = vec![NodeKind { name, nodes, drives, memory_bytes }];
        Ok(Nodes { kinds, cpu_ns_per_byte: self.cpu_ns_per_byte, checkpoint_gb_per_s: None })
    }

    fn of_site(
        mut self,
        place: &NodeSite,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Nodes> {
        let site = place.site();
        let counts = match &self.args.hosts {
            Some(hosts) => counts_on_hosts(place, hosts, self.args.nodes)?,
            None => counts(place, self.args.nodes)?,
        };
        let here = site.nodes_of(place.host()).ok();
        let mut kinds = Vec::new();
        for (entry, nodes) in site.nodes.iter().zip(counts).filter(|(_, nodes)| *nodes > 0) {
            let is_here = here.is_some_and(|here| std::ptr::eq(here, entry));
            let mut drives = Vec::new();
            for drive in &entry.drives {
                // Where they are not mounted, a job could not run, but a plan can be made.
                let paths = directories_of(drive, variable).ok().filter(|_| is_here);
                let of_entry = self.of_entry(drive, paths.unwrap_or_default());
                drives.extend(of_entry.map_err(|error| error.with("hosts", &entry.hosts))?);
            }
            self.set_weights(&mut drives)?;
            let limit = memory_limit().filter(|_| is_here).map(|(bytes, _)| bytes);
            kinds.push(NodeKind {
                name: entry.hosts.to_string(),
                nodes,
                drives,
                memory_bytes: self.args.memory.or(entry.memory).or(limit).map(|bytes| bytes.0),
            });
        }
        let checkpoints = site.checkpoints.as_ref();
        Ok(Nodes {
            kinds,
            cpu_ns_per_byte: self.cpu_ns_per_byte,
            checkpoint_gb_per_s: checkpoints.and_then(|it| it.write_gb_per_s),
        })
    }

    /// The drives that an entry describes. `paths` are those of this machine, if it is one of the
    /// entry's hosts.
    fn of_entry(&mut self, entry: &SiteDrive, paths: Vec<PathBuf>) -> Result<Vec<DriveSpec>> {
        let size = entry.size.map(|size| size.0);
        let endurance = entry.endurance_pb.map(|pb| pb * 1e15);
        let complete = |it: DriveSpec| DriveSpec {
            free_bytes: it.free_bytes.or(size),
            endurance_bytes: it.endurance_bytes.or(endurance),
            ..it
        };
        let paths: Vec<Option<PathBuf>> = if paths.is_empty() {
            let count = entry.drives_named().ok_or_else(|| {
                Error::usage("how many drives this names cannot be told from here")
                    .with("path", entry.path.display())
                    .hint("write `count = 4` below it in the site's description")
            })?;
            vec![None; count as usize]
        } else {
            paths.into_iter().map(Some).collect()
        };
        let drive = |path: Option<PathBuf>| -> Result<DriveSpec> {
            if let Some(path) = &path {
                self.cpu_ns_per_byte.get_or_insert(0.0);
                if let Some(probed) = self.probed(path)? {
                    return Ok(complete(probed));
                }
            }
            let bandwidth = entry.gb_per_s().map(Bandwidth::expected).ok_or_else(|| {
                Error::usage("the site's description does not tell how fast a drive is")
                    .with("path", entry.path.display())
                    .hint(
                        "write read_gb_per_s, write_gb_per_s and mixed_gb_per_s there, or probe \
                         the drive and plan on its node",
                    )
            })?;
            Ok(complete(self.drive(path, bandwidth, SPREAD)))
        };
        paths.into_iter().map(drive).collect()
    }

    /// A drive of this machine; none if it was never probed.
    fn probed(&mut self, path: &Path) -> Result<Option<DriveSpec>> {
        let inspected = Drive::inspect(path, &self.config.drives.allow_filesystems)?;
        let Some(profile) = DriveProfile::read(path)? else { return Ok(None) };
        // The most costly drive counts for all.
        let cpu_ns = self.cpu_ns_per_byte.unwrap_or(0.0).max(profile.cpu_ns_per_byte);
        self.cpu_ns_per_byte = Some(cpu_ns);
        let drive = self.drive(Some(path.to_owned()), Bandwidth::of(&profile), profile.spread);
        Ok(Some(DriveSpec { free_bytes: drive.free_bytes.or(Some(inspected.free_bytes)), ..drive }))
    }

    /// A drive with what flags say of all drives.
    fn drive(&self, path: Option<PathBuf>, bandwidth: Bandwidth, spread: f64) -> DriveSpec {
        DriveSpec {
            path,
            bandwidth,
            weight: bandwidth.mixed,
            free_bytes: self.args.drive_size.map(|size| size.0),
            spread: self.args.spread.map_or(spread, |percent| percent / 100.0),
            endurance_bytes: self.args.endurance_tbw.map(|tb| tb * 1e12),
        }
    }

    /// A job's weights are those of its configuration, before all others.
    fn set_weights(&self, drives: &mut [DriveSpec]) -> Result<()> {
        let weights = &self.config.drives.weights;
        if weights.is_empty() {
            return Ok(());
        }
        if weights.len() != drives.len() {
            return Err(Error::usage(
                "drives.weights does not have as many values as a node drives",
            )
            .with("weights", weights.len())
            .with("drives", drives.len()));
        }
        drives.iter_mut().zip(weights).for_each(|(drive, weight)| drive.weight = *weight);
        Ok(())
    }
}

/// How many nodes of each entry a job on these hosts has.
fn counts_on_hosts(place: &NodeSite, hosts: &HostRanges, nodes: Option<u64>) -> Result<Vec<u64>> {
    let site = place.site();
    let names = hosts.names(NODES_MAX).ok_or_else(|| uncountable(hosts))?;
    let mut counts = vec![0; site.nodes.len()];
    for name in names.iter().take(nodes.map_or(NODES_MAX, |nodes| nodes as usize)) {
        let entry = site.nodes_of(name)?;
        let index = site.nodes.iter().position(|it| std::ptr::eq(it, entry));
        counts[index.unwrap_or(0)] += 1;
    }
    check_count(&counts, nodes)?;
    Ok(counts)
}

/// How many nodes of each entry a job has: of all that have drives, or of the first so many.
fn counts(place: &NodeSite, nodes: Option<u64>) -> Result<Vec<u64>> {
    let site = place.site();
    let mut left = nodes.unwrap_or(NODES_MAX as u64);
    let mut counts = Vec::new();
    for (index, entry) in site.nodes.iter().enumerate() {
        let count = if entry.drives.is_empty() { 0 } else { hosts_of(&site.nodes, index, nodes)? };
        counts.push(count.min(left));
        left -= count.min(left);
    }
    check_count(&counts, nodes)?;
    Ok(counts)
}

/// The hosts of one entry that no earlier one names.
fn hosts_of(all: &[SiteNodes], index: usize, nodes: Option<u64>) -> Result<u64> {
    let (entry, earlier) = (&all[index], &all[..index]);
    match (entry.hosts.names(NODES_MAX), nodes) {
        (Some(names), _) => {
            let is_new = |name: &&String| !earlier.iter().any(|it| it.hosts.contains(name));
            Ok(names.iter().filter(is_new).count() as u64)
        }
        // As many as are wanted.
        (None, Some(nodes)) => Ok(nodes),
        (None, None) => Err(uncountable(&entry.hosts)),
    }
}

fn uncountable(hosts: &HostRanges) -> Error {
    Error::usage("these hosts cannot be counted")
        .with("hosts", hosts)
        .hint("tell how many nodes the job has with --nodes, or which with --hosts")
}

fn check_count(counts: &[u64], wanted: Option<u64>) -> Result<()> {
    let found: u64 = counts.iter().sum();
    match wanted {
        Some(wanted) if found < wanted => {
            Err(Error::usage("there are not so many nodes with drives")
                .with("--nodes", wanted)
                .with("found", found))
        }
        _ => Ok(()),
    }
}
