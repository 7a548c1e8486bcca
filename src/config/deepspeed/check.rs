//! What DeepSpeed refuses is refused, and values become what DeepSpeed's classes make of them.

use serde_json::{Map, Value, json};

use super::coerce::Kind;
use super::fates::FORMER_KEYS;
use super::keys::{self, Key, find, join, meant};
use crate::error::{Error, Result};

type Section = Map<String, Value>;

const ZERO: &str = "zero_optimization";

/// A configuration as DeepSpeed takes it.
#[derive(Default)]
pub(super) struct Checked {
    /// Sections with the types of their keys; `auto` and null are gone where DeepSpeed takes its
    /// default for them.
    pub(super) root: Value,
    /// Keys that were `auto` there.
    pub(super) autos: Vec<String>,
    /// What to say about keys that have another name now.
    pub(super) notes: Vec<(String, String)>,
    unknown: Vec<String>,
}

/// Checks a configuration as a whole.
pub(super) fn check(mut root: Section) -> Result<Checked> {
    let mut checked = Checked::default();
    checked.old_stage(&mut root);
    let root = checked.section("", root)?;
    if !checked.unknown.is_empty() {
        return Err(unknown_keys(&checked.unknown));
    }
    checked.root = Value::Object(root);
    checked.old_names()?;
    checked.together()?;
    Ok(checked)
}

impl Checked {
    fn section(&mut self, section: &str, given: Section) -> Result<Section> {
        let is_strict = find(section).is_some_and(|key| key.kind == Kind::Strict);
        let mut taken = Section::new();
        for (name, value) in given {
            let path = join(section, &name);
            if is_strict && is_auto(&value) {
                self.autos.push(path);
                continue;
            }
            match find(&path) {
                Some(key) => {
                    if let Some(value) = self.value(key, value)? {
                        taken.insert(name, value);
                    }
                }
                None if FORMER_KEYS.contains(&&*path) => {
                    let text = "not for optswap, and no key of DeepSpeed any more";
                    self.notes.push((path, text.to_owned()));
                }
                None if is_strict => self.unknown.push(path),
                None => drop(taken.insert(name, value)),
            }
        }
        Ok(taken)
    }

    /// The value as the type of its key; nothing if that is as good as no key.
    fn value(&mut self, key: &Key, value: Value) -> Result<Option<Value>> {
        let may_be_null = key.is_nullable || NULLABLE.contains(&key.path);
        if value.is_null() && may_be_null || is_auto(&value) && MONITORS.contains(&key.path) {
            // An old name counts as given even if it is null.
            return Ok(key.replaced_by.map(|_| value));
        }
        if key.kind.is_section() {
            return match value {
                Value::Object(inner) => Ok(Some(Value::Object(self.section(key.path, inner)?))),
                other => Err(wrong_value(key.path, &key.kind.wanted(), &other)),
            };
        }
        // Ours: a list of drives.
        if key.path == NVME_PATH && value.is_array() {
            return Ok(Some(value));
        }
        // The only section in which a word stands for a list of one.
        if value.is_string() && key.place().0 == "zero_optimization.leaf_module" {
            return Ok(Some(value));
        }
        let converted = match key.bounds {
            "checked" => loss_scale_value(key, &value),
            bounds => key.kind.convert(&value).filter(|value| is_within(bounds, value)),
        };
        let wanted = || format!("{}{}", key.kind.wanted(), limits(key.bounds));
        converted.map(Some).ok_or_else(|| wrong_value(key.path, &wanted(), &value))
    }

    /// The old form, in which `zero_optimization` is true or false.
    fn old_stage(&mut self, root: &mut Section) {
        let Some(flag) = root.get(ZERO).and_then(Value::as_bool) else { return };
        let stage = u8::from(flag);
        root.insert(ZERO.to_owned(), json!({ "stage": stage }));
        let text = format!("an old form; DeepSpeed takes `{flag}` for {{\"stage\": {stage}}}");
        self.notes.push((ZERO.to_owned(), text));
    }

    /// Old names of keys in `zero_optimization` become what they are called now.
    fn old_names(&mut self) -> Result<()> {
        let Some(zero) = self.root.get_mut(ZERO).and_then(Value::as_object_mut) else {
            return Ok(());
        };
        for key in keys::all().filter(|key| key.place().0 == ZERO) {
            let (Some(new), name) = (key.replaced_by, key.place().1) else { continue };
            let Some(value) = zero.remove(name) else { continue };
            let (text, replacement) = match name {
                "cpu_offload" | "cpu_offload_param" => (
                    format!("the old name of `{ZERO}.{new}` with `\"device\": \"cpu\"`"),
                    (value == true).then(|| json!({ "device": "cpu" })),
                ),
                _ => (format!("the old name of `{new}`"), Some(value)),
            };
            self.notes.push((key.path.to_owned(), text));
            if find(&join(ZERO, new)).is_none() {
                continue; // It stands for several keys, and nothing of ours depends on them.
            }
            if zero.contains_key(new) {
                return Err(both(key.path, &join(ZERO, new)));
            }
            if let Some(value) = replacement {
                zero.insert(new.to_owned(), value);
            }
        }
        let doubled = zero.keys().find(|name| zero.contains_key(&format!("stage3_{name}")));
        match doubled {
            Some(name) => Err(both(&join(ZERO, name), &join(ZERO, &format!("stage3_{name}")))),
            None => Ok(()),
        }
    }

