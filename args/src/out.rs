//! Printing results. A reader such as `head` may close the pipe early, which is no error.

use std::fmt::Display;
use std::io::{ErrorKind as IoKind, Write};

use optswap::internals::error::{Error, ErrorKind, Result};

/// Prints one text and a line's end to stdout.
///
/// # Errors
/// I/O, except where the reader has closed the pipe.
pub fn say(text: impl Display) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != IoKind::BrokenPipe => {
            Err(Error::new(ErrorKind::Io, "the result cannot be printed").because(error))
        }
        _ => Ok(()),
    }
}
