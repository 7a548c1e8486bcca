//! One safetensors file, open for reading: its tensors by name, in pieces, converted to f32.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::Value;

use super::number_formats::{elem_bytes, widen};
use super::other_formats::{FIRST_BYTES, is_lfs_pointer, recognise};
use crate::error::{Error, Result};
use crate::units::printable;

/// The largest header that the format allows.
const HEADER_BYTES_MAX: u64 = 100_000_000;

/// A safetensors file, open for reading.
pub(super) struct TensorSource {
    path: PathBuf,
    file: File,
    file_bytes: u64,
    metadata: Metadata,
    data_start: u64,
}

impl TensorSource {
    /// Opens a file and reads its header alone: [`Self::check_whole`] compares it with the data.
    pub fn open(path: &Path) -> Result<Self> {
        let io = |error: std::io::Error| no_source(path, error.to_string());
        // Opening a pipe would wait for somebody who writes to it.
        let found = std::fs::metadata(path).map_err(io)?;
        if !found.is_file() {
            let what = if found.is_dir() { "a directory" } else { "no regular file" };
            return Err(no_source(path, format!("it is {what}")));
        }
        let file = File::open(path).map_err(io)?;
        let file_bytes = found.len();
        let mut first = vec![0; FIRST_BYTES.min(file_bytes as usize)];
        file.read_exact_at(&mut first, 0).map_err(io)?;
        let header_bytes = match first.first_chunk() {
            Some(length) => u64::from_le_bytes(*length),
            None => 0,
        };
        if header_bytes < 2 || header_bytes > HEADER_BYTES_MAX.min(file_bytes.saturating_sub(8)) {
            return Err(headless(path, &first, file_bytes, header_bytes));
        }
        let mut header = vec![0; header_bytes as usize];
        file.read_exact_at(&mut header, 8).map_err(io)?;
        // The crate checks offsets, overlaps and sizes as it reads.
        let metadata = serde_json::from_slice(&header)
            .map_err(|error| bad_header(path, &first, &header, &error.to_string()))?;
        let data_start = 8 + header_bytes;
        Ok(Self { path: path.to_owned(), file, file_bytes, metadata, data_start })
    }

    /// Checks that the file has all the data that its header describes, and nothing else.
    pub fn check_whole(&self) -> Result<()> {
        let data_bytes = self.metadata.data_len() as u64;
        let there = self.file_bytes - self.data_start;
        if data_bytes == there {
            return Ok(());
        }
        let why = format!("its header describes {data_bytes} bytes of data, and {there} are there");
        let wrong = no_source(&self.path, why);
        let cut = "it is cut short, as by a download that has not finished: fetch it again";
        Err(if there < data_bytes { wrong.hint(cut) } else { wrong })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's own description.
    pub fn about(&self) -> HashMap<String, String> {
        self.metadata.metadata().clone().unwrap_or_default()
    }

    /// Names of its tensors, in the order of their data.
    pub fn names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }

    /// Type and shape of a tensor.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.metadata.info(name)
    }

    /// Copies values of one tensor from `offset` on, widened to f32.
    pub fn read(&self, name: &str, offset: u64, out: &mut [f32]) -> Result<()> {
        let wrong = |why: String| {
            Error::usage("a tensor cannot be read")
                .with("path", self.path.display())
                .with("tensor", name)
                .because(why)
        };
        let info = self.info(name).ok_or_else(|| wrong("it is not there".into()))?;
        let elem_bytes = elem_bytes(info.dtype).ok_or_else(|| {
            wrong(format!("its type is {}, not a floating-point one that is known", info.dtype))
        })?;
        let mut bytes = vec![0u8; out.len() * elem_bytes];
        let at = self.data_start + info.data_offsets.0 as u64 + offset * elem_bytes as u64;
        self.file.read_exact_at(&mut bytes, at).map_err(|error| wrong(error.to_string()))?;
        widen(info.dtype, &bytes, out);
        Ok(())
    }
}

/// Whether a file is there, and not merely a pointer of git-lfs that stands for it.
pub(super) fn is_fetched(path: &Path) -> bool {
    let mut first = [0; 64];
    let file = path.is_file().then(|| File::open(path).ok()).flatten();
    file.is_some_and(|file| {
        let read = file.read_at(&mut first, 0).unwrap_or(0);
        !is_lfs_pointer(&first[..read])
    })
}

fn no_source(path: &Path, why: String) -> Error {
    Error::usage("this is no whole safetensors file").with("path", path.display()).because(why)
}

/// A file that does not begin with the length of a header.
fn headless(path: &Path, first: &[u8], file_bytes: u64, header_bytes: u64) -> Error {
    // No text and no other format begins with a length that a header may have.
    let is_length = (2..=HEADER_BYTES_MAX).contains(&header_bytes);
    if let Some(other) = recognise(first).filter(|_| !is_length) {
        return no_source(path, other.what).hint(other.hint);
    }
    if is_length || first.len() < 8 {
        let why = format!("it ends after {file_bytes} bytes, before its header does");
        return no_source(path, why).hint("it is cut short: fetch it again");
    }
    no_source(path, format!("its header would have {header_bytes} bytes"))
}

/// A header that is not what it should be; a type that is not known is named with its tensor.
fn bad_header(path: &Path, first: &[u8], header: &[u8], why: &str) -> Error {
    let tensors: BTreeMap<String, Value> = serde_json::from_slice(header).unwrap_or_default();
    let unknown = tensors.iter().find_map(|(name, tensor)| {
        let dtype = tensor.get("dtype")?;
        serde_json::from_value::<Dtype>(dtype.clone()).is_err().then_some((name, dtype))
    });
    match unknown {
        Some((name, dtype)) => Error::usage("a tensor has a type that is not known")
            .with("path", path.display())
            .with("tensor", name)
            .with("type", dtype)
            .hint("convert the model to f32, bf16 or f16 with the tools of its framework"),
        None => match recognise(first).filter(|_| !header.starts_with(b"{")) {
            Some(other) => no_source(path, other.what).hint(other.hint),
            None => no_source(path, format!("its header: {}", printable(why))),
        },
    }
}