    /// Refuses what DeepSpeed refuses because of several keys together.
    fn together(&self) -> Result<()> {
        match self.conflicts().into_iter().find(|(is_so, _)| *is_so) {
            Some((_, message)) => Err(Error::usage(message).hint("DeepSpeed refuses this too")),
            None => Ok(()),
        }
    }

    fn conflicts(&self) -> [(bool, &'static str); 7] {
        let at =
            |path: &str| path.split('.').try_fold(&self.root, |section, name| section.get(name));
        let is_on = |path: &str| at(path).is_some_and(|value| *value == true);
        let number = |path: &str| at(path).and_then(Value::as_f64);
        let is_zero = |path: &str| number(path).is_some_and(|number| number <= 0.0);
        let bf16 = if at("bf16").is_some() { "bf16" } else { "bfloat16" };
        let bf16_is_on = |name: &str| is_on(&join(bf16, name));
        let stage = number("zero_optimization.stage").unwrap_or(0.0);
        let ratio = number("zero_optimization.offload_optimizer.ratio").unwrap_or(1.0);
        let norm = at("zero_optimization.compute_grad_norm");
        let is_dynamic = is_on("fp16.enabled") && number("fp16.loss_scale").unwrap_or(0.0) == 0.0;
        let has_16_bit_masters = bf16_is_on("bf16_master_weights_and_grads");
        let has_16_bit_moments = bf16_is_on("bf16_optimizer_states");
        let is_narrow =
            is_on("fp16.fp16_master_weights_and_grads") || has_16_bit_masters || has_16_bit_moments;
        [
            (
                is_on("fp16.enabled") && bf16_is_on("enabled"),
                "`fp16` and `bf16` cannot both be enabled",
            ),
            (
                is_dynamic && is_zero("fp16.loss_scale_window"),
                "`fp16.loss_scale_window` must be above 0 where the scale is dynamic",
            ),
            (
                is_dynamic && is_zero("fp16.min_loss_scale"),
                "`fp16.min_loss_scale` must be above 0 where the scale is dynamic",
            ),
            (
                ratio < 1.0 && stage != 3.0,
                "`zero_optimization.offload_optimizer.ratio` below 1 needs stage 3",
            ),
            (
                norm.is_some_and(|norm| *norm == false) && ![1.0, 2.0].contains(&stage),
                "`zero_optimization.compute_grad_norm` can be false with stage 1 or 2 only",
            ),
            (
                is_narrow && stage == 0.0,
                "16-bit masters or moments need `zero_optimization.stage` 1, 2 or 3",
            ),
            (
                has_16_bit_moments && !has_16_bit_masters,
                "`bf16_optimizer_states` needs `bf16_master_weights_and_grads`",
            ),
        ]
    }
}

const NVME_PATH: &str = "zero_optimization.offload_optimizer.nvme_path";
/// What may be null although its type does not say so.
const NULLABLE: [&str; 3] = ["aio", "bf16", "zero_optimization.leaf_module"];
/// Sections for which `auto` counts as none.
const MONITORS: [&str; 4] = ["tensorboard", "wandb", "csv_monitor", "comet"];

pub(super) fn is_auto(value: &Value) -> bool {
    value.as_str() == Some("auto")
}

/// The keys of the loss scale take no truth values, and strings only as Python's `int` does.
fn loss_scale_value(key: &Key, value: &Value) -> Option<Value> {
    let has_point = value.as_str().is_some_and(|text| text.contains('.'));
    if value.is_boolean() || (key.kind == Kind::Int && has_point) {
        return None;
    }
    let least = if key.kind == Kind::Float { 0.0 } else { f64::NEG_INFINITY };
    key.kind.convert(value).filter(|value| value.as_f64().is_some_and(|number| number >= least))
}

fn is_within(bounds: &str, value: &Value) -> bool {
    let number = value.as_f64().unwrap_or_default();
    limits_of(bounds).all(|(limit, most)| match limit {
        "ge" => number >= most,
        "gt" => number > most,
        "le" => number <= most,
        _ => number < most,
    })
}

fn limits_of(bounds: &str) -> impl Iterator<Item = (&str, f64)> {
    let parts = bounds.split(' ').filter_map(|bound| bound.split_once('='));
    parts.filter_map(|(limit, number)| Some((limit, number.parse().ok()?)))
}

/// Limits in words, such as `, at least 0`.
fn limits(bounds: &str) -> String {
    let word = |limit: &str| match limit {
        "ge" => "at least",
        "gt" => "above",
        "le" => "at most",
        _ => "below",
    };
    limits_of(bounds).map(|(limit, number)| format!(", {} {number}", word(limit))).collect()
}

fn both(old: &str, new: &str) -> Error {
    Error::usage(format!("`{old}` and `{new}` are two names of one key"))
        .hint("write the second only; DeepSpeed refuses both together")
}

fn unknown_keys(paths: &[String]) -> Error {
    let describe = |path: &String| {
        let (section, name) = keys::split(path);
        match meant(section, name) {
            Some(meant) => format!("{path} ({meant})"),
            None => path.clone(),
        }
    };
    let list = paths.iter().map(describe).collect::<Vec<_>>().join(", ");
    let which = if paths.len() == 1 { "a key" } else { "keys" };
    let version = keys::version();
    Error::usage(format!("DeepSpeed {version} refuses {which} that it does not know: {list}"))
        .hint("correct, move or remove what is named")
}

/// The error of a value that its key cannot have.
pub(super) fn wrong_value(key: &str, wanted: &str, value: &Value) -> Error {
    let given = match value {
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        scalar => scalar.to_string(),
    };
    Error::usage(format!("`{key}` must be {wanted}, not {given}"))
}
