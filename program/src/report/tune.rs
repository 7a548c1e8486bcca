//! What tuning tried and found, for people, and the configuration that comes of it.

use std::path::PathBuf;

use crate::measure::Tuning;
use optswap::internals::config::{Config, DrivesConfig};
use optswap::internals::error::{Error, Result};
use optswap::internals::telemetry::{OverRanks, TextTable, median};
use optswap::internals::units::{Bytes, Elems, counted};

/// What was tried, and what it gains.
pub fn tune_table(tuning: &Tuning) -> String {
    let mut table = TextTable::of_numbers(["chunk", "depth", "stripe unit", "GB/s", ""]);
    let best = tuning.best.map(|trial| trial.setting);
    for trial in &tuning.trials {
        let setting = trial.setting;
        let mark = match (setting == tuning.before, Some(setting) == best) {
            (true, true) => "as before, best",
            (true, false) => "as before",
            (false, true) => "best",
            (false, false) => "",
        };
        table.add_row([
            Elems(setting.chunk_elems).to_string(),
            setting.depth.to_string(),
            Bytes(setting.stripe_unit).to_string(),
            format!("{:.3}", trial.bytes_per_s / 1e9),
            mark.to_owned(),
        ]);
    }
    let weights = if tuning.weights.is_empty() {
        "weights: the drives are alike".to_owned()
    } else {
        format!("weights: {:?}", tuning.weights)
    };
    let over = OverRanks::of(&tuning.gains);
    let pairs = counted(tuning.gains.len() as u64, "pair");
    let gain = match (over, tuning.is_gain) {
        (None, _) => "gain: nothing was better than what is set".to_owned(),
        (Some(over), is_gain) => {
            let figures = format!(
                "{:.3} times as fast, from {:.3} to {:.3} in {pairs} of steps",
                median(&tuning.gains),
                over.min,
                over.max
            );
            if is_gain {
                format!("gain: {figures}")
            } else {
                format!("gain: none that every pair shows ({figures}); nothing is changed")
            }
        }
    };
    let seconds = tuning.seconds;
    format!(
        "{table}\n{weights}\n{gain}\n{} in {seconds:.0} s",
        counted(tuning.trials.len() as u64, "setting")
    )
}

/// The configuration as a file, which reads back as it is. `drives` are those that the user named;
/// where a site or the environment did, every node goes on asking them.
///
/// # Errors
/// Internal, if it does not.
pub fn tuned_config(tuning: &Tuning, drives: &[PathBuf]) -> Result<String> {
    let mut config = tuning.config.clone();
    config.drives.paths = drives.to_vec();
    // What is no key of the file.
    let none = DrivesConfig::default();
    config.drives.named_by = none.named_by;
    config.drives.expected_gb_per_s = none.expected_gb_per_s;
    let text = toml::to_string(&config)
        .map_err(|error| Error::internal("the configuration cannot be written").because(error))?;
    if Config::parse(&text)? == config {
        Ok(format!("# Written by optswap tune.\n{}", text.trim_end()))
    } else {
        Err(Error::internal("the configuration does not read back as it was written"))
    }
}
