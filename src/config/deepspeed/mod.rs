//! DeepSpeed's configuration: keys that concern swapped optimizer state become ours, and a note
//! says why the others do not. `docs/deepspeed.md` has the table.

mod check;
mod coerce;
mod drives;
mod fates;
mod foreign;
mod hjson;
mod keys;
mod optimizer;
mod precision;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use self::check::{check, is_auto, wrong_value};
use self::coerce::Kind;
use self::fates::{ELSEWHERE, FORMER_THREADS, Fate, REFUSED, fate};
use self::keys::{join, meant};
use super::{Config, Note, Sourced, read_text};
use crate::error::{Error, Result};

pub(super) use foreign::points_to_deepspeed;
pub use hjson::parse_hjson;

/// The origin of a value that DeepSpeed has for an absent key.
const DEFAULT: &str = "DeepSpeed's default";

/// Sections whose keys are looked at one by one.
const SECTIONS: [&str; 10] = [
    "",
    "aio",
    "bf16",
    "bfloat16",
    "data_types",
    "fp16",
    "optimizer",
    "optimizer.params",
    "zero_optimization",
    "zero_optimization.offload_optimizer",
];

/// Reads and checks a configuration file of DeepSpeed, which is JSON or HJSON.
///
/// # Errors
/// Usage errors that name the file and the key, if the file cannot be read or is no such
/// configuration, DeepSpeed would refuse it, a value is out of range, or the optimizer is one that
/// optswap does not have.
pub fn read_deepspeed(path: &Path) -> Result<Sourced> {
    parse_deepspeed(&read_text(path)?).map_err(|error| error.with("file", path.display()))
}

/// Reads and checks a configuration text of DeepSpeed.
///
/// # Errors
/// Usage errors that name the key, if the text is no such configuration, DeepSpeed would refuse
/// it, a value is out of range, or the optimizer is one that optswap does not have.
pub fn parse_deepspeed(text: &str) -> Result<Sourced> {
    foreign::refuse_text(text)?;
    let root = match parse_hjson(text)? {
        Value::Object(root) => root,
        other => return Err(wrong_value("the whole file", "an object with keys", &other)),
    };
    foreign::refuse_keys(&root)?;
    let checked = check(root)?;
    let mut import = Import { root: checked.root, autos: checked.autos, ..Import::default() };
    checked.notes.iter().for_each(|(key, text)| import.note(key, text));
    import.refuse_variants()?;
    import.aio()?;
    import.offload()?;
    import.clipping()?;
    import.optimizer()?;
    import.precision()?;
    import.accumulation()?;
    import.note_unmapped()?;
    let Import { config, origins, notes, autos, .. } = import;
    config.validate()?;
    let mut sourced = Sourced { config, origins, notes };
    note_autos(&mut sourced, &autos)?;
    Ok(sourced)
}

/// One note for all keys that were `auto`: what is kept for each.
fn note_autos(sourced: &mut Sourced, autos: &[String]) -> Result<()> {
    let values = sourced.values()?;
    let (mut keys, mut kept) = (Vec::new(), Vec::new());
    for path in autos {
        let Some(Fate::Mapped(ours)) = fate(path) else { continue };
        if drives::DEVICE == path {
            continue; // That has a note of its own.
        }
        keys.push(path.clone());
        if let Some(found) = values.iter().find(|value| value.key == ours) {
            let text = format!("{ours} = {}", found.value);
            if !kept.contains(&text) {
                kept.push(text);
            }
        }
    }
    if keys.is_empty() {
        return Ok(());
    }
    let text = "`auto` is for Hugging Face's Trainer or Accelerate to fill in, and optswap does \
                not see what they would take";
    let text = match &kept[..] {
        [] => text.to_owned(),
        kept => format!("{text}; kept here: {}", kept.join(", ")),
    };
    sourced.notes.push(Note { keys, text });
    Ok(())
}

/// The configuration while it is being read.
#[derive(Default)]
struct Import {
    root: Value,
    config: Config,
    origins: BTreeMap<String, String>,
    notes: Vec<Note>,
    autos: Vec<String>,
}

impl Import {
    /// Refuses variants of an update that optswap does not have.
    fn refuse_variants(&self) -> Result<()> {
        for (path, only) in REFUSED {
            let Some(value) = self.value_at(path)?.filter(|value| !is_auto(value)) else {
                continue;
            };
            let variant = "optswap has no such variant of an update";
            match *only {
                "null" => {
                    return Err(Error::usage(format!("`{path}` is there: {variant}"))
                        .hint("leave it out to update all parameters in every step"));
                }
                "0" => {
                    let number = Kind::Float.convert(value).and_then(|number| number.as_f64());
                    let number = number.ok_or_else(|| wrong_value(path, "a number", value))?;
                    if number != 0.0 {
                        return Err(Error::usage(format!("`{path}` is not 0: {variant}")));
                    }
                }
                only => {
                    let flag = Kind::Bool.convert(value);
                    let flag = flag.ok_or_else(|| wrong_value(path, "true or false", value))?;
                    if flag != (only == "true") {
                        return Err(Error::usage(format!("`{path}` is {flag}: {variant}")));
                    }
                }
            }
        }
        Ok(())
    }

