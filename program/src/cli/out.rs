//! Results for files and programs.

use std::path::Path;

use serde::Serialize;

use optswap::internals::error::{Error, ErrorKind, Result};
use optswap_args::say;

/// Writes a result to a file; `-` is stdout.
///
/// # Errors
/// Cannot create, if the file cannot be written; I/O, if stdout cannot.
pub(super) fn write_to(path: &Path, text: &str) -> Result<()> {
    if path.as_os_str() == "-" {
        return say(text);
    }
    std::fs::write(path, format!("{text}\n")).map_err(|error| {
        Error::new(ErrorKind::CannotCreate, "the result cannot be written")
            .with("file", path.display())
            .because(error)
    })
}

/// A value as JSON for people and programs.
///
/// # Errors
/// Internal, for values that are no JSON.
pub(super) fn to_json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string_pretty(value)
        .map_err(|error| Error::internal("the result is no JSON").because(error))
}
