//! Which directories are the drives: what `--drives` names, with wildcards, and where drives are
//! looked for if nothing names any.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::storage::{filesystem_of, is_memory_filesystem, same_device};

/// Variables that batch systems set inside of a job: Slurm, PBS, LSF, Flux.
const JOB_VARIABLES: [&str; 4] = ["SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "FLUX_JOB_ID"];

/// Drives that nothing named on the command line or in the configuration.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Discovered {
    pub paths: Vec<PathBuf>,
    /// The variable that named them.
    pub rule: &'static str,
}

/// Puts the directories that a pattern matches in its place, sorted; a path without wildcards, or
/// one that exists under just that name, stays as it is.
///
/// # Errors
/// Usage if a pattern is malformed or matches no directory.
pub(super) fn expand(patterns: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for pattern in patterns {
        // glob takes text; a path that is none has no wildcards that anybody could have meant.
        let text = pattern.to_str().filter(|text| text.contains(['*', '?', '[']));
        match text {
            Some(text) if !pattern.exists() => paths.extend(matches(text)?),
            _ => paths.push(pattern.clone()),
        }
    }
    Ok(paths)
}

fn matches(pattern: &str) -> Result<Vec<PathBuf>> {
    // As in a shell: `*` matches no hidden names and no slash.
    let options = glob::MatchOptions {
        case_sensitive: true,
        require_literal_separator: true,
        require_literal_leading_dot: true,
    };
    let found = glob::glob_with(pattern, options).map_err(|error| {
        Error::usage("a pattern of drives is malformed").with("pattern", pattern).because(error)
    })?;
    // What cannot be read is no drive of this user; files cannot be drives.
    let mut paths: Vec<PathBuf> = found.flatten().filter(|path| path.is_dir()).collect();
    paths.sort();
    if paths.is_empty() {
        return Err(Error::usage("a pattern of drives matches no directory")
            .with("pattern", pattern)
            .hint("name one directory on each drive with --drives DIR,DIR"));
    }
    Ok(paths)
}

/// Looks for drives in the environment, which is read through `variable`: `$OPTSWAP_DRIVES`, then
/// `$SLURM_TMPDIR`, then, inside of a batch job, `$TMPDIR` if that is no memory file system.
/// Outside of a job `$TMPDIR` is a place for small files, most often on the system's own disk.
///
/// # Errors
/// As [`expand`], for `$OPTSWAP_DRIVES`.
pub(super) fn discover(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Discovered>> {
    let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
    let list = set("OPTSWAP_DRIVES").unwrap_or_default();
    let names = list.split(',').map(str::trim).filter(|name| !name.is_empty());
    let patterns: Vec<PathBuf> = names.map(PathBuf::from).collect();
    if !patterns.is_empty() {
        let paths = expand(&patterns).map_err(|error| error.with("from", "$OPTSWAP_DRIVES"))?;
        return Ok(Some(Discovered { paths, rule: "$OPTSWAP_DRIVES" }));
    }
    let one = |path: String, rule| Some(Discovered { paths: vec![PathBuf::from(path)], rule });
    if let Some(path) = set("SLURM_TMPDIR") {
        return Ok(one(path, "$SLURM_TMPDIR"));
    }
    let Some(path) = set("TMPDIR").filter(|_| JOB_VARIABLES.iter().any(|name| set(name).is_some()))
    else {
        return Ok(None);
    };
    let in_memory = filesystem_of(Path::new(&path)).is_some_and(|name| is_memory_filesystem(&name));
    Ok(if in_memory { None } else { one(path, "$TMPDIR") })
}

/// The error of a job without drives: it lists the rules.
pub(super) fn none_named() -> Error {
    Error::usage("no drive is named").hint(
        "name a directory on each drive with --drives DIR,DIR, in [drives] paths of the \
         configuration, or in $OPTSWAP_DRIVES; else $SLURM_TMPDIR is taken, or in a batch job \
         $TMPDIR, if that is no memory file system",
    )
}

/// What [`discover`] finds for this process; says what it took, and from where.
///
/// # Errors
/// As [`discover`].
pub(super) fn from_environment() -> Result<Option<Vec<PathBuf>>> {
    let Some(Discovered { paths, rule }) = discover(&|name| std::env::var(name).ok())? else {
        return Ok(None);
    };
    let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    tracing::info!("drives: {} (from {rule})", names.join(", "));
    if rule == "$TMPDIR" && same_device(&paths[0], Path::new("/")) {
        tracing::warn!(
            "{} lies on the system's own disk: name the node's drives with --drives if it has any",
            names[0]
        );
    }
    Ok(Some(paths))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &[(&str, &str)]) -> Option<Discovered> {
        let find = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        discover(&find).unwrap()
    }

    fn found(paths: &[&str], rule: &'static str) -> Option<Discovered> {
        Some(Discovered { paths: paths.iter().map(PathBuf::from).collect(), rule })
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
        // Outside of a job, in memory, or empty.
        assert_eq!(with(&[tmp]), None);
        assert_eq!(with(&[("TMPDIR", "/dev/shm"), job]), None);
        assert_eq!(with(&[("OPTSWAP_DRIVES", " , "), ("SLURM_TMPDIR", "")]), None);
    }

    #[test]
    fn wildcards_match_directories_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for name in ["nvme1/me", "nvme0/me", "nvme2/you", ".nvme3/me", "odd[1]"] {
            std::fs::create_dir_all(root.join(name)).unwrap();
        }
        std::fs::create_dir(root.join("nvme4")).unwrap();
        std::fs::write(root.join("nvme4/me"), "a file").unwrap();
        let pattern = |name: &str| expand(&[root.join(name)]);
        assert_eq!(pattern("*/me").unwrap(), [root.join("nvme0/me"), root.join("nvme1/me")]);
        assert_eq!(pattern("nvme[12]/*").unwrap(), [root.join("nvme1/me"), root.join("nvme2/you")]);
        // Names without wildcards, and names that only look like patterns.
        assert_eq!(pattern("missing").unwrap(), [root.join("missing")]);
        assert_eq!(pattern("odd[1]").unwrap(), [root.join("odd[1]")]);
        for wrong in ["nvme9*/me", "nvme4/m*", "a[/me"] {
            let error = pattern(wrong).unwrap_err();
            assert_eq!(error.exit_code(), 64);
            assert!(error.to_string().contains(wrong), "{error}");
        }
    }
}
