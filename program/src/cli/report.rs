//! `optswap report`: results as a page, and on the terminal.

use std::path::PathBuf;

use clap::Args;

use crate::report::{ResultFile, html_page, terminal_summary};
use optswap::internals::error::{Error, ErrorKind, Result};
use optswap_args::say;

#[derive(Debug, Args)]
pub(super) struct ReportArgs {
    /// Results: what `bench --json` wrote, or `result.json` of a report directory.
    #[arg(required = true, value_name = "RESULT.json")]
    results: Vec<PathBuf>,

    /// Where the page goes.
    #[arg(long, short, value_name = "FILE", default_value = "report.html")]
    output: PathBuf,
}

pub(super) fn run(args: &ReportArgs) -> Result<()> {
    let read = args.results.iter().map(|path| ResultFile::read(path));
    let mut results: Vec<ResultFile> = read.collect::<Result<_>>()?;
    // Files of the same name are shown with their directories.
    let names: Vec<String> = results.iter().map(|result| result.name.clone()).collect();
    for (result, path) in results.iter_mut().zip(&args.results) {
        if names.iter().filter(|name| **name == result.name).count() > 1 {
            result.name = path.display().to_string();
        }
    }
    std::fs::write(&args.output, html_page(&results)).map_err(|error| {
        Error::new(ErrorKind::CannotCreate, "the report cannot be written")
            .with("file", args.output.display())
            .because(error)
    })?;
    let summaries: String = results.iter().map(terminal_summary).collect();
    say(format!("{summaries}{}", args.output.display()))
}
