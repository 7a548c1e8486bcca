//! A site's description of its nodes: which drives they have, where these are mounted and how fast
//! they are, and where checkpoints go. One file (`cluster/*.toml`) describes a whole cluster.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::Table;

use super::hosts::HostRanges;
use super::strict::check_keys;
use super::wildcards::matches_at_most;
use crate::error::{Error, ErrorKind, Result};
use crate::units::Bytes;

/// A larger file is taken for something else than a site's description.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The description of a site.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Site {
    /// Its name, for messages. Default empty.
    pub name: String,
    /// Kinds of nodes, at least one. The first kind that names a host describes it.
    pub nodes: Vec<SiteNodes>,
    /// Where checkpoints go. Default: the site does not say.
    pub checkpoints: Option<SiteCheckpoints>,
}

/// `[[nodes]]`: nodes that are alike.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SiteNodes {
    /// Their names, `node[001-064,070]`; `*` names all.
    pub hosts: HostRanges,
    /// Memory of each node, in bytes.
    pub memory: Option<Bytes>,
    /// Drives of each node; empty if it has none.
    pub drives: Vec<SiteDrive>,
}

/// `[[nodes.drives]]`: a drive of a node, or several that are alike. Paths are absolute and may
/// have wildcards and variables: `/nvme*/$USER`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SiteDrive {
    /// A directory on the drive.
    pub path: PathBuf,
    /// How many drives the path names: at least 1. If it is given, a node on which the path matches
    /// more or fewer directories is refused. Planning on another machine needs it if the path has a
    /// `*`.
    pub count: Option<u64>,
    /// Where the drive is mounted. If it is given, a directory that lies elsewhere is refused:
    /// where a drive is not mounted, its directory lies on the system's own disk.
    pub mount: Option<PathBuf>,
    /// Size of the drive, in bytes.
    pub size: Option<Bytes>,
    /// Expected bandwidth of reading alone, in GB/s: above 0.
    pub read_gb_per_s: Option<f64>,
    /// Expected bandwidth of writing alone, in GB/s: above 0.
    pub write_gb_per_s: Option<f64>,
    /// Expected bandwidth of both directions together, reading and writing at the same time, in
    /// GB/s: above 0.
    pub mixed_gb_per_s: Option<f64>,
    /// What may be written over the drive's life, in PB: above 0.
    pub endurance_pb: Option<f64>,
}

/// `[checkpoints]`: where checkpoints go.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SiteCheckpoints {
    /// A directory that all nodes see: absolute, may have variables. It is taken if a job saves
    /// checkpoints and names no place for them.
    pub dir: PathBuf,
    /// Expected bandwidth at which a whole job writes there, in GB/s: above 0.
    pub write_gb_per_s: Option<f64>,
}

impl Site {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// Usage errors that name the file and the key.
    pub fn read(path: &Path) -> Result<Self> {
        let read = || -> std::io::Result<String> {
            use std::io::Read as _;
            let mut text = String::new();
            let file = std::fs::File::open(path)?;
            file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
            Ok(text)
        };
        let text = read().map_err(|error| Error::usage("cannot be read").because(error));
        let site = text.and_then(|text| Self::parse(&text));
        site.map_err(|error| {
            Error::usage("the site description is wrong")
                .with("file", path.display())
                .because(error)
        })
    }

