//! What a site's description says about this node: its drives, with variables and wildcards
//! replaced, and where checkpoints go.

use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::chosen::ChosenDrives;
use crate::config::{Site, SiteDrive, escape_wildcards, expand_wildcards, has_wildcards};
use crate::error::{Error, ErrorKind, Result};

/// A description, and this node's name.
#[derive(Debug)]
pub struct NodeSite {
    site: Site,
    host: String,
    /// The description's name, for messages.
    from: String,
}

/// Reads the description that `--site` names, or else `$OPTSWAP_SITE`.
///
/// # Errors
/// Usage if the file cannot be read, has an unknown key, or has a value that is out of range.
pub fn find_site(
    named: Option<&Path>,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Option<NodeSite>> {
    let set = || variable("OPTSWAP_SITE").filter(|value| !value.trim().is_empty());
    let (path, from) = match named {
        Some(path) => (path.to_owned(), "--site"),
        None => match set() {
            Some(path) => (PathBuf::from(path), "$OPTSWAP_SITE"),
            None => return Ok(None),
        },
    };
    let site = Site::read(&path).map_err(|error| error.with("from", from))?;
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let name = if site.name.is_empty() { path.display().to_string() } else { site.name.clone() };
    Ok(Some(NodeSite { site, host, from: format!("site {name}") }))
}

impl NodeSite {
    /// The description.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// This node's name.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// This node's drives.
    ///
    /// # Errors
    /// Usage if the description does not name this host, a variable is not set, or nothing
    /// matches; unavailable if the host has no drives, or they are not mounted.
    pub fn drives(&self, variable: &dyn Fn(&str) -> Option<String>) -> Result<ChosenDrives> {
        let nodes = self.site.nodes_of(&self.host)?;
        let rule = format!("{}, {}", self.from, nodes.hosts);
        let (mut paths, mut speeds, mut expected) = (Vec::new(), Vec::new(), Vec::new());
        for drive in &nodes.drives {
            let found = directories_of(drive, variable)
                .map_err(|error| error.with("host", &self.host).with("from", &rule))?;
            expected.extend(std::iter::repeat_n(drive.gb_per_s(), found.len()));
            speeds.extend(std::iter::repeat_n(drive.step_gb_per_s(), found.len()));
            paths.extend(found);
        }
        Ok(ChosenDrives { paths, weights: weights(&speeds), expected, rule })
    }

    /// Where checkpoints go, if it says.
    ///
    /// # Errors
    /// Usage if a variable is not set.
    pub fn checkpoints(
        &self,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Option<PathBuf>> {
        let Some(checkpoints) = &self.site.checkpoints else { return Ok(None) };
        literal(&checkpoints.dir, variable).map(Some)
    }
}

/// The bandwidths as weights; empty unless all are known and some differ.
fn weights(speeds: &[Option<f64>]) -> Vec<f64> {
    let known: Vec<f64> = speeds.iter().flatten().copied().collect();
    let differ = known.windows(2).any(|pair| pair[0].total_cmp(&pair[1]).is_ne());
    if known.len() == speeds.len() && differ { known } else { Vec::new() }
}

/// The directories that an entry names on this node.
///
/// # Errors
/// Usage if a variable is not set, or nothing matches; unavailable if there are not as many drives
/// as the entry says, or they are not mounted.
pub fn directories_of(
    drive: &SiteDrive,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<PathBuf>> {
    let paths = expand(&drive.path, variable)?;
    if let Some(count) = drive.count.filter(|count| *count != paths.len() as u64) {
        let refused = "there are not as many drives as the site description tells";
        return Err(Error::new(ErrorKind::Unavailable, refused)
            .with("path", drive.path.display())
            .with("told", count)
            .with("found", paths.len())
            .hint("mount the missing drive, or correct `count` in the site description"));
    }
    let Some(mount) = &drive.mount else { return Ok(paths) };
    let mounts = expand(mount, variable)?;
    for path in &paths {
        if !mounts.iter().any(|mount| path.starts_with(mount) && is_mount_point(mount)) {
            let refused = "no drive is mounted where the site description says";
            return Err(Error::new(ErrorKind::Unavailable, refused)
                .with("directory", path.display())
                .with("mount", mount.display())
                .hint("mount the drive; without it, the system's own disk would be used"));
        }
    }
    Ok(paths)
}

/// Whether another device begins at this directory.
fn is_mount_point(directory: &Path) -> bool {
    let device = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.st_dev()).ok();
    let above = directory.join("..");
    device(directory).is_some_and(|own| device(&above).is_some_and(|other| other != own))
}

/// The directories that a path with variables and wildcards names. The values of variables have no
/// wildcards, whatever is in them: a job's name may have brackets.
fn expand(path: &Path, variable: &dyn Fn(&str) -> Option<String>) -> Result<Vec<PathBuf>> {
    if !has_wildcards(path) {
        return Ok(vec![literal(path, variable)?]);
    }
    expand_wildcards(&[substitute(path, variable, &escape_wildcards)?])
}

/// A path with the variables' values as they are.
fn literal(path: &Path, variable: &dyn Fn(&str) -> Option<String>) -> Result<PathBuf> {
    substitute(path, variable, &str::to_owned)
}

/// Replaces `$NAME` and `${NAME}` by the variables' values, quoted.
fn substitute(
    path: &Path,
    variable: &dyn Fn(&str) -> Option<String>,
    quote: &dyn Fn(&str) -> String,
) -> Result<PathBuf> {
    // A path that is no valid text is taken to have no variables.
    let Some(text) = path.to_str().filter(|text| text.contains('$')) else {
        return Ok(path.to_owned());
    };
    let wrong =
        |message: &str, name: &str| Error::usage(message).with("path", text).with("variable", name);
    let (mut result, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once('$') {
        result.push_str(before);
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let (name, after) = match after.strip_prefix('{') {
            Some(inside) => inside
                .split_once('}')
                .ok_or_else(|| wrong("a `${` in the site description has no `}`", inside))?,
            None => after.split_at(after.find(|c| !is_name(c)).unwrap_or(after.len())),
        };
        if name.is_empty() || !name.chars().all(is_name) {
            return Err(wrong("a `$` in the site description is followed by no name", name));
        }
        let value = variable(name).filter(|value| !value.is_empty());
        let unset = "a variable in the site description is not set";
        result.push_str(&quote(&value.ok_or_else(|| wrong(unset, name))?));
        rest = after;
    }
    result.push_str(rest);
    Ok(PathBuf::from(result))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me(name: &str) -> Option<String> {
        let known = [("USER", "me"), ("JOB_1", "7"), ("EMPTY", "")];
        known.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
    }

    #[test]
    fn variables_are_replaced() {
        for (path, expected) in [
            ("/nvme0/$USER", "/nvme0/me"),
            ("/x/${USER}_$JOB_1/y", "/x/me_7/y"),
            ("$USER", "me"),
            ("/plain", "/plain"),
        ] {
            assert_eq!(literal(Path::new(path), &me).unwrap(), Path::new(expected));
        }
        for (path, words) in [
            ("/x/$NOBODY", "variable NOBODY"),
            ("/x/$EMPTY/y", "not set"),
            ("/x/$", "no name"),
            ("/x/${USER", "has no `}`"),
            ("/x/${US ER}", "no name"),
        ] {
            let error = literal(Path::new(path), &me).unwrap_err().to_string();
            assert!(error.contains(words), "{path}: {error}");
        }
    }

    #[test]
    fn speeds_become_weights_where_they_differ() {
        assert_eq!(weights(&[Some(2.0), Some(1.0)]), [2.0, 1.0]);
        assert!(weights(&[Some(2.0), Some(2.0)]).is_empty());
        assert!(weights(&[Some(2.0), None, Some(1.0)]).is_empty());
        assert!(weights(&[]).is_empty());
    }

    #[test]
    fn what_is_not_mounted_is_refused() {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let root = folder.path().to_owned();
        let drive = |mount: &Path| SiteDrive {
            path: root.clone(),
            mount: Some(mount.to_owned()),
            ..SiteDrive::default()
        };
        let error = directories_of(&drive(&root), &me).unwrap_err();
        assert_eq!(error.exit_code(), 69);
        assert!(error.to_string().contains("no drive is mounted"), "{error}");
        let two = SiteDrive { count: Some(2), ..drive(&root) };
        let error = directories_of(&two, &me).unwrap_err().to_string();
        assert!(error.contains("not as many drives"), "{error}");
        let proc = SiteDrive { path: "/proc/self".into(), ..drive(Path::new("/proc")) };
        assert_eq!(directories_of(&proc, &me).unwrap(), [Path::new("/proc/self")]);
    }
}
