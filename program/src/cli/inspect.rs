//! `optswap inspect`: what lies in swap directories, parameter by parameter.

use std::path::PathBuf;

use clap::Args;
use wildmatch::WildMatch;

use super::out::to_json;
use optswap::internals::checkpoint::{JobContents, contents_of};
use optswap::internals::error::Result;
use optswap::internals::telemetry::TextTable;
use optswap_args::say;

#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    /// The directories that were given to --drives.
    #[arg(required = true, value_name = "DIR")]
    drives: Vec<PathBuf>,

    /// This job alone.
    #[arg(long, value_name = "NAME")]
    job: Option<String>,

    /// Only parameters whose names match; `*` stands for any characters.
    #[arg(long, value_name = "PATTERN", default_value = "*")]
    parameters: String,

    /// As JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &InspectArgs) -> Result<()> {
    let (mut jobs, findings) = contents_of(&args.drives, args.job.as_deref())?;
    let pattern = WildMatch::new(&args.parameters);
    for job in &mut jobs {
        job.parameters.retain(|parameter| pattern.matches(&parameter.name));
    }
    if args.json {
        say(to_json(&jobs)?)?;
    } else {
        jobs.iter().try_for_each(print_job)?;
    }
    super::maintenance::conclude(&findings)
}

fn print_job(job: &JobContents) -> Result<()> {
    say(format_args!("job {}: {}, step {}", job.job, job.commit, job.attempts))?;
    let shards: Vec<String> = job.shards.iter().map(u32::to_string).collect();
    if job.inventories > 1 {
        say(format_args!("inventory {} of {}", job.inventory, job.inventories))?;
    }
    say(format_args!("shards {} of {}, in:", shards.join(", "), job.shards_total))?;
    job.directories.iter().try_for_each(|path| say(format_args!("  {}", path.display())))?;
    let tensors: Vec<String> =
        job.tensors.iter().map(|(name, codec)| format!("{name} ({codec})")).collect();
    say(format_args!("state tensors: {}", tensors.join(", ")))?;
    let header = ["parameter", "shape", "elements", "updates", "mean", "rms", "min", "max"];
    let moments = job.tensors.iter().skip(1).map(|(name, _)| format!("{name} rms"));
    let header = header.map(str::to_owned).into_iter().chain(moments);
    let mut table = TextTable::with_names(2, header);
    for parameter in &job.parameters {
        let shape: Vec<String> = parameter.shape.iter().map(usize::to_string).collect();
        let mut row = vec![
            parameter.name.clone(),
            shape.join(" x "),
            parameter.elems.to_string(),
            parameter.updates.to_string(),
        ];
        if let [master, moments @ ..] = parameter.tensors.as_slice() {
            row.extend([master.mean, master.rms].map(|value| format!("{value:.4e}")));
            row.extend([master.min, master.max].map(|value| format!("{value:.4e}")));
            row.extend(moments.iter().map(|moment| format!("{:.4e}", moment.rms)));
        }
        table.add_row(row);
    }
    say(table)
}
