//! Safetensors files, made by their published format: length, header, data.

#![allow(dead_code, reason = "every test file uses its own part")]

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

/// A tensor as it lies in a file: its type there, its shape, its bytes.
pub type Tensor = (&'static str, Vec<usize>, Vec<u8>);

/// Values that are exact in every type of 16 bits and more.
pub fn values(seed: usize, count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7 + seed) % 97) as f32 / 32.0 - 1.5).collect()
}

pub fn tensor(dtype: &'static str, shape: &[usize], bytes: impl Into<Vec<u8>>) -> Tensor {
    (dtype, shape.to_vec(), bytes.into())
}

/// These values as F32.
pub fn f32_tensor(shape: &[usize], values: &[f32]) -> Tensor {
    tensor("F32", shape, values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())
}

/// The first of [`values`] as F32.
pub fn f32s(seed: usize, shape: &[usize]) -> Tensor {
    f32_tensor(shape, &values(seed, shape.iter().product()))
}

/// Writes a file; gives its path.
pub fn write(path: &Path, tensors: &[(&str, Tensor)]) -> PathBuf {
    write_with(path, &[], tensors)
}

/// The same with a description.
pub fn write_with(path: &Path, about: &[(&str, &str)], tensors: &[(&str, Tensor)]) -> PathBuf {
    let mut header = Map::new();
    let mut data = Vec::new();
    if !about.is_empty() {
        let about = about.iter().map(|(key, value)| ((*key).to_owned(), json!(value)));
        header.insert("__metadata__".to_owned(), Value::Object(about.collect()));
    }
    for (name, (dtype, shape, bytes)) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        let tensor = json!({"dtype": dtype, "shape": shape, "data_offsets": offsets});
        header.insert((*name).to_owned(), tensor);
        data.extend_from_slice(bytes);
    }
    let header = serde_json::to_vec(&Value::Object(header)).unwrap();
    let length = (header.len() as u64).to_le_bytes();
    std::fs::write(path, [&length[..], &header, &data].concat()).unwrap();
    path.to_owned()
}

/// Writes an index of tensors and the files that they are in; gives its path.
pub fn write_index(folder: &Path, metadata: Value, files: &[(&str, &str)]) -> PathBuf {
    let map: Map<String, Value> =
        files.iter().map(|(name, file)| ((*name).to_owned(), json!(file))).collect();
    let path = folder.join("model.safetensors.index.json");
    let index = json!({"metadata": metadata, "weight_map": map});
    std::fs::write(&path, index.to_string()).unwrap();
    path
}

/// The header and the data of a file.
pub fn parts(path: &Path) -> (Value, Vec<u8>) {
    let bytes = std::fs::read(path).unwrap();
    let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&bytes[8..end]).unwrap(), bytes[end..].to_vec())
}

/// Writes a file of these parts.
pub fn write_parts(path: &Path, header: &Value, data: &[u8]) {
    let header = header.to_string();
    let length = (header.len() as u64).to_le_bytes();
    std::fs::write(path, [&length[..], header.as_bytes(), data].concat()).unwrap();
}
