//! What all ranks must have alike: everything that decides what a step does to the state, and which
//! collectives ranks call when. The rest may differ by node: where its drives are, how much memory
//! there is, how long somebody waits.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Config;
use crate::error::{Error, Result};

/// Sections that may differ by rank.
const OF_A_NODE: [&str; 6] = ["drives", "faults", "io", "report", "swap", "timeouts"];

/// Keys of those sections that must not.
const SHARED_ALL_THE_SAME: [&str; 1] = ["report.trace_steps"];

impl Config {
    /// The values that all ranks must have alike, by key, as JSON.
    ///
    /// # Errors
    /// Internal if the configuration cannot be written as JSON, which would be a bug.
    pub(crate) fn shared_values(&self) -> Result<BTreeMap<String, String>> {
        let whole = serde_json::to_value(self)
            .map_err(|error| Error::internal("a configuration is no JSON").because(error))?;
        let mut values = BTreeMap::new();
        flatten(&whole, String::new(), &mut values);
        values.retain(|key, _| is_shared(key));
        Ok(values)
    }
}

fn is_shared(key: &str) -> bool {
    let is_in = |section: &&str| {
        key.strip_prefix(*section)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    SHARED_ALL_THE_SAME.iter().any(is_in) || !OF_A_NODE.iter().any(is_in)
}

/// Adds the values of all keys; what is not set has none.
fn flatten(value: &Value, key: String, values: &mut BTreeMap<String, String>) {
    let dot = if key.is_empty() { "" } else { "." };
    match value {
        Value::Null => {}
        Value::Object(section) => {
            for (name, value) in section {
                flatten(value, format!("{key}{dot}{name}"), values);
            }
        }
        Value::Array(items) if items.iter().any(Value::is_object) => {
            for (index, item) in items.iter().enumerate() {
                flatten(item, format!("{key}[{index}]"), values);
            }
        }
        value => drop(values.insert(key, value.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_step_is_shared_and_what_a_node_has_is_not() {
        let text = "[durability]\nmode = \"step\"\n[checkpoint]\ndir = \"/ckpt\"\n\
                    [drives]\npaths = [\"/nvme0\"]\n[report]\ntrace_steps = \"3\"\ndir = \"/r\"\n\
                    [[optimizer.groups]]\nnames = [\"*.bias\"]\nweight_decay = 0.0";
        let values = Config::parse(text).unwrap().shared_values().unwrap();
        for (key, value) in [
            ("durability.mode", "\"step\""),
            ("durability.commit_every", "1"),
            ("checkpoint.dir", "\"/ckpt\""),
            ("optimizer.groups[0].weight_decay", "0.0"),
            ("optimizer.kind", "\"adamw\""),
            ("report.trace_steps", "\"3\""),
            ("job", "\"default\""),
        ] {
            assert_eq!(values.get(key).map(String::as_str), Some(value), "{key}: {values:#?}");
        }
        let mut keys = values.keys();
        let of_a_node = ["drives", "io.", "swap", "timeouts", "faults", "report.dir"];
        assert!(!keys.any(|key| of_a_node.iter().any(|it| key.starts_with(it))), "{values:#?}");
    }

    #[test]
    fn every_name_here_is_a_key() {
        let whole = serde_json::to_value(Config::default()).unwrap();
        for key in OF_A_NODE.iter().chain(&SHARED_ALL_THE_SAME) {
            let path = format!("/{}", key.replace('.', "/"));
            assert!(whole.pointer(&path).is_some(), "{key}");
        }
    }
}
