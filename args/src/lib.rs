//! The command-line flags that optswap's programs share, for training programs of one's own:
//! [`SwapArgs`] says where and how to swap, and [`main`] starts a rank with it.

mod args;
mod out;
mod progress;
mod start;

pub use args::{DurabilityArg, SwapArgs};
pub use out::say;
pub use progress::bytes_bar;
pub use start::{main, parse};
