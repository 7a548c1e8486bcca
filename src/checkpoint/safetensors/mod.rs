//! Checkpoints as safetensors files, for other programs, and back; models' weights in such files.
//!
//! Format: <https://github.com/huggingface/safetensors>, read and written by the crate of that
//! name; data is streamed here, so that memory holds one piece at a time.

mod estimate;
mod export;
mod find;
mod import;
mod meaning;
mod model;
mod number_formats;
mod other_formats;
mod scale;
mod sorted;
mod source;

use std::path::{Path, PathBuf};

pub use self::estimate::{ModelSize, model_size};
pub use self::export::export_safetensors;
pub use self::import::import_safetensors;
pub use self::model::ModelFiles;
use crate::error::{Error, ErrorKind};
use crate::state::MASTER;

/// Number of elements that are copied at once.
const PIECE_ELEMS: u64 = 1 << 20;

// What the files of an export say of themselves.
const ATTEMPTS: &str = "optswap.attempts";
const UPDATE_COUNTS: &str = "optswap.update_counts";
/// Names of the state tensors, master first.
const STATE_TENSORS: &str = "optswap.state_tensors";
const USER_BLOB: &str = "optswap.user_blob";

/// What an export or import has written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportSummary {
    /// The files or directory.
    pub paths: Vec<PathBuf>,
    /// Parameters.
    pub parameters: usize,
    /// Elements of all parameters.
    pub elems: u64,
    /// Steps attempted.
    pub attempts: u64,
    /// What a person should know of an import, a line each.
    pub notes: Vec<String>,
}

/// The file of a state tensor: the master's is that of a model, those of moments have the moments'
/// names.
fn file_of(directory: &Path, tensor: &str) -> PathBuf {
    if tensor == MASTER { directory.join(find::MODEL) } else { directory.join(file_name(tensor)) }
}

fn file_name(tensor: &str) -> String {
    format!("{tensor}.safetensors")
}

fn cannot_create(path: &Path) -> Error {
    Error::new(ErrorKind::CannotCreate, "a file cannot be written").with("path", path.display())
}
