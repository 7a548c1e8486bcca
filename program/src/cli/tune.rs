//! `optswap tune`: settings for the drives at hand.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::out::{to_json, write_to};
use crate::measure::{Tuning, tune};
use crate::report::{tune_table, tuned_config};
use optswap::internals::coord::{Communicator, agree};
use optswap::internals::error::{Error, Result};
use optswap_args::{SwapArgs, say};

#[derive(Debug, Args)]
pub(super) struct TuneArgs {
    #[command(flatten)]
    pub swap: SwapArgs,

    /// Seconds that tuning may take, about.
    #[arg(long, value_name = "SECONDS", default_value_t = 50.0)]
    seconds: f64,

    /// Write the configuration to this file; without it, it is printed.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Write what was tried and found to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(super) fn run(args: &TuneArgs, comm: &Arc<dyn Communicator>) -> Result<()> {
    let checked = args.check().and_then(|()| args.swap.resolve());
    let config = agree(&**comm, checked)?;
    let tuning = tune(comm, &config, args.seconds)?;
    let done = if comm.rank().0 == 0 {
        args.swap.named_drives().and_then(|drives| args.publish(&tuning, &drives))
    } else {
        Ok(())
    };
    agree(&**comm, done)
}

impl TuneArgs {
    fn check(&self) -> Result<()> {
        if self.seconds > 0.0 && self.seconds <= 3600.0 {
            Ok(())
        } else {
            Err(Error::usage("--seconds must be above 0 and at most 3600"))
        }
    }

    fn publish(&self, tuning: &Tuning, drives: &[PathBuf]) -> Result<()> {
        let config = tuned_config(tuning, drives)?;
        if let Some(path) = &self.output {
            write_to(path, &config)?;
        }
        if let Some(path) = &self.json {
            write_to(path, &to_json(tuning)?)?;
        }
        say(tune_table(tuning))?;
        match &self.output {
            Some(path) => say(format_args!("written: {}", path.display())),
            None => say(config),
        }
    }
}