    /// Says of every key that was not taken over why it was not.
    fn note_unmapped(&mut self) -> Result<()> {
        for section in SECTIONS {
            let Some(keys) = self.object_at(section)? else { continue };
            for (name, value) in keys.clone() {
                let path = join(section, &name);
                // What is as DeepSpeed has it anyway needs no word where a section is a format.
                let is_format = ["fp16", "bf16", "bfloat16"].contains(&section);
                if is_format && keys::default_of(&path) == Some(&value) {
                    continue;
                }
                self.note_fate(section, &name, &path);
            }
        }
        for path in self.autos.clone() {
            let (section, name) = keys::split(&path);
            self.note_fate(section, name, &path);
        }
        Ok(())
    }

    fn note_fate(&mut self, section: &str, name: &str, path: &str) {
        match fate(path) {
            Some(Fate::Mapped(_) | Fate::Refused(_)) => {}
            Some(Fate::Said(reason)) => self.note(path, reason),
            Some(Fate::NotOurs) => self.note(path, ELSEWHERE),
            None if FORMER_THREADS.contains(&path) => {}
            None => {
                let text = meant(section, name).map(|meant| format!("; {meant}"));
                let text = text.unwrap_or_default();
                self.note(path, format!("unknown to DeepSpeed, which ignores it{text}"));
            }
        }
    }

    /// Adds a note about a key. Keys with the same text share a note.
    fn note(&mut self, key: &str, text: impl Into<String>) {
        let text = text.into();
        match self.notes.iter_mut().find(|note| note.text == text) {
            Some(note) if note.keys.iter().any(|known| known == key) => {}
            Some(note) => note.keys.push(key.to_owned()),
            None => self.notes.push(Note { keys: vec![key.to_owned()], text }),
        }
    }

    fn comes_from(&mut self, ours: &str, origin: impl Into<String>) {
        self.origins.insert(ours.to_owned(), origin.into());
    }

    fn is_auto(&self, key: &str) -> bool {
        self.autos.iter().any(|auto| auto == key)
    }

    fn float(&mut self, key: &str) -> Result<Option<f64>> {
        self.take(key, "a number", Value::as_f64)
    }

    fn whole(&mut self, key: &str) -> Result<Option<u64>> {
        self.take(key, "a whole number from 1", |value| to_whole(value).filter(|it| *it > 0))
    }

    fn flag(&mut self, key: &str) -> Result<Option<bool>> {
        self.take(key, "true or false", |value| Kind::Bool.convert(value)?.as_bool())
    }

    fn text(&mut self, key: &str) -> Result<Option<String>> {
        self.take(key, "a string", |value| value.as_str().map(str::to_owned))
    }

    /// The value of a key, unless it is absent, or `auto`, which is remembered.
    fn take<T>(
        &mut self,
        key: &str,
        wanted: &str,
        convert: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.value_at(key)? {
            None => Ok(None),
            Some(value) if is_auto(value) => {
                self.autos.push(key.to_owned());
                Ok(None)
            }
            Some(value) => convert(value).map(Some).ok_or_else(|| wrong_value(key, wanted, value)),
        }
    }

    /// The value at a path such as `aio.block_size`.
    fn value_at(&self, path: &str) -> Result<Option<&Value>> {
        let (section, name) = keys::split(path);
        Ok(self.object_at(section)?.and_then(|keys| keys.get(name)))
    }

    /// The section at a path; the empty one is the whole.
    fn object_at(&self, path: &str) -> Result<Option<&Map<String, Value>>> {
        let value = if path.is_empty() { Some(&self.root) } else { self.value_at(path)? };
        match value {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(keys)) => Ok(Some(keys)),
            Some(other) => Err(wrong_value(path, "an object with keys", other)),
        }
    }
}

/// Whole numbers above 1e10 are floats in Python if they are written as 1e11.
fn to_whole(value: &Value) -> Option<u64> {
    let from_float = |number: f64| {
        (number.fract() == 0.0 && (0.0..9e15).contains(&number)).then_some(number as u64)
    };
    value.as_u64().or_else(|| value.as_f64().and_then(from_float))
}

#[cfg(test)]
mod tests;
