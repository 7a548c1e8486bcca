//! Strict reading: an unknown key is an error that names the most similar known one.

use std::path::PathBuf;

use toml::{Table, Value};

use super::{Config, FaultConfig, FaultKind, GroupConfig};
use crate::error::{Error, Result};
use crate::state::{OptimizerSpec, StateTensorSpec};

/// Reads a configuration; ranges are not checked yet.
pub(super) fn parse(text: &str) -> Result<Config> {
    let wrong = |error: toml::de::Error| {
        Error::usage("the configuration is wrong").because(error.to_string().trim_end())
    };
    let table: Table = toml::from_str(text).map_err(wrong)?;
    check_keys("", &table, &known_keys()?)?;
    toml::from_str(text).map_err(wrong)
}

/// A configuration in which every key appears.
fn known_keys() -> Result<Table> {
    let mut all = Config::default();
    all.optimizer.groups.push(GroupConfig {
        names: vec![String::new()],
        lr: Some(0.0),
        betas: Some([0.0; 2]),
        eps: Some(0.0),
        weight_decay: Some(0.0),
    });
    all.optimizer.own = Some(OptimizerSpec::own("", [StateTensorSpec::new("", 0.0)]));
    all.checkpoint.dir = Some(PathBuf::new());
    all.report.dir = Some(PathBuf::new());
    all.report.prometheus_dir = Some(PathBuf::new());
    all.report.log_dir = Some(PathBuf::new());
    all.faults.push(FaultConfig {
        one_in: Some(1),
        drive: Some(0),
        until: Some(0),
        ..FaultConfig::at(0, 0, FaultKind::Eio)
    });
    Table::try_from(&all).map_err(|error| Error::internal("no key is known").because(error))
}

/// Checks that `all`, in which every key appears, has every given key in the same place.
///
/// # Errors
/// Usage, naming the first unknown key and a similar known one.
pub(super) fn check_keys(section: &str, given: &Table, all: &Table) -> Result<()> {
    check_section(section, given, all, all)
}

fn check_section(section: &str, given: &Table, known: &Table, all: &Table) -> Result<()> {
    for (key, value) in given {
        let path = join(section, key);
        match (value, known.get(key)) {
            (_, None) => return Err(unknown(section, key, known, all)),
            (Value::Table(given), Some(Value::Table(known))) => {
                check_section(&path, given, known, all)?;
            }
            (Value::Array(entries), Some(Value::Array(samples))) => {
                let sample = samples.first().and_then(Value::as_table);
                for entry in entries.iter().filter_map(Value::as_table) {
                    check_section(&path, entry, sample.unwrap_or(&Table::new()), all)?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn join(section: &str, key: &str) -> String {
    if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") }
}

fn unknown(section: &str, key: &str, known: &Table, all: &Table) -> Error {
    let error = Error::usage(format!("unknown key `{}`", join(section, key)));
    let here = known.keys().map(|name| join(section, name)).collect();
    let nearest = most_similar(key, here).or_else(|| most_similar(key, all_paths("", all)));
    match nearest {
        Some(path) => error.hint(format!("did you mean `{path}`?")),
        None => error
            .hint(format!("known here: {}", known.keys().cloned().collect::<Vec<_>>().join(", "))),
    }
}

/// The path whose last key is the most similar to `key`, if one is similar at all.
fn most_similar(key: &str, paths: Vec<String>) -> Option<String> {
    let similarity_of = |path: &String| similarity(key, last(path));
    let similar = paths.into_iter().filter(|path| similarity_of(path) > 0.75);
    similar.max_by(|a, b| similarity_of(a).total_cmp(&similarity_of(b)))
}

/// From 0 to 1, which is also that of a key that contains the known name.
fn similarity(key: &str, name: &str) -> f64 {
    if key.contains(name) { 1.0 } else { strsim::jaro_winkler(key, name) }
}

fn last(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

fn all_paths(section: &str, table: &Table) -> Vec<String> {
    let mut paths = Vec::new();
    for (key, value) in table {
        let path = join(section, key);
        if let Value::Table(inner) = value {
            paths.extend(all_paths(&path, inner));
        }
        paths.push(path);
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_name_the_nearest_known_one() {
        for (text, words) in [
            ("[swap]\nmemory_bugdet = 1", "did you mean `swap.memory_budget`?"),
            ("memory_budget = 1", "did you mean `swap.memory_budget`?"),
            ("[io]\nqueue_depth = 8", "did you mean `io.depth`?"),
            ("[drivers]\npaths = []", "did you mean `drives`?"),
            ("[[optimizer.groups]]\nname = []", "did you mean `optimizer.groups.names`?"),
            ("[timeouts]\nxyzzy = 1", "known here: grace_period, io_timeout"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.to_string().contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn keys_without_a_default_are_known() {
        let text = "[optimizer.own]\nname = \"a\"\nstate = [{ name = \"b\" }]\n\
                    [checkpoint]\ndir = \"/c\"\n\
                    [report]\ndir = \"/d\"\nprometheus_dir = \"/e\"\nlog_dir = \"/f\"";
        assert_eq!(parse(text).unwrap().report.log_dir, Some(PathBuf::from("/f")));
        let wrong = "[optimizer.own]\nname = \"a\"\nstate = [{ nam = \"b\" }]";
        assert!(parse(wrong).unwrap_err().to_string().contains("optimizer.own.state.name"));
    }

    #[test]
    fn wrong_types_and_syntax_say_where() {
        for text in ["[io]\ndepth = \"many\"", "[io", "[swap]\nmemory_budget = true"] {
            assert!(parse(text).unwrap_err().to_string().contains("line"), "{text}");
        }
    }
}
