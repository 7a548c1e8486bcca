//! `optswap config explain`: what a configuration amounts to.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use optswap::internals::config::{EffectiveValue, Sourced};
use optswap::internals::error::Result;
use optswap::internals::telemetry::TextTable;
use optswap_args::say;

#[derive(Debug, Args)]
pub(super) struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print every value that counts and where it comes from; then what was not taken over, and
    /// why.
    Explain(ExplainArgs),
}

#[derive(Debug, Args)]
struct ExplainArgs {
    /// A configuration in TOML, or DeepSpeed's in JSON or HJSON.
    file: PathBuf,

    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &ConfigArgs) -> Result<()> {
    let ConfigCommand::Explain(ExplainArgs { file, json }) = &args.command;
    let sourced = Sourced::read(file)?;
    let values = sourced.values()?;
    if *json {
        let value = json!({"file": file, "values": values, "notes": sourced.notes});
        return say(format_args!("{value:#}"));
    }
    let name = file.file_name().unwrap_or(file.as_os_str()).to_string_lossy();
    let mut table = TextTable::of_words(["key", "value", "origin"]);
    for EffectiveValue { key, value, origin } in values {
        let origin = origin.map_or("default".to_owned(), |origin| format!("{name}: {origin}"));
        table.add_row([key, shown(&value), origin]);
    }
    say(table)?;
    sourced.notes.iter().try_for_each(say)
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        value => value.to_string(),
    }
}
