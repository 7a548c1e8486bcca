//! Printing results. Whoever reads them may have seen enough: a closed pipe is no error.

use std::fmt::Display;
use std::io::{ErrorKind as IoKind, Write};

use crate::error::{Error, ErrorKind, Result};

/// Prints one text and a line's end to stdout.
///
/// # Errors
/// I/O, unless nobody reads any more.
pub fn say(text: impl Display) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != IoKind::BrokenPipe => {
            Err(Error::new(ErrorKind::Io, "the result cannot be printed").because(error))
        }
        _ => Ok(()),
    }
}

/// Writes a result to a file; `-` is stdout.
///
/// # Errors
/// Cannot create; as [`say`].
pub(super) fn write_to(path: &std::path::Path, text: &str) -> Result<()> {
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
pub(super) fn to_json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string_pretty(value)
        .map_err(|error| Error::internal("the result is no JSON").because(error))
}
