//! The directories of checkpoints: creating one, listing them, and removing old ones.

use std::io::ErrorKind as IoKind;
use std::path::{Path, PathBuf};

use super::manifest::{MANIFEST, Manifest, Run};
use super::private::private_directory;
use crate::config::safe_name;
use crate::coord::Pulse;
use crate::error::{Error, ErrorKind, Result};
use crate::units::Bytes;

/// A checkpoint that was found. They sort by steps attempted, then by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Found {
    pub attempts: u64,
    pub directory: PathBuf,
    pub generation: String,
    /// `None` for what no job saved.
    pub saved_by: Option<Run>,
}

/// The name of a checkpoint for which the caller gives none.
pub(super) fn automatic_name(attempts: u64) -> String {
    format!("step-{attempts:08}")
}

/// Whether a checkpoint has such a name. Only those are removed to make room: who gives a name
/// wants to keep what it names.
fn is_automatic(directory: &Path) -> bool {
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    let number = name.strip_prefix("step-").unwrap_or_default();
    number.len() >= 8 && number.bytes().all(|byte| byte.is_ascii_digit())
}

/// Creates the directory of a checkpoint of so many bytes, `DIR/JOB/NAME`.
///
/// # Errors
/// Usage for a name that is not allowed; cannot create if the directory cannot be created, or the
/// file system has too little space.
pub(super) fn create_directory(directory: &Path, name: &str, bytes: u64) -> Result<()> {
    let safe = safe_name(name);
    if safe != name {
        return Err(Error::usage(format!("`{name}` is no name for a checkpoint")).hint(format!(
            "up to 100 letters, digits, `.`, `_` and `-`, not beginning with `.`: `{safe}`"
        )));
    }
    let refused = |message: &str| {
        Error::new(ErrorKind::CannotCreate, message).with("path", directory.display())
    };
    let create = || {
        let of_job = directory.parent().unwrap_or(directory);
        std::fs::create_dir_all(of_job.parent().unwrap_or(of_job))?;
        private_directory(of_job)?;
        private_directory(directory)
    };
    create().map_err(|error| {
        refused("the directory of a checkpoint cannot be created").because(error)
    })?;
    let space = rustix::fs::statvfs(directory)
        .map_err(|errno| refused("the file system does not answer").because(errno))?;
    let free = space.f_bavail * space.f_frsize;
    if bytes > free {
        // This removes the directory only if it is empty, and so new.
        let _ = std::fs::remove_dir(directory);
        return Err(refused("there is no room for a checkpoint")
            .with("needed", Bytes(bytes).human())
            .with("free", Bytes(free).human())
            .hint("free space, or lower checkpoint.keep_last"));
    }
    Ok(())
}

/// The checkpoints below a directory, oldest first; none if the directory is missing.
///
/// # Errors
/// Cannot create if the directory is there and cannot be read: what lies there is not known.
pub(super) fn list(directory: &Path) -> Result<Vec<Found>> {
    let unreadable = |error| {
        Error::new(ErrorKind::CannotCreate, "the directory of checkpoints cannot be read")
            .with("path", directory.display())
            .because(error)
    };
    let listing = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == IoKind::NotFound => return Ok(Vec::new()),
        listing => listing.map_err(unreadable)?,
    };
    let mut found = Vec::new();
    for entry in listing {
        let directory = entry.map_err(unreadable)?.path();
        if !directory.join(MANIFEST).exists() {
            continue;
        }
        match Manifest::read(&directory) {
            Ok(Manifest { attempts, generation, saved_by, .. }) => {
                found.push(Found { attempts, directory, generation, saved_by });
            }
            Err(error) => tracing::warn!("a checkpoint is left out: {error}"),
        }
    }
    found.sort();
    Ok(found)
}

/// The paths in a directory; none if it cannot be read.
fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> {
    let listing = std::fs::read_dir(directory).into_iter().flatten();
    listing.filter_map(|entry| Some(entry.ok()?.path()))
}

/// Removes saves without a name of the caller's that were cut off.
pub(super) fn remove_unfinished(directory: &Path, just_saved: &Path, pulse: &Pulse) {
    for path in entries(directory) {
        if is_automatic(&path) && path != just_saved && !path.join(MANIFEST).exists() {
            tracing::info!("{}: an unfinished checkpoint is removed", path.display());
            let _ = remove(&path, pulse);
        }
    }
}

/// Removes what earlier saves under this name have left, whether they were finished or not.
pub(super) fn remove_other_generations(directory: &Path, manifest: &Manifest, pulse: &Pulse) {
    for path in entries(directory) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_ours = name.starts_with("shard-") || name.starts_with("manifest.");
        if is_ours && name != MANIFEST && !name.contains(&manifest.generation) {
            let _ = std::fs::remove_file(path);
            pulse.beat();
        }
    }
}

/// Removes all but the last few checkpoints without names of the caller's; the one just saved is
/// one of those that stay.
pub(super) fn remove_old(directory: &Path, just_saved: &Path, keep_last: usize, pulse: &Pulse) {
    let mut checkpoints = match list(directory) {
        Ok(checkpoints) => checkpoints,
        Err(error) => return tracing::warn!("old checkpoints stay: {error}"),
    };
    checkpoints.retain(|it| it.directory != just_saved && is_automatic(&it.directory));
    let keep = keep_last - usize::from(is_automatic(just_saved));
    let surplus = checkpoints.len().saturating_sub(keep);
    for Found { directory, .. } in checkpoints.drain(..surplus) {
        if let Err(error) = remove(&directory, pulse) {
            tracing::warn!("{}: an old checkpoint stays: {error}", directory.display());
        }
    }
}

/// Removes a checkpoint. There may be thousands of files, and all ranks wait.
fn remove(directory: &Path, pulse: &Pulse) -> std::io::Result<()> {
    // The manifest goes first, so that the rest is not taken for a checkpoint.
    match std::fs::remove_file(directory.join(MANIFEST)) {
        Err(error) if error.kind() != IoKind::NotFound => return Err(error),
        _ => {}
    }
    for path in entries(directory) {
        let _ = std::fs::remove_file(path);
        pulse.beat();
    }
    std::fs::remove_dir_all(directory)
}
