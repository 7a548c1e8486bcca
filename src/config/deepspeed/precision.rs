//! Number formats and the loss scale.

use serde_json::Value;

use super::{Import, is_auto, to_flag, value_at, wrong_type};
use crate::config::{AccumulateIn, LossScaleMode};
use crate::error::Result;

impl Import {
    pub(super) fn precision(&mut self, root: &Value) -> Result<()> {
        if self.is_enabled(root, "fp16")? {
            self.loss_scale(root)?;
            let text = "the program multiplies its loss by SwappedOptimizer::loss_scaler().scale() \
                        before each step; all ranks skip a step with an infinity or NaN, and the \
                        scale follows; gradients and parameters are f32, bf16 or f16";
            self.note("fp16", text);
        }
        for key in ["bf16", "bfloat16"] {
            if self.is_enabled(root, key)? {
                let text = "master and moments are fp32; gradients and parameters have the type of \
                            the program's slices, f32, bf16 or f16";
                self.note(key, text);
            }
        }
        Ok(())
    }

    /// The loss scale of an fp16 job, with DeepSpeed's defaults. Where `fp16.enabled` is `auto`,
    /// nothing is set.
    fn loss_scale(&mut self, root: &Value) -> Result<()> {
        if value_at(root, "fp16.enabled")?.is_some_and(is_auto) {
            return Ok(());
        }
        let scale = self.float(root, "fp16.loss_scale")?.unwrap_or(0.0);
        let ours = &mut self.config.loss_scale;
        if scale != 0.0 {
            (ours.mode, ours.initial) = (LossScaleMode::Static, scale);
            self.comes_from("loss_scale.mode", "fp16.loss_scale");
            self.comes_from("loss_scale.initial", "fp16.loss_scale");
            return Ok(());
        }
        ours.mode = LossScaleMode::Dynamic;
        self.comes_from("loss_scale.mode", "fp16.loss_scale");
        let power = self.float(root, "fp16.initial_scale_power")?;
        self.config.loss_scale.initial = power.unwrap_or(16.0).exp2();
        self.comes_from("loss_scale.initial", origin_of("fp16.initial_scale_power", power));
        let window = self.whole(root, "fp16.loss_scale_window")?;
        self.config.loss_scale.growth_interval = window.unwrap_or(1000);
        self.comes_from("loss_scale.growth_interval", origin_of("fp16.loss_scale_window", window));
        let hysteresis = self.whole(root, "fp16.hysteresis")?;
        self.config.loss_scale.hysteresis = hysteresis.unwrap_or(2).try_into().unwrap_or(u32::MAX);
        self.comes_from("loss_scale.hysteresis", origin_of("fp16.hysteresis", hysteresis));
        let consecutive = self.flag(root, "fp16.consecutive_hysteresis")?;
        self.config.loss_scale.consecutive_hysteresis = consecutive.unwrap_or(false);
        let origin = origin_of("fp16.consecutive_hysteresis", consecutive);
        self.comes_from("loss_scale.consecutive_hysteresis", origin);
        let minimum = self.float(root, "fp16.min_loss_scale")?;
        self.config.loss_scale.minimum = minimum.unwrap_or(1.0);
        self.comes_from("loss_scale.minimum", origin_of("fp16.min_loss_scale", minimum));
        Ok(())
    }

    pub(super) fn accumulation(&mut self, root: &Value) -> Result<()> {
        let key = "data_types.grad_accum_dtype";
        match self.text(root, key)?.as_deref() {
            None => {}
            Some("fp32") => {
                self.config.gradients.accumulate_in = AccumulateIn::F32;
                self.comes_from("gradients.accumulate_in", key);
            }
            Some("bf16") => {
                self.config.gradients.accumulate_in = AccumulateIn::Bf16;
                self.comes_from("gradients.accumulate_in", key);
            }
            Some(other) => {
                let text = format!("`{other}` is none of fp32 and bf16; f32 is kept");
                self.note(key, text);
            }
        }
        Ok(())
    }

    /// Whether a precision is on, or may be on (`auto`).
    fn is_enabled(&self, root: &Value, section: &str) -> Result<bool> {
        let key = format!("{section}.enabled");
        match value_at(root, &key)? {
            None => Ok(false),
            Some(value) if is_auto(value) => Ok(true),
            Some(value) => to_flag(value).ok_or_else(|| wrong_type(&key, "true or false", value)),
        }
    }
}

/// The origin of a value that has a default in DeepSpeed.
fn origin_of<T>(key: &str, given: Option<T>) -> &str {
    if given.is_some() { key } else { "DeepSpeed's default" }
}
