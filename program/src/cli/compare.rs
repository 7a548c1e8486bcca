//! `optswap compare`: results of several benchmarks side by side.

use std::path::PathBuf;

use clap::Args;

use super::out::to_json;
use crate::report::{compare, compare_table};
use optswap::internals::error::{Error, Result};
use optswap_args::say;

#[derive(Debug, Args)]
pub(super) struct CompareArgs {
    /// Results that `optswap bench --json` wrote.
    #[arg(required = true, num_args = 1.., value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &CompareArgs) -> Result<()> {
    let read = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Error::usage("a result cannot be read").with("file", path.display()).because(error)
        })?;
        Ok((path.display().to_string(), text))
    };
    let files: Vec<(String, String)> = args.files.iter().map(read).collect::<Result<_>>()?;
    let comparison = compare(&files)?;
    if args.json { say(to_json(&comparison)?) } else { say(compare_table(&comparison)) }
}
