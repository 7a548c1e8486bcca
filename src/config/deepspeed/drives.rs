//! Drives and how they are used: `aio` and `zero_optimization.offload_optimizer`.

use std::path::PathBuf;

use serde_json::Value;

use super::fates::FORMER_THREADS;
use super::{Import, to_whole};
use crate::error::Result;
use crate::units::{BLOCK_ELEMS, Bytes, Elems, round_up};

pub(super) const DEVICE: &str = "zero_optimization.offload_optimizer.device";
const DEPTH_MAX: u64 = 4096;
const SUB_GROUP_MAX: u64 = 1 << 48;

impl Import {
    pub(super) fn aio(&mut self) -> Result<()> {
        if let Some(bytes) = self.whole("aio.block_size")? {
            if bytes >= 4096 && bytes.is_multiple_of(4096) && bytes <= 1 << 30 {
                self.config.drives.stripe_unit = Bytes(bytes);
                self.comes_from("drives.stripe_unit", "aio.block_size");
            } else {
                let unit = self.config.drives.stripe_unit;
                let text = format!("{bytes} is no multiple of 4KiB up to 1GiB; {unit} is kept");
                self.note("aio.block_size", text);
            }
        }
        let current = self.whole("aio.intra_op_parallelism")?;
        let mut threads = current.map(|count| ("aio.intra_op_parallelism", count));
        for former in FORMER_THREADS {
            let Some(count) = self.whole(former)? else { continue };
            let text = if threads.is_none() {
                "read as aio.intra_op_parallelism, although DeepSpeed now ignores this name"
            } else {
                "ignored, since the number of threads is already given by another name"
            };
            self.note(former, text);
            threads = threads.or(Some((former, count)));
        }
        let depth = self.whole("aio.queue_depth")?;
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
        let wanted = depth.saturating_mul(count);
        let in_flight = wanted.clamp(1, DEPTH_MAX) as usize;
        let default = self.config.io.depth;
        self.config.io.depth = in_flight;
        let origin = match threads {
            "" => "aio.queue_depth".to_owned(),
            threads => format!("aio.queue_depth x {threads}"),
        };
        self.comes_from("io.depth", &*origin);
        if wanted > DEPTH_MAX {
            let text = format!("{origin} = {wanted} is cut to {DEPTH_MAX}, the most for a rank");
            self.note("aio.queue_depth", text);
        } else if in_flight < default {
            let text = format!(
                "io.depth = {in_flight} counts for a rank, over all drives, reads and writes \
                 together; without aio.queue_depth it is {default}"
            );
            self.note("aio.queue_depth", text);
        }
    }

    pub(super) fn offload(&mut self) -> Result<()> {
        let device = self.text(DEVICE)?;
        let key = "zero_optimization.offload_optimizer.nvme_path";
        let paths = self.take(key, "a path, or a list of paths", to_paths)?;
        let device = match device.as_deref() {
            None if self.is_auto(DEVICE) => "auto",
            device => device.unwrap_or("none"),
        };
        match device {
            "nvme" if paths.is_none() => {
                let text = "`nvme` without nvme_path: name the drives otherwise, such as with \
                            --drives or in a site's description";
                self.note(DEVICE, text);
            }
            "nvme" => {}
            "auto" => {
                let text = "`auto`: DeepSpeed takes it for `none` unless its caller fills it in; \
                            optswap swaps in any case, to nvme_path or to drives that are named \
                            otherwise";
                self.note(DEVICE, text);
            }
            _ => {
                let text = "not `nvme`, so DeepSpeed would not swap; optswap does, to nvme_path or \
                            to drives that are named otherwise";
                self.note(DEVICE, text);
            }
        }
        if let Some(paths) = paths {
            self.config.drives.paths = paths;
            self.comes_from("drives.paths", key);
            let text = "each directory must exist; state lies in optswap/JOB below it, where \
                        DeepSpeed has zero_stage_3/optimizer";
            self.note(key, text);
        }
        let key = "zero_optimization.offload_optimizer.pipeline_read";
        if let Some(pipeline_read) = self.flag(key)? {
            self.config.swap.pipeline_read = pipeline_read;
            self.comes_from("swap.pipeline_read", key);
        }
        let key = "zero_optimization.offload_optimizer.pipeline_write";
        if let Some(pipeline_write) = self.flag(key)? {
            self.config.swap.pipeline_write = pipeline_write;
            self.comes_from("swap.pipeline_write", key);
        }
        self.sub_groups()
    }

    fn sub_groups(&mut self) -> Result<()> {
        let key = "zero_optimization.sub_group_size";
        let whole = |value: &Value| to_whole(value).or_else(|| value.as_f64().map(|it| it as u64));
        let Some(elems) = self.take(key, "a whole number", whole)? else { return Ok(()) };
        if elems == 0 {
            let kept = self.config.swap.sub_group_elements;
            let text = format!(
                "0 makes every parameter a sub-group of its own in DeepSpeed; here they are cut by \
                 size alone, {kept} elements each, which changes no result"
            );
            self.note(key, text);
            return Ok(());
        }
        let rounded = round_up(elems.min(SUB_GROUP_MAX), BLOCK_ELEMS);
        self.config.swap.sub_group_elements = Elems(rounded);
        self.comes_from("swap.sub_group_elements", key);
        if elems > SUB_GROUP_MAX {
            self.note(key, format!("cut to {}, which is more than any shard has", Elems(rounded)));
        } else if rounded != elems {
            self.note(key, format!("{elems} is rounded to {rounded}, a multiple of 4096"));
        }
        Ok(())
    }

    /// Whether DeepSpeed updates in the processors' memory, with optimizers of its own for that.
    pub(super) fn is_offloaded(&self) -> Result<bool> {
        let device = self.value_at(DEVICE)?.and_then(Value::as_str);
        Ok(device.is_some_and(|device| device != "none"))
    }
}

fn to_paths(value: &Value) -> Option<Vec<PathBuf>> {
    // As pathlib has it.
    let path = |value: &Value| {
        let text = value.as_str()?;
        Some(PathBuf::from(if text.is_empty() { "." } else { text }))
    };
    match value.as_array() {
        Some(list) if list.is_empty() => None,
        Some(list) => list.iter().map(path).collect(),
        None => path(value).map(|path| vec![path]),
    }
}
