//! DeepSpeed's configuration: keys that concern swapped optimizer state become ours, and a note
//! says why the others do not. `docs/deepspeed.md` has the table.

mod precision;
mod unmapped;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use self::unmapped::{CLOSED, ELSEWHERE, MAPPED, REASONS, nearest};
use super::{Config, Note, Sourced, read_text};
use crate::error::{Error, Result};
use crate::state::OptimizerKind;
use crate::units::{BLOCK_ELEMS, Bytes, Elems, round_up};

/// Reads and checks a configuration file of DeepSpeed.
///
/// # Errors
/// Usage errors that name the file and the key, if the file cannot be read or is no JSON, a value
/// has the wrong type or is out of range, or the optimizer is one that optswap does not have.
pub fn read_deepspeed(path: &Path) -> Result<Sourced> {
    parse_deepspeed(&read_text(path)?).map_err(|error| error.with("file", path.display()))
}

/// Reads and checks a configuration text of DeepSpeed.
///
/// # Errors
/// Usage errors that name the key, if the text is no JSON, a value has the wrong type or is out of
/// range, or the optimizer is one that optswap does not have.
pub fn parse_deepspeed(text: &str) -> Result<Sourced> {
    let root: Value = serde_json::from_str(text).map_err(|error| {
        Error::usage("DeepSpeed's configuration is no JSON")
            .because(error)
            .hint("JSON has no comments, and no comma before a closing bracket")
    })?;
    let mut import = Import::default();
    import.aio(&root)?;
    import.offload(&root)?;
    import.optimizer(&root)?;
    import.precision(&root)?;
    import.accumulation(&root)?;
    for section in CLOSED.iter().chain(&["zero_optimization", ""]) {
        let keys = object_at(&root, section)?.into_iter().flat_map(Map::keys);
        keys.for_each(|key| import.note_unmapped(section, key));
    }
    let Import { config, origins, notes } = import;
    config.validate()?;
    Ok(Sourced { config, origins, notes })
}

/// The configuration while it is being read.
#[derive(Default)]
struct Import {
    config: Config,
    origins: BTreeMap<String, String>,
    notes: Vec<Note>,
}

impl Import {
    fn aio(&mut self, root: &Value) -> Result<()> {
        if let Some(bytes) = self.whole(root, "aio.block_size")? {
            if bytes >= 4096 && bytes.is_multiple_of(4096) && bytes <= 1 << 30 {
                self.config.drives.stripe_unit = Bytes(bytes);
                self.comes_from("drives.stripe_unit", "aio.block_size");
            } else {
                let unit = self.config.drives.stripe_unit;
                let text = format!("{bytes} is no multiple of 4KiB up to 1GiB; {unit} is kept");
                self.note("aio.block_size", text);
            }
        }
        let current = self.whole(root, "aio.intra_op_parallelism")?;
        let mut threads = current.map(|count| ("aio.intra_op_parallelism", count));
        for former in ["aio.thread_count", "aio.num_threads"] {
            let Some(count) = self.whole(root, former)? else { continue };
            let text = if threads.is_none() {
                "read as aio.intra_op_parallelism, although DeepSpeed now ignores this name"
            } else {
                "ignored, since the number of threads is already given by another name"
            };
            self.note(former, text);
            threads = threads.or(Some((former, count)));
        }
        let depth = self.whole(root, "aio.queue_depth")?;
        match (depth, threads) {
            (Some(depth), threads) => {
                let (name, count) = threads.unwrap_or(("", 1));
                self.set_depth(depth, name, count);
            }
            (None, Some((name, _))) => {
                let text = "not needed: a rank has one queue, with io.depth operations in flight";
                self.note(name, text);
            }
            (None, None) => {}
        }
        Ok(())
    }

