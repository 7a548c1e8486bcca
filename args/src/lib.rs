//! The command-line flags that optswap's programs share, for training programs of one's own: where
//! and how to swap, in clap's terms.

mod args;
mod out;
mod progress;

pub use args::{DurabilityArg, SwapArgs, parse};
pub use out::say;
pub use progress::bytes_bar;
