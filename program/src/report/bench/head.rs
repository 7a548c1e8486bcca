//! The head of a benchmark's tables: all that one needs to run it again.

use std::collections::BTreeMap;

use serde_json::Value;

use super::result::BenchResult;
use crate::report::checks::mpi_name;
use crate::report::flat_keys::flat_keys;
use optswap::internals::config::{Config, compress_names};
use optswap::internals::units::counted;

/// Several lines.
pub(super) fn head(result: &BenchResult) -> String {
    let setup = &result.setup;
    let options = &setup.options;
    let mut lines = vec![
        format!(
            "optswap {} ({}): {} parameters, {} on {}, {} of {}, {} of warm-up before",
            result.optswap,
            result.commit,
            result.params,
            counted(result.ranks as u64, "rank"),
            counted(result.nodes.len() as u64, "node"),
            counted(options.repetitions, "repetition"),
            counted(options.steps, "step"),
            options.warmup
        ),
        format!("command: {}", command_line(&setup.command)),
    ];
    let mpi = setup.mpi.as_deref().map_or("without MPI".to_owned(), mpi_name);
    let launched = match &setup.launcher_command {
        Some(command) => command_line(command),
        None => setup.launcher.clone(),
    };
    lines.push(format!("launched: {launched} ({mpi})"));
    lines.extend(drives(result));
    let tensors = setup.config.state_tensors().into_iter();
    let tensors = tensors.map(|it| format!("{} {}", it.name, it.codec.name()));
    lines.push(format!(
        "state: {}; gradients {}; seed {}",
        tensors.collect::<Vec<_>>().join(", "),
        format!("{:?}", options.gradients).to_lowercase(),
        options.seed
    ));
    let pairs = |settings: BTreeMap<String, String>| -> String {
        let pairs = settings.into_iter().map(|(name, value)| format!("{name}={value}"));
        pairs.collect::<Vec<_>>().join(" ")
    };
    let settings = settings(&setup.config);
    let shown = if settings.is_empty() { "none".to_owned() } else { pairs(settings) };
    lines.push(format!("settings other than the defaults: {shown}"));
    if !setup.environment.is_empty() {
        lines.push(format!("environment: {}", pairs(setup.environment.clone())));
    }
    lines.join("\n")
}

/// A line for the nodes that have the same drives.
fn drives(result: &BenchResult) -> Vec<String> {
    let mut alike: BTreeMap<(Vec<&str>, &str), Vec<&str>> = BTreeMap::new();
    for node in &result.nodes {
        let roots = node.drives.iter().filter_map(|drive| drive.details.root.to_str());
        let place = result.places.iter().find(|place| place.host == node.host);
        let named_by = place.map_or("", |place| place.drives_named_by.as_str());
        alike.entry((roots.collect(), named_by)).or_default().push(&node.host);
    }
    let mut lines = Vec::new();
    for ((roots, named_by), hosts) in alike {
        let (hosts, roots) = (compress_names(hosts), compress_names(roots));
        lines.push(format!("drives of {hosts}: {roots} (named by {named_by})"));
    }
    lines
}

/// Keys of the configuration whose values differ from the defaults, without drives and the job's
/// name, which have lines of their own.
fn settings(config: &Config) -> BTreeMap<String, String> {
    let flat = |config: &Config| flat_keys(&serde_json::to_value(config).unwrap_or_default());
    let defaults = flat(&Config::default());
    let is_changed = |key: &String, value: &Value| {
        key != "drives.paths" && key != "job" && defaults.get(key) != Some(value)
    };
    let changed = flat(config).into_iter().filter(|(key, value)| is_changed(key, value));
    changed
        .map(|(key, value)| match value {
            Value::String(text) => (key, text),
            other => (key, other.to_string()),
        })
        .collect()
}

/// The command line as one can paste it into a shell.
fn command_line(words: &[String]) -> String {
    words.iter().map(|word| shell_word(word)).collect::<Vec<_>>().join(" ")
}

fn shell_word(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-./=:,@%+".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_can_be_copied() {
        let words = ["optswap", "bench", "--drives", "/nvme*/me", "--label", "it's", ""];
        let words = words.map(str::to_owned);
        let expected = r"optswap bench --drives '/nvme*/me' --label 'it'\''s' ''";
        assert_eq!(command_line(&words), expected);
    }

    #[test]
    fn only_what_is_no_default_is_shown() {
        let mut config = Config::default();
        assert_eq!(settings(&config).len(), 0);
        config.io.depth = 7;
        assert_eq!(settings(&config), BTreeMap::from([("io.depth".to_owned(), "7".to_owned())]));
    }
}
