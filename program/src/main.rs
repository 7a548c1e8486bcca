//! The `optswap` program; see `optswap --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    optswap_cli::cli::run()
}
