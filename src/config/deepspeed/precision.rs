//! Number formats and the loss scale.

use serde_json::Value;

use super::{DEFAULT, Import, keys};
use crate::config::{AccumulateIn, LossScaleMode};
use crate::error::Result;

/// Number formats that DeepSpeed has and sums of gradients here do not.
const OTHER_DTYPES: [&str; 6] = ["fp16", "float16", "half", "torch.float16", "int8", "torch.int8"];

impl Import {
    pub(super) fn precision(&mut self) -> Result<()> {
        if self.is_auto("fp16.enabled") {
            self.undecided_scale()?;
        } else if self.flag("fp16.enabled")? == Some(true) {
            self.loss_scale()?;
            let text = "the program multiplies its loss by SwappedOptimizer::loss_scaler().scale() \
                        before each step; all ranks skip a step with an infinity or NaN, and the \
                        scale follows; gradients and parameters are f32, bf16 or f16";
            self.note("fp16", text);
        }
        let names = ["bf16", "bfloat16"];
        let given: Vec<&str> = names.into_iter().filter(|key| self.has(key)).collect();
        if let Some(former) = given.get(1) {
            self.note(former, "ignored, as by DeepSpeed, since `bf16` is there");
        }
        if let Some(key) = given.first() {
            let enabled = format!("{key}.enabled");
            if self.is_auto(&enabled) || self.flag(&enabled)? == Some(true) {
                let text = "master and moments are fp32; gradients and parameters have the type of \
                            the program's slices, f32, bf16 or f16";
                self.note(key, text);
            }
        }
        Ok(())
    }

    fn has(&self, key: &str) -> bool {
        self.root.get(key).is_some()
    }

    /// Where `fp16.enabled` is `auto`, whether the loss is scaled is decided elsewhere.
    fn undecided_scale(&mut self) -> Result<()> {
        let keys = self.object_at("fp16")?.into_iter().flat_map(|keys| keys.keys());
        let paths: Vec<String> = keys.map(|name| format!("fp16.{name}")).collect();
        let scale = paths.iter().filter(
            |path| matches!(super::fate(path), Some(super::Fate::Mapped(ours)) if !ours.is_empty()),
        );
        for path in scale {
            let text = "not taken over, since `fp16.enabled` is `auto` and leaves it open whether \
                        the loss is scaled; write true there, or set [loss_scale]";
            self.note(path, text);
        }
        Ok(())
    }

    /// The loss scale of an fp16 job, with DeepSpeed's defaults.
    fn loss_scale(&mut self) -> Result<()> {
        let scale = self.float("fp16.loss_scale")?;
        let decides = if scale.is_some() { "fp16.loss_scale" } else { "fp16.enabled" };
        self.comes_from("loss_scale.mode", decides);
        if let Some(scale) = scale.filter(|scale| *scale != 0.0) {
            let ours = &mut self.config.loss_scale;
            (ours.mode, ours.initial) = (LossScaleMode::Static, scale);
            self.comes_from("loss_scale.initial", "fp16.loss_scale");
            return Ok(());
        }
        self.config.loss_scale.mode = LossScaleMode::Dynamic;
        let power = self.scale_number("initial_scale_power", "loss_scale.initial")?;
        self.config.loss_scale.initial = power.exp2();
        let window = self.scale_number("loss_scale_window", "loss_scale.growth_interval")?;
        self.config.loss_scale.growth_interval = window as u64;
        self.whole("fp16.hysteresis")?;
        let hysteresis = self.scale_number("hysteresis", "loss_scale.hysteresis")?;
        self.config.loss_scale.hysteresis = hysteresis as u32;
        let minimum = self.scale_number("min_loss_scale", "loss_scale.minimum")?;
        self.config.loss_scale.minimum = minimum;
        let key = "fp16.consecutive_hysteresis";
        let consecutive = self.flag(key)?;
        self.config.loss_scale.consecutive_hysteresis = consecutive.unwrap_or(false);
        let origin = if consecutive.is_some() { key } else { DEFAULT };
        self.comes_from("loss_scale.consecutive_hysteresis", origin);
        Ok(())
    }

    /// A number of `fp16`, or DeepSpeed's default for it.
    fn scale_number(&mut self, name: &str, ours: &str) -> Result<f64> {
        let key = format!("fp16.{name}");
        if let Some(number) = self.float(&key)? {
            self.comes_from(ours, key);
            return Ok(number);
        }
        self.comes_from(ours, DEFAULT);
        Ok(keys::default_of(&key).and_then(Value::as_f64).unwrap_or_default())
    }

    pub(super) fn accumulation(&mut self) -> Result<()> {
        let key = "data_types.grad_accum_dtype";
        if self.value_at(key)?.is_none_or(Value::is_null) {
            return Ok(());
        }
        let accumulate_in = match self.text(key)?.as_deref() {
            None => return Ok(()),
            Some("fp32" | "float32" | "float" | "torch.float32") => AccumulateIn::F32,
            Some("bf16" | "bfloat16" | "torch.bfloat16") => AccumulateIn::Bf16,
            Some(other) if !OTHER_DTYPES.contains(&other) => {
                let wanted = "fp32, bf16 or fp16";
                return Err(super::wrong_value(key, wanted, &other.into()));
            }
            Some(other) => {
                let text = format!("`{other}` is none of fp32 and bf16; f32 is kept");
                self.note(key, text);
                return Ok(());
            }
        };
        self.config.gradients.accumulate_in = accumulate_in;
        self.comes_from("gradients.accumulate_in", key);
        Ok(())
    }
}
