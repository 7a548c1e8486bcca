//! Nested tables as one: `{"io": {"depth": 64}}` has the key `io.depth`.

use std::collections::BTreeMap;

use serde_json::Value;

/// Every value that is no table, by the path of its key.
pub(super) fn flat_keys(value: &Value) -> BTreeMap<String, Value> {
    flat_keys_below("", value)
}

/// The same with a first part of every key.
pub(super) fn flat_keys_below(prefix: &str, value: &Value) -> BTreeMap<String, Value> {
    let Value::Object(table) = value else {
        return BTreeMap::from([(prefix.to_owned(), value.clone())]);
    };
    let mut keys = BTreeMap::new();
    for (key, value) in table {
        let dot = if prefix.is_empty() { "" } else { "." };
        keys.extend(flat_keys_below(&format!("{prefix}{dot}{key}"), value));
    }
    keys
}