    /// Sets our depth: each of DeepSpeed's threads has a queue of its own, ours is one for all.
    fn set_depth(&mut self, depth: u64, threads: &'static str, count: u64) {
        let in_flight = depth.saturating_mul(count).clamp(1, 4096) as usize;
        let default = self.config.io.depth;
        self.config.io.depth = in_flight;
        let origin = match threads {
            "" => "aio.queue_depth".to_owned(),
            threads => format!("aio.queue_depth x {threads}"),
        };
        self.comes_from("io.depth", origin);
        if in_flight < default {
            let text = format!(
                "io.depth = {in_flight} counts for a rank, over all drives, reads and writes \
                 together; without aio.queue_depth it is {default}"
            );
            self.note("aio.queue_depth", text);
        }
    }

    fn offload(&mut self, root: &Value) -> Result<()> {
        let device = self.text(root, "zero_optimization.offload_optimizer.device")?;
        if !device.as_deref().is_some_and(|device| device.eq_ignore_ascii_case("nvme")) {
            let text = "not `nvme`, so DeepSpeed would not swap; optswap does, to nvme_path or to \
                        drives that are named otherwise";
            self.note("zero_optimization.offload_optimizer.device", text);
        }
        let key = "zero_optimization.offload_optimizer.nvme_path";
        if let Some(paths) = self.take(root, key, "a path, or a list of paths", to_paths)? {
            self.config.drives.paths = paths;
            self.comes_from("drives.paths", key);
            let text = "each directory must exist; state lies in optswap/JOB below it, where \
                        DeepSpeed has zero_stage_3/optimizer";
            self.note(key, text);
        }
        let key = "zero_optimization.offload_optimizer.pipeline_read";
        if let Some(pipeline_read) = self.flag(root, key)? {
            self.config.swap.pipeline_read = pipeline_read;
            self.comes_from("swap.pipeline_read", key);
        }
        let key = "zero_optimization.offload_optimizer.pipeline_write";
        if let Some(pipeline_write) = self.flag(root, key)? {
            self.config.swap.pipeline_write = pipeline_write;
            self.comes_from("swap.pipeline_write", key);
        }
        let key = "zero_optimization.sub_group_size";
        if let Some(elems) = self.whole(root, key)? {
            let rounded = round_up(elems.min(1 << 48), BLOCK_ELEMS);
            self.config.swap.sub_group_elements = Elems(rounded);
            self.comes_from("swap.sub_group_elements", key);
            if rounded != elems {
                self.note(key, format!("{elems} is rounded to {rounded}, a multiple of 4096"));
            }
        }
        Ok(())
    }

    fn optimizer(&mut self, root: &Value) -> Result<()> {
        if let Some(norm) = self.float(root, "gradient_clipping")? {
            self.config.optimizer.clip_norm = norm;
            self.comes_from("optimizer.clip_norm", "gradient_clipping");
        }
        if object_at(root, "optimizer")?.is_none() {
            let text = "absent: optswap's AdamW with its own defaults is taken";
            self.note("optimizer", text);
            return Ok(());
        }
        let kind = self.optimizer_kind(root)?;
        self.refuse_variants(root)?;
        self.config.optimizer.kind = kind;
        self.comes_from("optimizer.kind", "optimizer.type");
        if let Some(lr) = self.float(root, "optimizer.params.lr")? {
            self.config.optimizer.lr = lr;
            self.comes_from("optimizer.lr", "optimizer.params.lr");
        }
        let key = "optimizer.params.betas";
        if let Some(betas) = self.take(root, key, "a list of two numbers", to_betas)? {
            self.config.optimizer.betas = betas;
            self.comes_from("optimizer.betas", key);
        }
        let key = "optimizer.params.momentum";
        if let Some(momentum) = self.float(root, key)? {
            self.config.optimizer.betas[0] = momentum;
            self.comes_from("optimizer.betas", key);
        } else if kind == OptimizerKind::Sgd {
            return Err(Error::usage("`optimizer.params.momentum` is missing")
                .hint("optswap's sgd keeps a momentum buffer: say which momentum"));
        }
        if let Some(eps) = self.float(root, "optimizer.params.eps")? {
            self.config.optimizer.eps = eps;
            self.comes_from("optimizer.eps", "optimizer.params.eps");
        }
        self.weight_decay(root, kind)
    }

