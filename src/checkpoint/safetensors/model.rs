//! A model's weights in safetensors files, to begin with as masters: one file, or several with an
//! index.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::source::TensorSource;
use crate::error::{Error, Result};
use crate::state::{Inventory, Parameter};
use crate::units::ParamIndex;

const MODEL: &str = "model.safetensors";
const INDEX_ENDING: &str = ".index.json";

/// The files of a model, open for reading.
pub struct ModelFiles {
    files: Vec<TensorSource>,
    inventory: Inventory,
    /// The file of every parameter, in inventory order.
    file_of: Vec<usize>,
    skipped: Vec<String>,
}

/// An index beside several files, as Hugging Face's libraries write it.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl ModelFiles {
    /// Opens one file, or an index (`model.safetensors.index.json`) with all files that it names,
    /// or a directory that holds either. Tensors that are no floating-point numbers are left out.
    ///
    /// # Errors
    /// Usage if a file is missing, cut short or has overlapping offsets, if the index names a
    /// tensor that its file does not have, if a name is in two files, or if there is no parameter
    /// at all.
    pub fn open(from: &Path) -> Result<Self> {
        let (paths, named) = find(from)?;
        let files =
            paths.iter().map(|path| TensorSource::open(path)).collect::<Result<Vec<_>>>()?;
        let (mut parameters, mut file_of, mut skipped) = (Vec::new(), Vec::new(), Vec::new());
        for (number, file) in files.iter().enumerate() {
            for name in file.names() {
                if !file.is_float(&name) {
                    skipped.push(name);
                } else if let Some(shape) = file.shape(&name) {
                    parameters.push(Parameter::new(&name, shape.clone()));
                    file_of.push(number);
                }
            }
        }
        let all: HashSet<&str> = names_of(&parameters, &skipped).collect();
        if let Some(missing) = named.keys().find(|name| !all.contains(name.as_str())) {
            return Err(Error::usage("a file does not have a tensor that the index names")
                .with("index", from.display())
                .with("tensor", missing)
                .with("file", &named[missing]));
        }
        let inventory =
            Inventory::new(parameters).map_err(|error| error.with("model", from.display()))?;
        Ok(Self { files, inventory, file_of, skipped })
    }

    /// The model's parameters, in the order of the files.
    pub fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// Names of the tensors that were left out because they are no floating-point numbers.
    pub fn skipped(&self) -> &[String] {
        &self.skipped
    }

    /// The description in the first file.
    pub(super) fn about(&self) -> HashMap<String, String> {
        self.files.first().map(TensorSource::about).unwrap_or_default()
    }

    /// Copies values of a parameter from its element `offset` on, converted to f32, until `out` is
    /// full.
    ///
    /// # Errors
    /// Usage if the file cannot be read.
    pub fn read(&self, param: ParamIndex, offset: u64, out: &mut [f32]) -> Result<()> {
        let name = &self.inventory.parameter(param).name;
        self.files[self.file_of[param.index()]].read(name, offset, out)
    }
}

fn names_of<'a>(
    parameters: &'a [Parameter],
    skipped: &'a [String],
) -> impl Iterator<Item = &'a str> {
    parameters.iter().map(|it| it.name.as_str()).chain(skipped.iter().map(String::as_str))
}

/// The files, each once and sorted by name, and the file of each tensor if there is an index.
fn find(from: &Path) -> Result<(Vec<PathBuf>, BTreeMap<String, String>)> {
    let path = if from.is_dir() {
        let (one, several) = (from.join(MODEL), from.join(format!("{MODEL}{INDEX_ENDING}")));
        if several.exists() && !one.exists() { several } else { one }
    } else {
        from.to_owned()
    };
    if !path.to_string_lossy().ends_with(INDEX_ENDING) {
        return Ok((vec![path], BTreeMap::new()));
    }
    let wrong = |why: String| {
        Error::usage("the index of a model cannot be read")
            .with("path", path.display())
            .because(why)
    };
    let text = std::fs::read_to_string(&path).map_err(|error| wrong(error.to_string()))?;
    let index: Index = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    let mut names: Vec<&String> = index.weight_map.values().collect();
    names.sort_unstable();
    names.dedup();
    if let Some(name) = names.iter().find(|name| name.contains('/')) {
        return Err(wrong(format!("it names `{name}`, which is not beside it")));
    }
    let directory = path.parent().unwrap_or(Path::new(""));
    Ok((names.iter().map(|name| directory.join(name)).collect(), index.weight_map.clone()))
}
