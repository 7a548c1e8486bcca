//! The directories of checkpoints: creating one, listing them, and removing old ones.

use std::path::{Path, PathBuf};

use super::manifest::{MANIFEST, Manifest};
use crate::error::{Error, ErrorKind, Result};
use crate::units::Bytes;

/// Creates the directory of a checkpoint of so many bytes.
///
/// # Errors
/// Usage for a name that is not allowed; cannot create if the directory cannot be created, or the
/// file system has too little space.
pub(super) fn create_directory(directory: &Path, name: &str, bytes: u64) -> Result<()> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || name.starts_with('.') || !name.chars().all(is_plain) {
        return Err(Error::usage(format!("`{name}` is no name for a checkpoint"))
            .hint("letters, digits, `.`, `_` and `-`, not beginning with `.`"));
    }
    let refused = |message: &str| {
        Error::new(ErrorKind::CannotCreate, message).with("path", directory.display())
    };
    std::fs::create_dir_all(directory).map_err(|error| {
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

/// The checkpoints below a directory, oldest first: by steps attempted, then by name.
pub(super) fn list(directory: &Path) -> Vec<(u64, PathBuf)> {
    let Ok(listing) = std::fs::read_dir(directory) else { return Vec::new() };
    let paths = listing.filter_map(|entry| Some(entry.ok()?.path()));
    let with_manifest = paths.filter(|path| path.join(MANIFEST).exists());
    let read = |path: PathBuf| match Manifest::read(&path) {
        Ok(manifest) => Some((manifest.attempts, path)),
        Err(error) => {
            tracing::warn!("a checkpoint is left out: {error}");
            None
        }
    };
    let mut found: Vec<(u64, PathBuf)> = with_manifest.filter_map(read).collect();
    found.sort();
    found
}

/// Removes saves that were cut off, of those whose names begin with `step-`.
fn remove_unfinished(directory: &Path, just_saved: &Path) {
    let Ok(listing) = std::fs::read_dir(directory) else { return };
    for path in listing.filter_map(|entry| Some(entry.ok()?.path())) {
        let is_ours =
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("step-"));
        if is_ours && path != just_saved && !path.join(MANIFEST).exists() {
            tracing::info!("{}: an unfinished checkpoint is removed", path.display());
            let _ = std::fs::remove_dir_all(&path);
        }
    }
}

/// Removes what earlier saves under this name have left, whether they were finished or not.
pub(super) fn remove_other_generations(directory: &Path, manifest: &Manifest) {
    let Ok(listing) = std::fs::read_dir(directory) else { return };
    for path in listing.filter_map(|entry| Some(entry.ok()?.path())) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_ours = name.starts_with("shard-") || name.starts_with("manifest.");
        if is_ours && name != MANIFEST && !name.contains(&manifest.generation) {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Removes all but the last few checkpoints below a directory; the one just saved is one of them.
pub(super) fn remove_old(directory: &Path, just_saved: &Path, keep_last: usize) {
    remove_unfinished(directory, just_saved);
    let mut checkpoints = list(directory);
    checkpoints.retain(|(_, directory)| directory != just_saved);
    let surplus = checkpoints.len().saturating_sub(keep_last - 1);
    for (_, directory) in checkpoints.drain(..surplus) {
        // The manifest goes first, so that the rest is not taken for a checkpoint.
        let removed = std::fs::remove_file(directory.join(MANIFEST))
            .and_then(|()| std::fs::remove_dir_all(&directory));
        if let Err(error) = removed {
            tracing::warn!("{}: an old checkpoint stays: {error}", directory.display());
        }
    }
}