    /// Reads and checks a text in TOML.
    ///
    /// # Errors
    /// Usage errors that name the key.
    pub fn parse(text: &str) -> Result<Self> {
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(Error::usage(format!("longer than {}", Bytes(FILE_BYTES_MAX).human())));
        }
        let wrong = |error: toml::de::Error| Error::usage(error.to_string().trim_end());
        let table: Table = toml::from_str(text).map_err(wrong)?;
        check_keys("", &table, &every_key()?)?;
        let site: Self = toml::from_str(text).map_err(wrong)?;
        site.validate()?;
        Ok(site)
    }

    fn validate(&self) -> Result<()> {
        if self.nodes.is_empty() {
            return Err(Error::usage("it has no [[nodes]]"));
        }
        for (index, nodes) in self.nodes.iter().enumerate() {
            if nodes.hosts == HostRanges::default() {
                return Err(Error::usage(format!("nodes[{index}] has no hosts")));
            }
            for (drive_index, drive) in nodes.drives.iter().enumerate() {
                let place = format!("nodes[{index}].drives[{drive_index}]");
                drive.validate().map_err(|problem| Error::usage(format!("{place}: {problem}")))?;
            }
        }
        let Some(checkpoints) = &self.checkpoints else { return Ok(()) };
        is_absolute("dir", &checkpoints.dir)
            .and_then(|()| is_positive("write_gb_per_s", checkpoints.write_gb_per_s))
            .map_err(|problem| Error::usage(format!("checkpoints: {problem}")))
    }

    /// The description of a host.
    ///
    /// # Errors
    /// Usage if it does not name the host; unavailable if the host has no drives.
    pub fn nodes_of(&self, host: &str) -> Result<&SiteNodes> {
        let Some(nodes) = self.nodes.iter().find(|nodes| nodes.hosts.contains(host)) else {
            let known: Vec<String> = self.nodes.iter().map(|it| it.hosts.to_string()).collect();
            return Err(Error::usage("the site description does not name this host")
                .with("host", host)
                .with("site", &self.name)
                .with("hosts", known.join(","))
                .hint("add the host to its [[nodes]], or name drives with --drives"));
        };
        if nodes.drives.is_empty() {
            let none = "the site description says that this host has no drives";
            return Err(Error::new(ErrorKind::Unavailable, none)
                .with("host", host)
                .with("site", &self.name)
                .hint("run on other nodes, or name a directory with --drives"));
        }
        Ok(nodes)
    }
}

impl SiteDrive {
    fn validate(&self) -> Result<(), String> {
        is_absolute("path", &self.path)?;
        if self.count == Some(0) {
            return Err("count = 0 is out of range: must be at least 1".to_owned());
        }
        self.mount.as_ref().map_or(Ok(()), |mount| is_absolute("mount", mount))?;
        is_positive("read_gb_per_s", self.read_gb_per_s)?;
        is_positive("write_gb_per_s", self.write_gb_per_s)?;
        is_positive("mixed_gb_per_s", self.mixed_gb_per_s)?;
        is_positive("endurance_pb", self.endurance_pb)
    }

    /// How many drives of a node this names, if that follows from the text: `/nvme[0-3]` names
    /// four, `/nvme*` any number.
    pub fn drives_named(&self) -> Option<u64> {
        self.count.or_else(|| self.path.to_str().map_or(Some(1), matches_at_most))
    }

    /// Expected bandwidths in GB/s: reading, writing, both directions together. `None` if the
    /// description does not give enough of them.
    pub fn gb_per_s(&self) -> Option<[f64; 3]> {
        let mixed = self.step_gb_per_s()?;
        Some([self.read_gb_per_s.unwrap_or(mixed), self.write_gb_per_s.unwrap_or(mixed), mixed])
    }

    /// Expected bandwidth in GB/s in a step, which reads as much as it writes: the mixed bandwidth,
    /// or else what reading and writing in turns would give.
    pub fn step_gb_per_s(&self) -> Option<f64> {
        let of_both = || Some(2.0 / (1.0 / self.read_gb_per_s? + 1.0 / self.write_gb_per_s?));
        self.mixed_gb_per_s.or_else(of_both)
    }
}

fn is_absolute(key: &str, path: &Path) -> Result<(), String> {
    // A variable may hold a whole path.
    if path.is_absolute() || path.to_string_lossy().starts_with('$') {
        return Ok(());
    }
    if path.as_os_str().is_empty() {
        return Err(format!("{key} is missing"));
    }
    Err(format!("{key} = {} is no absolute path", path.display()))
}

fn is_positive(key: &str, value: Option<f64>) -> Result<(), String> {
    match value {
        Some(value) if !(value.is_finite() && value > 0.0) => {
            Err(format!("{key} = {value} is out of range: must be above 0"))
        }
        _ => Ok(()),
    }
}

