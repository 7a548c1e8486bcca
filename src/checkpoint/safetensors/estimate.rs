//! How large a model is, from the headers of its files, or from its index alone where files are
//! missing.

use std::path::Path;

use serde_json::Value;

use super::find::{Index, find};
use super::meaning::{is_packed_name, is_scale_name};
use super::model::ModelFiles;
use crate::error::{Error, Result};
use crate::units::Bytes;

/// How large a model is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelSize {
    /// Parameters; 0 if only the number of their elements is known.
    pub tensors: u64,
    /// Elements of all of them.
    pub elems: u64,
    /// What a person should know of it, a line each.
    pub notes: Vec<String>,
}

/// Finds out how large a model is: its path is one of those that [`ModelFiles::open`] takes. Data
/// is not read, and files that an index names may be missing.
///
/// # Errors
/// Those of [`ModelFiles::open`]; usage if files are missing and the index does not tell how large
/// the model is.
pub fn model_size(from: &Path) -> Result<ModelSize> {
    if let Some(index) = find(from)?.index.filter(|index| !index.missing.is_empty()) {
        return estimate(&index);
    }
    let model = ModelFiles::of_heads(from)?;
    let inventory = model.inventory();
    let tensors = inventory.parameters().len() as u64;
    Ok(ModelSize { tensors, elems: inventory.total_elems(), notes: model.notes() })
}

/// What an index tells of a model whose files are missing.
fn estimate(index: &Index) -> Result<ModelSize> {
    const ELSE: &str =
        "fetch the files that it names, or give the number of parameters, such as 7G";
    let unknown = |why: &str| {
        Err(index.check_fetched().err().map_or_else(
            || Error::internal("no file is missing"),
            |error| error.because(why.to_owned()).hint(ELSE),
        ))
    };
    let names = || index.file_of.keys().map(String::as_str);
    if names().any(is_packed_name) {
        return unknown("its weights are packed, so its size in bytes does not tell their number");
    }
    let number = |key: &str| {
        // Some tools write it as 13476831232.0.
        let value = index.metadata.get(key).and_then(Value::as_f64);
        value.filter(|value| *value >= 1.0 && *value < 2f64.powi(52)).map(|value| value as u64)
    };
    let is_fp8 = names().any(is_scale_name);
    let (elems, how) = match (number("total_parameters"), number("total_size")) {
        (Some(count), _) => (count, "its metadata.total_parameters".to_owned()),
        (None, Some(bytes)) => {
            let (what, elem_bytes) = if is_fp8 { ("fp8", 1) } else { ("16-bit numbers", 2) };
            let size = Bytes(bytes).human();
            (bytes / elem_bytes, format!("its metadata.total_size, {size}, taken for {what}"))
        }
        (None, None) => return unknown("the index does not tell how large the model is"),
    };
    let missing = format!("{} of {} files", index.missing.len(), index.files().len());
    let note = format!("estimated from {how}: {missing} that the index names are missing");
    Ok(ModelSize { tensors: 0, elems, notes: vec![note] })
}