    /// The kind of optimizer. `Adam` means AdamW, as in DeepSpeed, unless `adam_w_mode` is false.
    fn optimizer_kind(&mut self, root: &Value) -> Result<OptimizerKind> {
        let name = self.text(root, "optimizer.type")?;
        match name.as_deref().map(str::to_lowercase).as_deref() {
            Some("adam") => match self.flag(root, "optimizer.params.adam_w_mode")? {
                Some(false) => Ok(OptimizerKind::Adam),
                _ => Ok(OptimizerKind::AdamW),
            },
            Some("adamw") => Ok(OptimizerKind::AdamW),
            Some("sgd") => Ok(OptimizerKind::Sgd),
            Some("lion") => Ok(OptimizerKind::Lion),
            Some("adagrad") => Ok(OptimizerKind::Adagrad),
            _ => {
                let given = name.map_or("missing or `auto`".to_owned(), |name| format!("`{name}`"));
                let known = "optswap has AdamW, Adam, SGD, Lion and Adagrad";
                Err(Error::usage(format!("`optimizer.type` is {given}: {known}"))
                    .hint("write one of these, or leave `optimizer` out to take AdamW's defaults"))
            }
        }
    }

    fn weight_decay(&mut self, root: &Value, kind: OptimizerKind) -> Result<()> {
        let key = "optimizer.params.weight_decay";
        let is_given = value_at(root, key)?.is_some();
        let is_adamw = kind == OptimizerKind::AdamW;
        let of_torch = self.flag(root, "optimizer.params.torch_adam")? == Some(true) && is_adamw;
        if let Some(decay) = self.float(root, key)? {
            self.config.optimizer.weight_decay = decay;
            self.comes_from("optimizer.weight_decay", key);
        } else if !is_given && !of_torch {
            let ours = self.config.optimizer.weight_decay;
            self.config.optimizer.weight_decay = 0.0;
            self.comes_from("optimizer.weight_decay", "DeepSpeed's default");
            self.note(key, format!("absent: DeepSpeed's default 0 is taken, not {ours}"));
        }
        Ok(())
    }

    /// Refuses variants of an update that optswap does not have.
    fn refuse_variants(&mut self, root: &Value) -> Result<()> {
        for key in ["dampening", "lr_decay", "initial_accumulator_value"] {
            let key = format!("optimizer.params.{key}");
            if self.float(root, &key)?.is_some_and(|value| value != 0.0) {
                return Err(Error::usage(format!("`{key}` is not 0: optswap has no such variant")));
            }
        }
        for (key, known) in VARIANTS {
            let key = format!("optimizer.params.{key}");
            if self.flag(root, &key)?.is_some_and(|value| value != known) {
                let message = format!("`{key}` is {}: optswap has no such variant", !known);
                return Err(Error::usage(message));
            }
        }
        if value_at(root, "optimizer.params.max_grad_norm")?.is_some() {
            return Err(Error::usage("`optimizer.params.max_grad_norm` is not DeepSpeed's")
                .hint("write `gradient_clipping` beside `optimizer`"));
        }
        Ok(())
    }

    fn note_unmapped(&mut self, section: &str, key: &str) {
        let path = if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") };
        if MAPPED.contains(&path.as_str()) {
            return;
        }
        let reason = REASONS.iter().find(|(known, _)| *known == path).map(|(_, reason)| *reason);
        match (reason, nearest(section, key)) {
            (Some(reason), _) => self.note(&path, reason),
            (None, Some(near)) => self.note(&path, format!("unknown; did you mean `{near}`?")),
            (None, None) if CLOSED.contains(&section) => self.note(&path, "unknown, not mapped"),
            (None, None) => self.note(&path, ELSEWHERE),
        }
    }

    /// Adds a note about a key. Keys with the same text share a note.
    fn note(&mut self, key: &str, text: impl Into<String>) {
        let text = text.into();
        match self.notes.iter_mut().find(|note| note.text == text) {
            Some(note) => note.keys.push(key.to_owned()),
            None => self.notes.push(Note { keys: vec![key.to_owned()], text }),
        }
    }

