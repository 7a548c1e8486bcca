//! What is to be trained: a preset, a number of parameters, a safetensors file or its index, or a
//! list of shapes in JSON. Of safetensors only the heads are read.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::presets::{PRESETS, preset};
use optswap::internals::error::{Error, Result};
use optswap::internals::state::{Inventory, Parameter};
use optswap::internals::units::Elems;

/// A longer head of a safetensors file is taken for damage.
const HEAD_BYTES_MAX: u64 = 256 << 20;

/// A model as far as its optimizer state is concerned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Model {
    /// What it is.
    pub name: String,
    /// Tensors; 0 if only their sum is known.
    pub tensors: u64,
    /// Elements of all of them.
    pub params: u64,
}

impl Model {
    fn of(name: String, parameters: Vec<Parameter>) -> Result<Self> {
        let tensors = parameters.len() as u64;
        Ok(Self { name, tensors, params: Inventory::new(parameters)?.total_elems() })
    }
}

/// Reads a model as the user names it.
///
/// # Errors
/// Usage, if the text names no model, or if a file has another format than it should have.
pub fn read_model(text: &str) -> Result<Model> {
    if let Some((_, what, parameters)) = preset(text) {
        return Model::of((*what).to_owned(), parameters());
    }
    let path = Path::new(text);
    if path.is_file() {
        let in_file = |error: Error| error.with("file", path.display());
        let parameters = read_file(path).map_err(in_file)?;
        return Model::of(text.to_owned(), parameters).map_err(in_file);
    }
    match text.parse::<Elems>() {
        Ok(elems) if elems.0 > 0 && elems.0 < 1 << 48 => {
            Ok(Model { name: format!("{text} parameters"), tensors: 0, params: elems.0 })
        }
        _ => {
            let names = PRESETS.map(|(name, ..)| name);
            Err(Error::usage("this names no model").with("model", text).hint(format!(
                "a preset ({}), a number such as 7G, a .safetensors file or its index, or a JSON \
                 list of names and shapes",
                names.join(", ")
            )))
        }
    }
}

fn read_file(path: &Path) -> Result<Vec<Parameter>> {
    if path.extension().is_some_and(|extension| extension == "safetensors") {
        return read_safetensors(path);
    }
    let text = std::fs::read_to_string(path)
        .map_err(|error| Error::usage("the model cannot be read").because(error))?;
    let value: Value = serde_json::from_str(&text)
        .map_err(|error| Error::usage("the model is no JSON").because(error))?;
    match value.get("weight_map").and_then(Value::as_object) {
        Some(weights) => read_index(path, weights),
        None => read_list(&value),
    }
}

/// The files that an index names lie beside it.
fn read_index(index: &Path, weights: &Map<String, Value>) -> Result<Vec<Parameter>> {
    let files: BTreeSet<&str> = weights.values().filter_map(Value::as_str).collect();
    let mut parameters = Vec::with_capacity(weights.len());
    for file in files {
        let path = index.with_file_name(file);
        let of_file = read_safetensors(&path).map_err(|error| error.with("part", file))?;
        parameters.extend(of_file.into_iter().filter(|it| weights.contains_key(&it.name)));
    }
    if parameters.len() != weights.len() {
        return Err(Error::usage("the index names weights that its files do not have")
            .with("weights", weights.len())
            .with("found", parameters.len()));
    }
    Ok(parameters)
}

fn read_safetensors(path: &Path) -> Result<Vec<Parameter>> {
    #[derive(Deserialize)]
    struct Tensor {
        shape: Vec<usize>,
    }
    let damaged = |why: &str| Error::usage("this is no safetensors file").because(why.to_owned());
    let unreadable =
        |error: std::io::Error| Error::usage("a safetensors file cannot be read").because(error);
    let mut file = File::open(path).map_err(unreadable)?;
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(unreadable)?;
    let length = u64::from_le_bytes(length);
    if length > HEAD_BYTES_MAX {
        return Err(damaged("its head has an impossible length"));
    }
    let mut head = Vec::new();
    file.take(length).read_to_end(&mut head).map_err(unreadable)?;
    let head: Map<String, Value> =
        serde_json::from_slice(&head).map_err(|error| damaged(&error.to_string()))?;
    let tensors = head.into_iter().filter(|(name, _)| name != "__metadata__");
    let mut parameters = Vec::new();
    for (name, value) in tensors {
        let tensor: Tensor =
            serde_json::from_value(value).map_err(|error| damaged(&error.to_string()))?;
        parameters.push(Parameter::new(name, tensor.shape));
    }
    Ok(parameters)
}

/// `[{"name": "w", "shape": [2, 3]}]`, or `{"w": [2, 3]}`, or either below `parameters`.
fn read_list(value: &Value) -> Result<Vec<Parameter>> {
    let wrong = || {
        Error::usage("the model is no list of shapes")
            .hint("write [{\"name\": \"w\", \"shape\": [2, 3]}] or {\"w\": [2, 3]}")
    };
    let value = value.get("parameters").unwrap_or(value);
    let shape = |value: &Value| -> Result<Vec<usize>> {
        serde_json::from_value(value.clone()).map_err(|error| wrong().because(error))
    };
    let mut parameters = Vec::new();
    match value {
        Value::Object(all) => {
            for (name, value) in all {
                parameters.push(Parameter::new(name, shape(value)?));
            }
        }
        Value::Array(all) => {
            for value in all {
                let name = value.get("name").and_then(Value::as_str).ok_or_else(wrong)?;
                let shape = shape(value.get("shape").ok_or_else(wrong)?)?;
                parameters.push(Parameter::new(name, shape));
            }
        }
        _ => return Err(wrong()),
    }
    Ok(parameters)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A safetensors file without data: only its head is read.
    fn head(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
    }

    #[test]
    fn models_are_read_in_every_form() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path.display().to_string()
        };
        let a = head(
            r#"{"__metadata__": {"format": "pt"},
                "a": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}}"#,
        );
        let b = head(r#"{"b": {"dtype": "F32", "shape": [5], "data_offsets": [0, 20]}}"#);
        let (a, _) = (put("a.safetensors", &a), put("b.safetensors", &b));
        let index = put(
            "model.safetensors.index.json",
            br#"{"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}"#,
        );
        let list =
            put("list.json", br#"[{"name": "w", "shape": [4, 4]}, {"name": "s", "shape": []}]"#);
        let map = put("map.json", br#"{"parameters": {"w": [7]}}"#);
        for (name, params, tensors) in [
            (&a, 6, 1),
            (&index, 11, 2),
            (&list, 17, 2),
            (&map, 7, 1),
            (&"7G".to_owned(), 7_000_000_000, 0),
        ] {
            let model = read_model(name).unwrap();
            assert_eq!((model.params, model.tensors), (params, tensors), "{name}");
        }
        let bad = put("bad.safetensors", &head("{"));
        let missing = put("missing.json", br#"{"weight_map": {"c": "c.safetensors"}}"#);
        let lacking = put("lacking.json", br#"{"weight_map": {"c": "a.safetensors"}}"#);
        for (name, words) in [
            (bad, "no safetensors file"),
            (put("huge.safetensors", &[255; 16]), "impossible length"),
            (missing, "c.safetensors"),
            (lacking, "do not have"),
            (put("number.json", b"7"), "no list of shapes"),
            (put("text.json", b"x"), "no JSON"),
            ("llama9".to_owned(), "llama3-405b"),
            ("0".to_owned(), "names no model"),
        ] {
            let error = read_model(&name).unwrap_err();
            assert_eq!(error.exit_code(), 64);
            assert!(error.to_string().contains(words), "{name}: {error}");
        }
    }
}