/// A site in which every key appears.
fn every_key() -> Result<Table> {
    let one = Some(1.0);
    let drive = SiteDrive {
        path: PathBuf::new(),
        count: Some(1),
        mount: Some(PathBuf::new()),
        size: Some(Bytes(1)),
        read_gb_per_s: one,
        write_gb_per_s: one,
        mixed_gb_per_s: one,
        endurance_pb: one,
    };
    let nodes =
        SiteNodes { hosts: HostRanges::default(), memory: Some(Bytes(1)), drives: vec![drive] };
    let checkpoints = Some(SiteCheckpoints { dir: PathBuf::new(), write_gb_per_s: one });
    let all = Site { name: String::new(), nodes: vec![nodes], checkpoints };
    Table::try_from(&all).map_err(|error| Error::internal("no key is known").because(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_example_is_read() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster/example.toml");
        let site = Site::read(&path).unwrap();
        let drives = |host: &str| site.nodes_of(host).map(|nodes| nodes.drives.len());
        assert_eq!(drives("node001").unwrap(), 1);
        assert_eq!(drives("fat02.example.org").unwrap(), 2);
        assert_eq!(drives("login1").unwrap_err().exit_code(), 64);
        assert_eq!(drives("cpu001").unwrap_err().exit_code(), 69);
        assert_eq!(site.checkpoints.as_ref().unwrap().dir, Path::new("/lustre/scratch/$USER"));
    }

    #[test]
    fn the_first_entry_that_names_a_host_counts() {
        let text = "nodes = [{ hosts = 'a[1-2]', drives = [{ path = '/x' }] },
                             { hosts = '*', drives = [{ path = '/y' }] }]";
        let site = Site::parse(text).unwrap();
        assert_eq!(site.nodes_of("a2").unwrap().drives[0].path, Path::new("/x"));
        assert_eq!(site.nodes_of("a3").unwrap().drives[0].path, Path::new("/y"));
    }

    #[test]
    fn bandwidth_in_a_step_is_mixed_or_made_of_both() {
        let both = SiteDrive {
            read_gb_per_s: Some(6.0),
            write_gb_per_s: Some(3.0),
            ..SiteDrive::default()
        };
        assert_eq!(both.step_gb_per_s(), Some(4.0));
        assert_eq!(SiteDrive { mixed_gb_per_s: Some(5.0), ..both }.step_gb_per_s(), Some(5.0));
        assert_eq!(SiteDrive::default().step_gb_per_s(), None);
    }

    #[test]
    fn mistakes_are_named() {
        let drive = |text: &str| format!("[[nodes]]\nhosts = 'a'\n[[nodes.drives]]\n{text}");
        for (text, words) in [
            (String::new(), "it has no [[nodes]]"),
            ("[[nodes]]".to_owned(), "nodes[0] has no hosts"),
            ("[[nodes]]\nhosts = 'n[3-1]'".to_owned(), "ends before it begins"),
            ("[[nodes]]\nhosts = 7".to_owned(), "string"),
            ("[[nodes]]\nhost = 'a'".to_owned(), "did you mean `nodes.hosts`?"),
            (drive("path = '/a'\nread_gb_s = 1"), "did you mean `nodes.drives.read_gb_per_s`?"),
            (drive("size = '1TB'"), "nodes[0].drives[0]: path is missing"),
            (drive("path = '/a'\ncount = 0"), "must be at least 1"),
            (drive("path = 'a'"), "path = a is no absolute path"),
            (drive("path = '/a'\nmount = 'b'"), "mount = b is no absolute path"),
            (drive("path = '/a'\nread_gb_per_s = -1.0"), "must be above 0"),
            (drive("path = '/a'\nmixed_gb_per_s = inf"), "must be above 0"),
            (drive("path = '/a'\nsize = 'large'"), "large"),
            ("[checkpoints]\ndir = 'x'\n[[nodes]]\nhosts = 'a'".to_owned(), "checkpoints: dir"),
            ("[[nodes]".to_owned(), "line 1"),
            (format!("name = '{}'", "x".repeat(2 << 20)), "longer than"),
        ] {
            let error = Site::parse(&text).unwrap_err();
            assert_eq!(error.exit_code(), 64);
            assert!(error.to_string().contains(words), "{text:.80}: {error}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        for path in ["/no/such/site.toml", "/dev/zero", "/proc"] {
            let error = Site::read(Path::new(path)).unwrap_err().to_string();
            assert!(error.contains(path), "{error}");
        }
    }
}
