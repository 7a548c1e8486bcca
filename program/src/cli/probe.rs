//! `optswap probe`: what the drives can do.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::out::{to_json, write_to};
use crate::measure::{NodeProbe, ProbeOptions, probe_nodes};
use crate::report::probe_table;
use optswap::internals::config::EngineName;
use optswap::internals::coord::{Communicator, agree};
use optswap::internals::error::{Error, Result};
use optswap::internals::units::Bytes;
use optswap_args::{SwapArgs, say};

#[derive(Debug, Args)]
pub(super) struct ProbeArgs {
    #[command(flatten)]
    pub swap: SwapArgs,

    /// Seconds of each measurement: reading, writing, both; then all drives at once.
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    seconds: f64,

    /// Size of the file on each drive; it has no name and is gone at the end [default: 1GiB, or
    /// half of the free space].
    #[arg(long, value_name = "SIZE")]
    size: Option<Bytes>,

    /// Operations of 1 MiB in flight on each drive.
    #[arg(long, value_name = "N", default_value_t = 32)]
    depth: usize,

    /// Do not keep the profiles in the drives' directories.
    #[arg(long)]
    no_save: bool,

    /// Write the result to this file, as JSON; `-` prints it in place of the table.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    json: Option<PathBuf>,
}

pub(super) fn run(args: &ProbeArgs, comm: &Arc<dyn Communicator>) -> Result<()> {
    let checked = args.options().and_then(|options| Ok((args.swap.resolve()?, options)));
    let (config, mut options) = agree(&**comm, checked)?;
    options.engine = config.io.engine;
    options.allow_filesystems.clone_from(&config.drives.allow_filesystems);
    let nodes = probe_nodes(&**comm, &config.drives.paths, &options)?;
    let printed = if comm.rank().0 == 0 { args.publish(&nodes) } else { Ok(()) };
    agree(&**comm, printed)
}

impl ProbeArgs {
    fn options(&self) -> Result<ProbeOptions> {
        let refuse = |what: &str| Err(Error::usage(what.to_owned()));
        if !(self.seconds > 0.0 && self.seconds <= 600.0) {
            return refuse("--seconds must be above 0 and at most 600");
        }
        if !(1..=1024).contains(&self.depth) {
            return refuse("--depth must be 1 to 1024");
        }
        if self.size.is_some_and(|size| size.0 < 4 << 20) {
            return refuse("--size must be at least 4MiB");
        }
        Ok(ProbeOptions {
            seconds: self.seconds,
            file_bytes: self.size.map(|size| size.0),
            engine: EngineName::Auto,
            depth: self.depth,
            saves: !self.no_save,
            allow_filesystems: Vec::new(),
        })
    }

    fn publish(&self, nodes: &[NodeProbe]) -> Result<()> {
        let json = || to_json(&serde_json::json!({ "schema": 1, "nodes": nodes }));
        match &self.json {
            Some(path) if path.as_os_str() == "-" => say(json()?),
            Some(path) => {
                say(probe_table(nodes))?;
                write_to(path, &json()?)
            }
            None => say(probe_table(nodes)),
        }
    }
}
