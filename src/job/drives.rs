//! Which directories are the drives: what `--drives` names, else the configuration, else the
//! description of the site, else the environment.

use std::path::{Path, PathBuf};

use super::chosen::ChosenDrives;
use super::site::find_site;
use crate::config::expand_wildcards;
use crate::error::{Error, Result};
use crate::storage::{filesystem_of, is_forbidden, is_memory_filesystem, same_disk};

/// Variables that batch systems set inside of a job: Slurm, PBS, LSF, Flux.
const JOB_VARIABLES: [&str; 4] = ["SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "FLUX_JOB_ID"];

/// Where systems have a directory for a job's own files, in the order in which they are tried
/// inside of a batch job.
const JOB_PLACES: [&str; 5] =
    ["$TMPDIR", "$LOCAL_SCRATCH", "$PBS_JOBFS", "/local/scratch", "/mnt/bb/$USER"];

/// This node's drives by the first rule that names any: `named` by flags, `configured` in the
/// configuration, the site's description (`site` is the value of `--site`), and the environment.
/// Wildcards are expanded. The log says which drives were taken if neither flags nor the
/// configuration named them. `None` if no rule names a drive.
///
/// # Errors
/// Usage if the rule that counts has a malformed pattern, one that matches no directory, or a
/// description that is wrong; unavailable if the site's drives are missing.
pub fn choose_drives(
    named: &[PathBuf],
    configured: &[PathBuf],
    site: Option<&Path>,
) -> Result<Option<ChosenDrives>> {
    let plain = |paths: &[PathBuf], rule: &str| -> Result<Option<ChosenDrives>> {
        let paths = expand_wildcards(paths)?;
        Ok(Some(ChosenDrives::plain(paths, rule)))
    };
    match (named, configured) {
        ([], []) => {}
        ([], configured) => return plain(configured, "configuration"),
        (named, _) => return plain(named, "--drives"),
    }
    let variable = |name: &str| std::env::var(name).ok();
    let chosen = match find_site(site, &variable)? {
        Some(site) => Some(site.drives(&variable)?),
        None => discover_drives(&variable)?,
    };
    if let Some(chosen) = &chosen {
        announce(chosen);
    }
    Ok(chosen)
}

fn announce(ChosenDrives { paths, rule, .. }: &ChosenDrives) {
    let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    tracing::info!("drives: {} (from {rule})", names.join(", "));
    if JOB_PLACES.contains(&rule.as_str()) && same_disk(&paths[0], Path::new("/")) {
        tracing::warn!(
            "{} lies on the system's own disk: name the node's drives with --drives if it has any",
            names[0]
        );
    }
}

/// Looks for drives in the environment, which is read through `variable`: `$OPTSWAP_DRIVES`, then
/// `$SLURM_TMPDIR`, then, inside of a batch job, the first of `JOB_PLACES` that lies on a disk of
/// its own, and else on the system's; none in memory. Outside of a job `$TMPDIR` is a place for
/// small files, most often on the system's own disk.
///
/// # Errors
/// Usage if a pattern in `$OPTSWAP_DRIVES` is malformed or matches no directory.
pub fn discover_drives(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<ChosenDrives>> {
    let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
    let list = set("OPTSWAP_DRIVES").unwrap_or_default();
    let names = list.split(',').map(str::trim).filter(|name| !name.is_empty());
    let patterns: Vec<PathBuf> = names.map(PathBuf::from).collect();
    if !patterns.is_empty() {
        let paths = expand_wildcards(&patterns);
        let paths = paths.map_err(|error| error.with("from", "$OPTSWAP_DRIVES"))?;
        return Ok(Some(ChosenDrives::plain(paths, "$OPTSWAP_DRIVES")));
    }
    let one = |path: String, rule: &str| Some(ChosenDrives::plain(vec![PathBuf::from(path)], rule));
    if let Some(path) = set("SLURM_TMPDIR") {
        return Ok(one(path, "$SLURM_TMPDIR"));
    }
    if !JOB_VARIABLES.iter().any(|name| set(name).is_some()) {
        return Ok(None);
    }
    let places = JOB_PLACES.iter().filter_map(|rule| match rule.split_once('$') {
        None => Some(((*rule).to_owned(), *rule)),
        Some((before, name)) => Some((before.to_owned() + &set(name)?, *rule)),
    });
    let places: Vec<(String, &str)> = places.filter(|(path, rule)| is_place(path, rule)).collect();
    let has_own_disk = |(path, _): &&(String, &str)| !same_disk(Path::new(path), Path::new("/"));
    let found = places.iter().find(has_own_disk).or(places.first());
    Ok(found.and_then(|(path, rule)| one(path.clone(), rule)))
}

/// Whether a job may have its files there. A directory that a variable names counts even if it is
/// missing: the error that follows says so.
fn is_place(path: &str, rule: &str) -> bool {
    let path = Path::new(path);
    let is_usable = rule.starts_with('$') || (path.is_dir() && !is_forbidden(path));
    is_usable && !filesystem_of(path).is_some_and(|name| is_memory_filesystem(&name))
}

/// The error of a job without drives: it lists the rules.
pub fn no_drive_named() -> Error {
    Error::usage("no drive is named").hint(
        "name a directory on each drive with --drives DIR,DIR, in [drives] paths of the \
         configuration, in a site description (--site), or in $OPTSWAP_DRIVES; else $SLURM_TMPDIR \
         is taken, or in a batch job $TMPDIR, $LOCAL_SCRATCH, $PBS_JOBFS, /local/scratch or \
         /mnt/bb/$USER, where that is no memory file system",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &[(&str, &str)]) -> Option<ChosenDrives> {
        let find = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        discover_drives(&find).unwrap()
    }

    fn found(paths: &[&str], rule: &'static str) -> Option<ChosenDrives> {
        Some(ChosenDrives::plain(paths.iter().map(PathBuf::from).collect(), rule))
    }

    #[test]
    fn variables_count_in_order() {
        let (own, slurm) = (("OPTSWAP_DRIVES", "/a, /b,"), ("SLURM_TMPDIR", "/scratch/1"));
        let (tmp, job) = (("TMPDIR", "/proc"), ("PBS_JOBID", "7"));
        assert_eq!(with(&[slurm, own, tmp, job]), found(&["/a", "/b"], "$OPTSWAP_DRIVES"));
        assert_eq!(with(&[slurm, tmp, job]), found(&["/scratch/1"], "$SLURM_TMPDIR"));
        for name in JOB_VARIABLES {
            assert_eq!(with(&[tmp, (name, "7")]), found(&["/proc"], "$TMPDIR"));
        }
        // A disk of its own counts more than the system's; memory never does.
        let (scratch, pbs) = (("LOCAL_SCRATCH", "/proc/sys"), ("PBS_JOBFS", "/proc/self"));
        assert_eq!(with(&[("TMPDIR", "/"), pbs, job]), found(&["/proc/self"], "$PBS_JOBFS"));
        assert_eq!(with(&[("TMPDIR", "/"), job]), found(&["/"], "$TMPDIR"));
        assert_eq!(with(&[tmp, scratch, job]), found(&["/proc"], "$TMPDIR"));
        let in_memory = ("TMPDIR", "/dev/shm");
        assert_eq!(with(&[in_memory, scratch, pbs, job]), found(&["/proc/sys"], "$LOCAL_SCRATCH"));
        // Outside of a job, in memory, or empty.
        assert_eq!(with(&[tmp]), None);
        assert_eq!(with(&[("TMPDIR", "/dev/shm"), job]), None);
        assert_eq!(with(&[("OPTSWAP_DRIVES", " , "), ("SLURM_TMPDIR", "")]), None);
    }
}
