//! One safetensors file, open for reading: its tensors by name, in pieces, converted to f32.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use crate::error::{Error, Result};

/// The largest header that the format allows.
const HEADER_BYTES_MAX: u64 = 100_000_000;

/// A safetensors file, open for reading.
pub(super) struct TensorSource {
    path: PathBuf,
    file: File,
    metadata: Metadata,
    data_start: u64,
}

impl TensorSource {
    pub fn open(path: &Path) -> Result<Self> {
        let wrong = |why: String| {
            Error::usage("this is no whole safetensors file")
                .with("path", path.display())
                .because(why)
        };
        let io = |error: std::io::Error| wrong(error.to_string());
        let file = File::open(path).map_err(io)?;
        let file_bytes = file.metadata().map_err(io)?.len();
        let mut length = [0u8; 8];
        file.read_exact_at(&mut length, 0).map_err(io)?;
        let header_bytes = u64::from_le_bytes(length);
        if header_bytes > HEADER_BYTES_MAX.min(file_bytes.saturating_sub(8)) {
            return Err(wrong(format!("its header claims {header_bytes} bytes")));
        }
        let mut header = vec![0; header_bytes as usize];
        file.read_exact_at(&mut header, 8).map_err(io)?;
        // The crate checks offsets, overlaps and sizes as it reads.
        let metadata: Metadata =
            serde_json::from_slice(&header).map_err(|error| wrong(error.to_string()))?;
        let data_start = 8 + header_bytes;
        let needed = data_start.checked_add(metadata.data_len() as u64);
        if needed != Some(file_bytes) {
            let data_bytes = metadata.data_len();
            return Err(wrong(format!("{data_bytes} bytes of data in a file of {file_bytes}")));
        }
        Ok(Self { path: path.to_owned(), file, metadata, data_start })
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

    /// The shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<&Vec<usize>> {
        self.metadata.info(name).map(|info| &info.shape)
    }

    /// Whether a tensor holds floating-point numbers that can be widened to f32.
    pub fn is_float(&self, name: &str) -> bool {
        self.metadata.info(name).is_some_and(|info| elem_bytes(info.dtype).is_some())
    }

    /// Copies values of one tensor from `offset` on, widened to f32.
    pub fn read(&self, name: &str, offset: u64, out: &mut [f32]) -> Result<()> {
        let wrong = |why: String| {
            Error::usage("a tensor cannot be read")
                .with("path", self.path.display())
                .with("tensor", name)
                .because(why)
        };
        let info = self.metadata.info(name).ok_or_else(|| wrong("it is not there".into()))?;
        let elem_bytes = elem_bytes(info.dtype).ok_or_else(|| {
            wrong(format!("its type is {:?}, not a floating-point one that is known", info.dtype))
        })?;
        let mut bytes = vec![0u8; out.len() * elem_bytes];
        let at = self.data_start + info.data_offsets.0 as u64 + offset * elem_bytes as u64;
        self.file.read_exact_at(&mut bytes, at).map_err(|error| wrong(error.to_string()))?;
        for (out, value) in out.iter_mut().zip(bytes.chunks_exact(elem_bytes)) {
            *out = match (info.dtype, value) {
                (Dtype::F32, [a, b, c, d]) => f32::from_le_bytes([*a, *b, *c, *d]),
                (Dtype::BF16, [a, b]) => bf16::from_le_bytes([*a, *b]).to_f32(),
                (Dtype::F16, [a, b]) => f16::from_le_bytes([*a, *b]).to_f32(),
                // The upper byte of an f16.
                (Dtype::F8_E5M2, [a]) => f16::from_le_bytes([0, *a]).to_f32(),
                (Dtype::F8_E4M3, [a]) => f8_e4m3(*a),
                (_, wide) => f64::from_le_bytes(wide.try_into().unwrap_or_default()) as f32,
            };
        }
        Ok(())
    }
}

/// Bytes of an element of a type that can be widened to f32.
fn elem_bytes(dtype: Dtype) -> Option<usize> {
    match dtype {
        Dtype::F64 => Some(8),
        Dtype::F32 => Some(4),
        Dtype::BF16 | Dtype::F16 => Some(2),
        Dtype::F8_E5M2 | Dtype::F8_E4M3 => Some(1),
        _ => None,
    }
}

/// FP8 E4M3 (arXiv 2209.05433): four bits of exponent, bias 7, no infinities.
fn f8_e4m3(bits: u8) -> f32 {
    let sign = if bits & 0x80 == 0 { 1.0 } else { -1.0 };
    let (exponent, fraction) = (i32::from(bits >> 3 & 0xf), f32::from(bits & 7) / 8.0);
    match (exponent, bits & 7) {
        (15, 7) => f32::NAN,
        (0, _) => sign * fraction * 2f32.powi(-6),
        _ => sign * (1.0 + fraction) * 2f32.powi(exponent - 7),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_floats_widen_exactly() {
        assert_eq!(f8_e4m3(0x7e), 448.0);
        assert_eq!(f8_e4m3(0x01), 2f32.powi(-9));
        assert_eq!(f8_e4m3(0xb8), -1.0);
        assert!(f8_e4m3(0x7f).is_nan());
        assert_eq!(f16::from_le_bytes([0, 0x7b]).to_f32(), 57344.0);
    }
}
