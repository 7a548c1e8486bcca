//! `optswap completions`: what a shell needs to complete the program's commands and flags.

use clap::{Args, Command};
use clap_complete::{Shell, generate};

use optswap::internals::error::{Error, Result};
use optswap_args::say;

#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// The shell.
    shell: Shell,
}

pub(super) fn run(args: &CompletionsArgs, mut program: Command) -> Result<()> {
    let name = program.get_name().to_owned();
    let mut script = Vec::new();
    generate(args.shell, &mut program, name, &mut script);
    let script = String::from_utf8(script)
        .map_err(|error| Error::internal("the completions are no text").because(error))?;
    say(script.trim_end())
}
