//! `optswap man`: a man page for the program and for each of its commands.

use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Command};
use clap_mangen::Man;

use optswap::internals::error::{Error, ErrorKind, Result};
use optswap_args::say;

#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// Where the pages go, such as ~/.local/share/man/man1; created if it is missing.
    dir: PathBuf,
}

pub(super) fn run(args: &ManArgs, program: Command) -> Result<()> {
    // A page names the version alone, so that it is the same wherever it was made.
    let mut program = program.long_version(None).disable_help_subcommand(true);
    program.build();
    std::fs::create_dir_all(&args.dir).and_then(|()| write_pages(&program, &args.dir)).map_err(
        |error| {
            Error::new(ErrorKind::CannotCreate, "the man pages cannot be written")
                .with("directory", args.dir.display())
                .because(error)
        },
    )?;
    say(format_args!("written: {}", args.dir.display()))
}

/// The page of a command, and those of the commands below it.
fn write_pages(command: &Command, dir: &Path) -> io::Result<()> {
    let source = concat!("optswap ", env!("CARGO_PKG_VERSION"));
    Man::new(command.clone()).source(source).generate_to(dir)?;
    command.get_subcommands().try_for_each(|below| write_pages(below, dir))
}
