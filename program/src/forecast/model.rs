//! What is to be trained: a preset, a number of parameters, a safetensors file or its index, or a
//! list of shapes in JSON. Of safetensors only the heads are read.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::presets::{PRESETS, preset};
use optswap::internals::checkpoint::{ModelSize, model_size};
use optswap::internals::error::{Error, Result};
use optswap::internals::state::{Inventory, Parameter};
use optswap::internals::units::Elems;

/// A model as far as its optimizer state is concerned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Model {
    /// What it is.
    pub name: String,
    /// Tensors; 0 if only their sum is known.
    pub tensors: u64,
    /// Elements of all of them.
    pub params: u64,
    /// What a person should know of how this was found out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

impl Model {
    fn of(name: String, parameters: Vec<Parameter>) -> Result<Self> {
        let tensors = parameters.len() as u64;
        let params = Inventory::new(parameters)?.total_elems();
        Ok(Self { name, tensors, params, notes: Vec::new() })
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
    if path.exists() {
        return read_path(path, text);
    }
    match text.parse::<Elems>() {
        Ok(elems) if elems.0 > 0 && elems.0 < 1 << 48 => {
            let name = format!("{text} parameters");
            Ok(Model { name, tensors: 0, params: elems.0, notes: Vec::new() })
        }
        _ => {
            let names = PRESETS.map(|(name, ..)| name);
            Err(Error::usage("this names no model and no file").with("model", text).hint(format!(
                "a preset ({}), a number such as 7G, a .safetensors file, its index or a directory \
                 with either, or a JSON list of names and shapes",
                names.join(", ")
            )))
        }
    }
}

/// A list of shapes in JSON, or else a model's own files.
fn read_path(path: &Path, text: &str) -> Result<Model> {
    let in_file = |error: Error| error.with("file", path.display());
    if path.is_file() && path.extension().is_some_and(|extension| extension == "json") {
        let value = read_json(path).map_err(in_file)?;
        if value.get("weight_map").is_none() {
            let parameters = read_list(&value).map_err(in_file)?;
            return Model::of(text.to_owned(), parameters).map_err(in_file);
        }
    }
    let ModelSize { tensors, elems, notes } = model_size(path)?;
    Ok(Model { name: text.to_owned(), tensors, params: elems, notes })
}

fn read_json(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Error::usage("the model cannot be read").because(error))?;
    serde_json::from_str(&text).map_err(|error| Error::usage("the model is no JSON").because(error))
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
            (bad, "no whole safetensors file"),
            (put("huge.safetensors", &[255; 16]), "18446744073709551615 bytes"),
            (missing, "c.safetensors"),
            (lacking, "does not have a tensor"),
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