    fn comes_from(&mut self, ours: &str, origin: impl Into<String>) {
        self.origins.insert(ours.to_owned(), origin.into());
    }

    fn float(&mut self, root: &Value, key: &str) -> Result<Option<f64>> {
        self.take(root, key, "a number", Value::as_f64)
    }

    fn whole(&mut self, root: &Value, key: &str) -> Result<Option<u64>> {
        self.take(root, key, "a whole number from 1", to_whole)
    }

    fn flag(&mut self, root: &Value, key: &str) -> Result<Option<bool>> {
        self.take(root, key, "true or false", to_flag)
    }

    fn text(&mut self, root: &Value, key: &str) -> Result<Option<String>> {
        self.take(root, key, "a string", |value| value.as_str().map(str::to_owned))
    }

    /// The value of a key, unless it is absent, null or `auto`, which gives a note.
    fn take<T>(
        &mut self,
        root: &Value,
        key: &str,
        wanted: &str,
        convert: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>> {
        match value_at(root, key)? {
            None => Ok(None),
            Some(value) if is_auto(value) => {
                let text = "`auto` is filled in by Hugging Face's Trainer only; optswap's default \
                            is kept";
                self.note(key, text);
                Ok(None)
            }
            Some(value) => convert(value).map(Some).ok_or_else(|| wrong_type(key, wanted, value)),
        }
    }
}

/// Flags of an update that optswap has with one value only.
const VARIANTS: [(&str, bool); 4] =
    [("bias_correction", true), ("amsgrad", false), ("maximize", false), ("nesterov", false)];

fn is_auto(value: &Value) -> bool {
    value.as_str() == Some("auto")
}

/// Python writes large numbers as 1e9.
fn to_whole(value: &Value) -> Option<u64> {
    let from_float = |number: f64| {
        (number.fract() == 0.0 && (0.0..9e15).contains(&number)).then_some(number as u64)
    };
    value.as_u64().or_else(|| value.as_f64().and_then(from_float)).filter(|number| *number > 0)
}

/// `ds_nvme_tune` writes truth values as strings.
fn to_flag(value: &Value) -> Option<bool> {
    let named = |text: &str| match text {
        "true" | "True" => Some(true),
        "false" | "False" => Some(false),
        _ => None,
    };
    value.as_bool().or_else(|| value.as_str().and_then(named))
}

fn to_paths(value: &Value) -> Option<Vec<PathBuf>> {
    let path = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(PathBuf::from);
    match value.as_array() {
        Some(list) if list.is_empty() => None,
        Some(list) => list.iter().map(path).collect(),
        None => path(value).map(|path| vec![path]),
    }
}

fn to_betas(value: &Value) -> Option<[f64; 2]> {
    match value.as_array()?.as_slice() {
        [first, second] => Some([first.as_f64()?, second.as_f64()?]),
        _ => None,
    }
}

/// The value at a path such as `aio.block_size`; null counts as absent.
fn value_at<'a>(root: &'a Value, path: &str) -> Result<Option<&'a Value>> {
    let (section, key) = path.rsplit_once('.').unwrap_or(("", path));
    let section = object_at(root, section)?;
    Ok(section.and_then(|keys| keys.get(key)).filter(|value| !value.is_null()))
}

/// The section at a path; the empty one is the whole.
fn object_at<'a>(root: &'a Value, path: &str) -> Result<Option<&'a Map<String, Value>>> {
    let value = if path.is_empty() { Some(root) } else { value_at(root, path)? };
    let to_object = |value: &'a Value| {
        let name = if path.is_empty() { "the whole file" } else { path };
        value.as_object().ok_or_else(|| wrong_type(name, "an object with keys", value))
    };
    value.map(to_object).transpose()
}

fn wrong_type(key: &str, wanted: &str, value: &Value) -> Error {
    let given = match value {
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        scalar => scalar.to_string(),
    };
    Error::usage(format!("`{key}` must be {wanted}, not {given}"))
}

#[cfg(test)]
mod tests;
