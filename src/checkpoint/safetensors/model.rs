//! A model's weights in safetensors files, to begin with as masters: one file, or several with an
//! index.

use std::collections::HashMap;
use std::path::Path;

use super::find::{Found, Index, MODEL, find};
use super::sorted::{Listing, Sorted, Source};
use super::source::TensorSource;
use crate::error::{Error, Result};
use crate::state::Inventory;
use crate::units::{ParamIndex, first_of, printable};

/// The files of a model, open for reading.
pub struct ModelFiles {
    files: Vec<TensorSource>,
    inventory: Inventory,
    /// Where every parameter comes from, in inventory order.
    sources: Vec<Source>,
    skipped: Vec<String>,
    notes: Vec<String>,
    /// What was taken, and the names of the safetensors files beside it.
    taken: String,
    unused: Vec<String>,
}

impl ModelFiles {
    /// Opens one file, or an index (`model.safetensors.index.json`) with all files that it names,
    /// or a directory that holds either; where it holds both, the index decides. Weights of eight
    /// bits are multiplied by the scales that lie beside them. What is no weight is left out:
    /// [`Self::notes`] tells it, and is to be shown to whoever starts the program.
    ///
    /// # Errors
    /// Usage, with the name: if a file is missing, cut short, of another format or has overlapping
    /// offsets; if the index names a tensor that its file does not have; if a tensor is packed, of
    /// a type that is not known, or has a scale of a kind that is not known; if there is no
    /// parameter at all.
    pub fn open(from: &Path) -> Result<Self> {
        let model = Self::of_heads(from)?;
        model.files.iter().try_for_each(TensorSource::check_whole)?;
        Ok(model)
    }

    /// The same by the headers of the files alone, which may lack their data.
    pub(super) fn of_heads(from: &Path) -> Result<Self> {
        let Found { paths, index, unused } = find(from)?;
        if let Some(index) = &index {
            index.check_fetched()?;
        }
        let files =
            paths.iter().map(|path| TensorSource::open(path)).collect::<Result<Vec<_>>>()?;
        let (listing, others) = match &index {
            Some(index) => indexed(&files, index)?,
            None => (files[0].names().into_iter().map(|name| (name, 0)).collect(), Vec::new()),
        };
        let in_model = |error: Error| error.with("model", from.display());
        let mut sorted = Sorted::new(&files, &listing)?;
        let other_names = others.iter().map(|(name, _)| name.as_str()).collect();
        sorted.check_scales(&other_names).map_err(in_model)?;
        let inventory = sorted.inventory().map_err(in_model)?;
        let taken = match &index {
            Some(index) => format!("what the index {} names", index.path.display()),
            None => from.join(MODEL).display().to_string(),
        };
        let mut notes = sorted.notes(&inventory);
        if !others.is_empty() {
            let others = others.iter().map(|(name, file)| format!("{name} in {file}"));
            let others: Vec<String> = others.collect();
            notes.push(format!("left out, not named by the index: {}", first_of(&others)));
        }
        let (skipped, sources) = (sorted.skipped(), sorted.sources);
        Ok(Self { files, inventory, sources, skipped, notes, taken, unused })
    }

    /// The model's parameters, in the order of the files.
    pub fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// Names of the tensors that were left out because they are no weights.
    pub fn skipped(&self) -> &[String] {
        &self.skipped
    }

    /// What a person should know: which files were taken and which were not, which tensors were
    /// left out and why, and which were dequantised. One line each, safe to print.
    pub fn notes(&self) -> Vec<String> {
        self.notes_beside(&[])
    }

    /// The same where these of the files beside it are used by the caller.
    pub(super) fn notes_beside(&self, used: &[String]) -> Vec<String> {
        let unused = self.unused.iter().filter(|name| !used.contains(name));
        let unused: Vec<&String> = unused.collect();
        let taken = format!("taken: {}; beside it, not used: ", printable(&self.taken));
        let taken = (!unused.is_empty()).then(|| taken + &first_of(&unused));
        taken.into_iter().chain(self.notes.iter().cloned()).collect()
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
        let Source { file, scale } = &self.sources[param.index()];
        self.files[*file].read(name, offset, out)?;
        match scale {
            Some((file, scale)) => scale.apply(&self.files[*file], offset, out),
            None => Ok(()),
        }
    }
}

/// The tensors that an index takes from its files, and what else is in which of these.
fn indexed(files: &[TensorSource], index: &Index) -> Result<(Listing, Vec<(String, String)>)> {
    let (mut listing, mut others) = (Vec::new(), Vec::new());
    for (number, file) in files.iter().enumerate() {
        let file_name = file.path().file_name().unwrap_or_default().to_string_lossy();
        for name in file.names() {
            if index.file_of.get(&name).is_some_and(|named| *named == file_name) {
                listing.push((name, number));
            } else {
                others.push((name, file_name.clone().into_owned()));
            }
        }
    }
    if listing.len() == index.file_of.len() {
        return Ok((listing, others));
    }
    let found: HashMap<&str, usize> =
        listing.iter().map(|(name, file)| (name.as_str(), *file)).collect();
    let missing = index.file_of.iter().filter(|(name, _)| !found.contains_key(name.as_str()));
    let names: Vec<String> = missing.map(|(name, file)| format!("{name} in {file}")).collect();
    Err(Error::usage("a file does not have a tensor that the index names")
        .with("index", index.path.display())
        .with("missing", format!("{} of {} tensors", names.len(), index.file_of.len()))
        .with("tensors", first_of(&names)))
}
