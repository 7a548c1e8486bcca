//! A configuration together with the origin of every value.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::deepspeed::points_to_deepspeed;
use super::{Config, parse_deepspeed, read_text};
use crate::error::{Error, Result};

/// A configuration together with where its values come from.
#[derive(Clone, Debug, PartialEq)]
pub struct Sourced {
    /// The configuration, checked.
    pub config: Config,
    /// For each of our keys that the file sets, such as `io.depth`, the key of the file. Other keys
    /// have their defaults.
    pub origins: BTreeMap<String, String>,
    /// Keys of the file that were not taken over unchanged, and why.
    pub notes: Vec<Note>,
}

/// A note about keys of a file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Note {
    /// The keys.
    pub keys: Vec<String>,
    /// What they mean here, and why.
    pub text: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.keys.join(", "), self.text)
    }
}

/// One value of the configuration that is in effect.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EffectiveValue {
    /// Our key, such as `io.depth`.
    pub key: String,
    /// The value; null for none.
    pub value: Value,
    /// The key of the file that it comes from; `None` for a default.
    pub origin: Option<String>,
}

impl Sourced {
    /// Reads a file in TOML, or one of DeepSpeed's in JSON or HJSON.
    ///
    /// # Errors
    /// Usage errors that name the file and the key, if it cannot be read, has an unknown key, or
    /// has a value that is out of range.
    pub fn read(path: &Path) -> Result<Self> {
        let text = read_text(path)?;
        let result = if is_deepspeed(path, &text) {
            parse_deepspeed(&text)
        } else {
            points_to_deepspeed(&text).map_or_else(|| Self::toml(&text), Err)
        };
        result.map_err(|error| error.with("file", path.display()))
    }

    fn toml(text: &str) -> Result<Self> {
        let config = Config::parse(text)?;
        let table: toml::Table = toml::from_str(text)
            .map_err(|error| Error::internal("TOML read twice differs").because(error))?;
        let mut origins = BTreeMap::new();
        for (key, value) in &table {
            match value.as_table() {
                Some(section) => {
                    origins.extend(section.keys().map(|inner| format!("{key}.{inner}")).map(same));
                }
                None => origins.extend([same(key.clone())]),
            }
        }
        Ok(Self { config, origins, notes: Vec::new() })
    }

    /// Every value of the configuration, by key.
    ///
    /// # Errors
    /// Internal if the configuration cannot be written as JSON, which would be a bug.
    pub fn values(&self) -> Result<Vec<EffectiveValue>> {
        let whole = serde_json::to_value(&self.config)
            .map_err(|error| Error::internal("a configuration is no JSON").because(error))?;
        let mut values = Vec::new();
        let mut add = |key: String, value: &Value| {
            let origin = self.origins.get(&key).cloned();
            values.push(EffectiveValue { key, value: value.clone(), origin });
        };
        for (key, value) in whole.as_object().into_iter().flatten() {
            match value.as_object() {
                Some(section) => {
                    section.iter().for_each(|(name, value)| add(format!("{key}.{name}"), value));
                }
                None => add(key.clone(), value),
            }
        }
        Ok(values)
    }
}

fn same(key: String) -> (String, String) {
    (key.clone(), key)
}

/// Whether a file is DeepSpeed's and not TOML, which never begins with a brace.
fn is_deepspeed(path: &Path, text: &str) -> bool {
    let is_comment = |line: &&str| line.is_empty() || line.starts_with(['#', '/', '*']);
    let first = text.lines().map(str::trim).find(|line| !is_comment(line));
    let endings = ["json", "hjson", "jsonc", "json5"];
    first.is_some_and(|line| line.starts_with('{'))
        || path.extension().is_some_and(|ending| endings.iter().any(|known| ending == *known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_there_and_knows_where_it_comes_from() {
        let text = "job = \"x\"\n[io]\ndepth = 8\n[[optimizer.groups]]\nnames = [\"*.bias\"]";
        let values = Sourced::toml(text).unwrap().values().unwrap();
        let origin = |key: &str| {
            let value = values.iter().find(|value| value.key == key);
            value.unwrap_or_else(|| panic!("{key} is missing")).origin.as_deref()
        };
        assert_eq!(origin("job"), Some("job"));
        assert_eq!(origin("io.depth"), Some("io.depth"));
        assert_eq!(origin("optimizer.groups"), Some("optimizer.groups"));
        assert_eq!((origin("io.engine"), origin("checkpoint.dir")), (None, None));
    }

    #[test]
    fn deepspeeds_files_and_toml_are_recognised() {
        let is = |path: &str, text: &str| is_deepspeed(Path::new(path), text);
        assert!(is("x", " \n{}") && is("x.json", "") && is("x.hjson", "aio: {}"));
        assert!(is("x", "// ours\n/* of\n * two */\n# or\n{}"));
        assert!(!is("x", "[io]") && !is("x.toml", "") && !is("x", "# {\n[io]"));
    }
}
