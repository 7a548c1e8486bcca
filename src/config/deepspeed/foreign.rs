//! Files that are no configuration of DeepSpeed but name one, or look like one.

use serde_json::{Map, Value};

use super::fates::is_elsewhere;
use super::keys::{find, meant};
use crate::error::{Error, Result};

/// Keys behind which other programs name DeepSpeed's file.
const NAMES: [&str; 3] = ["deepspeed_config_file", "deepspeed", "deepspeed_config"];

/// Keys of DeepSpeed that Hugging Face's arguments and models have too.
const SHARED: [&str; 4] =
    ["gradient_accumulation_steps", "dataloader_drop_last", "log_level", "pipeline"];

/// Whether a text has a line such as `deepspeed: ds_config.json`, as YAML files of Accelerate,
/// axolotl or LLaMA-Factory have; with the name of the file, if one is there.
pub(in crate::config) fn points_to_deepspeed(text: &str) -> Option<Error> {
    let named = |line: &str| {
        let (key, value) = line.trim().split_once(':')?;
        // A line of JSON has quotes.
        NAMES.contains(&key).then(|| value.split(" #").next().unwrap_or("").trim().to_owned())
    };
    let values: Vec<String> = text.lines().filter_map(named).collect();
    let file = values.iter().find(|value| value.contains(".json"));
    (!values.is_empty()).then(|| another_file(file.map(|file| file.trim_matches(['"', '\'']))))
}

fn another_file(file: Option<&str>) -> Error {
    let which = match file {
        Some(file) => format!("give `{file}`, which it names"),
        None => "give the file that it names behind `deepspeed_config_file` or `deepspeed`".into(),
    };
    Error::usage("this is a configuration of a program that uses DeepSpeed, not DeepSpeed's own")
        .hint(format!("{which}; where it has DeepSpeed's keys itself, write them into a JSON file"))
}

/// Refuses a file of another program by its lines.
pub(super) fn refuse_text(text: &str) -> Result<()> {
    points_to_deepspeed(text).map_or(Ok(()), Err)
}

/// Refuses a file by its keys: that of another program, or one without any key of DeepSpeed.
pub(super) fn refuse_keys(root: &Map<String, Value>) -> Result<()> {
    // In Hugging Face's arguments these are true or false.
    let is_flag = |key: &str, value: &Value| value.is_boolean() && ["fp16", "bf16"].contains(&key);
    let telling = root.iter().any(|(key, value)| {
        find(key).is_some() && !SHARED.contains(&&**key) && !is_flag(key, value)
    });
    if telling || (!root.is_empty() && root.keys().all(|key| find(key).is_some())) {
        return Ok(());
    }
    if let Some(named) = NAMES.iter().find_map(|name| root.get(*name)) {
        return Err(another_file(named.as_str()));
    }
    let error = Error::usage("this is no configuration of DeepSpeed: it has none of its keys");
    let misplaced = root.keys().find_map(|key| {
        let place = meant("", key).filter(|_| !is_elsewhere(key))?;
        Some(format!("`{key}`: {place}"))
    });
    let hint = "such a file has keys like `zero_optimization`, `optimizer` or `train_batch_size`";
    Err(error.hint(misplaced.unwrap_or_else(|| hint.to_owned())))
}
