//! Which files a model is in: one file, or those that an index names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::source::is_fetched;
use crate::error::{Error, Result};
use crate::units::{first_of, printable};

pub(super) const MODEL: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Endings of files that hold models, in other programs' formats too.
const MODEL_ENDINGS: [&str; 10] = [
    ".safetensors",
    ".index.json",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".gguf",
    ".h5",
    ".msgpack",
    ".npz",
];

/// The files of a model, and what tells so.
pub(super) struct Found {
    /// The files, each once and sorted by name.
    pub paths: Vec<PathBuf>,
    /// The index that names them, if there is one.
    pub index: Option<Index>,
    /// Names of safetensors files beside them that are not used.
    pub unused: Vec<String>,
}

/// An index beside several files, as Hugging Face's libraries write it.
pub(super) struct Index {
    pub path: PathBuf,
    /// The file of each tensor.
    pub file_of: BTreeMap<String, String>,
    pub metadata: serde_json::Value,
    /// The files that it names and that are not there, or are mere pointers of git-lfs.
    pub missing: Vec<String>,
}

#[derive(Deserialize)]
struct IndexText {
    weight_map: BTreeMap<String, String>,
    #[serde(default)]
    metadata: serde_json::Value,
}

/// Finds the files of a model by the path of one file, of an index, or of a directory that holds
/// either. Where a directory holds both, the index decides.
pub(super) fn find(from: &Path) -> Result<Found> {
    if !from.is_dir() {
        return match is_index(from) {
            true => found_by(Index::read(from)?),
            false => Ok(Found { paths: vec![from.to_owned()], index: None, unused: Vec::new() }),
        };
    }
    let (one, several) = (from.join(MODEL), from.join(INDEX));
    if several.exists() {
        return found_by(Index::read(&several)?);
    }
    if !one.exists() {
        return Err(no_model(from));
    }
    let unused = safetensors_in(from).into_iter().filter(|name| name != MODEL).collect();
    Ok(Found { paths: vec![one], index: None, unused })
}

fn found_by(index: Index) -> Result<Found> {
    let names = index.files();
    let is_unused = |name: &String| !names.contains(&name.as_str());
    let unused = safetensors_in(directory_of(&index.path)).into_iter().filter(is_unused).collect();
    let paths = names.iter().map(|name| index.path.with_file_name(name)).collect();
    Ok(Found { paths, index: Some(index), unused })
}

impl Index {
    fn read(path: &Path) -> Result<Self> {
        let wrong = |why: String| {
            Error::usage("the index of a model cannot be read")
                .with("path", path.display())
                .because(why)
        };
        let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        let text: IndexText = serde_json::from_str(&text).map_err(|error| {
            let error = wrong(error.to_string());
            if is_fetched(path) {
                error
            } else {
                error.hint("it is a git-lfs pointer: git lfs pull")
            }
        })?;
        let mut index = Self {
            path: path.to_owned(),
            file_of: text.weight_map,
            metadata: text.metadata,
            missing: Vec::new(),
        };
        let files = index.files();
        if let Some(name) = files.iter().find(|name| name.contains('/') || name.is_empty()) {
            return Err(wrong(format!("it names `{}`, which is not beside it", printable(name))));
        }
        let is_missing = |name: &&str| !is_fetched(&path.with_file_name(name));
        index.missing = files.into_iter().filter(is_missing).map(str::to_owned).collect();
        Ok(index)
    }

    /// The files that it names, each once and sorted.
    pub fn files(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.file_of.values().map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Refuses an index of which files are missing.
    pub fn check_fetched(&self) -> Result<()> {
        if self.missing.is_empty() {
            return Ok(());
        }
        Err(Error::usage("files that the index of a model names are missing")
            .with("index", self.path.display())
            .with("missing", format!("{} of {}", self.missing.len(), self.files().len()))
            .with("files", first_of(&self.missing))
            .hint("fetch them, with git lfs pull where pointers of git-lfs lie in their place"))
    }
}

/// No tensors are in JSON, so such a file can only be an index.
fn is_index(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "json")
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

fn safetensors_in(directory: &Path) -> Vec<String> {
    names_in(directory).into_iter().filter(|name| name.ends_with(".safetensors")).collect()
}

/// Names of what lies in a directory, sorted; none if it cannot be read.
fn names_in(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    names
}

/// A directory that has neither of the usual names.
fn no_model(directory: &Path) -> Error {
    let names = names_in(directory);
    let is_model = |name: &&String| MODEL_ENDINGS.iter().any(|ending| name.ends_with(ending));
    let models: Vec<String> = names.iter().filter(is_model).cloned().collect();
    let hint = match models.iter().find(|name| name.contains(".safetensors")) {
        Some(name) => {
            format!(
                "if it is meant, name the file itself: {}",
                printable(&directory.join(name).to_string_lossy())
            )
        }
        None if models.is_empty() => "name a safetensors file, or the directory of one".to_owned(),
        None => "convert what is there to safetensors with the tools of its framework".to_owned(),
    };
    let there = match (models.as_slice(), names.as_slice()) {
        ([], []) => "nothing".to_owned(),
        ([], names) => first_of(names),
        (models, _) => first_of(models),
    };
    Error::usage(format!(
        "the directory has no safetensors files by name: neither {MODEL} nor {INDEX}"
    ))
    .with("directory", directory.display())
    .with("there", there)
    .hint(hint)
}
