//! `[gradients]` and `[loss_scale]`: what happens to gradients before the update.

use serde::{Deserialize, Serialize};

use super::demand;
use crate::error::Result;
use crate::state::{LossScaleRule, names};

/// `[gradients]`: where gradients are kept until the step, and what happens if some are missing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GradientsConfig {
    /// Where gradients are kept that are handed over during the backward pass: `caller` (default),
    /// `memory`, `drives` or `auto`.
    pub place: GradientPlace,
    /// The number format in which they are accumulated over micro-batches: `f32` (default) or
    /// `bf16`.
    pub accumulate_in: AccumulateIn,
    /// What a step does about a parameter without a gradient: `skip` (default), `zero` or `error`.
    pub missing: MissingGradient,
}

/// Where gradients are kept between their hand-over and the step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GradientPlace {
    /// In the caller's memory: the step borrows them, and nothing is accumulated.
    #[default]
    Caller,
    /// In memory of optswap, within `swap.memory_budget`.
    Memory,
    /// On the drives, beside the state.
    Drives,
    /// In memory as far as the budget goes, the rest on the drives.
    Auto,
}

names! { GradientPlace:
    "caller" = Caller,
    "memory" = Memory,
    "drives" = Drives,
    "auto" = Auto,
}

/// The format of accumulated gradients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccumulateIn {
    /// 4 bytes for each element.
    #[default]
    F32,
    /// 2 bytes for each element: every sum is rounded to nearest, ties to even.
    Bf16,
}

names! { AccumulateIn:
    "f32" = F32,
    "bf16" = Bf16,
}

impl AccumulateIn {
    /// Bytes of one element in this format.
    pub fn elem_bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// What a step does about a parameter without a gradient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MissingGradient {
    /// The parameter is not updated, as torch skips a gradient of `None`.
    #[default]
    Skip,
    /// The parameter is updated with a gradient of zero: moments and weight decay go on.
    Zero,
    /// The step is refused.
    Error,
}

names! { MissingGradient:
    "skip" = Skip,
    "zero" = Zero,
    "error" = Error,
}

/// `[loss_scale]`: what the loss is multiplied by, so that small gradients survive 16-bit formats.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LossScaleConfig {
    /// `off` (default), `static` or `dynamic`.
    pub mode: LossScaleMode,
    /// The scale of the first step, or of all steps: above 0, a number that f32 can hold twice, and
    /// in `dynamic` mode at least `minimum`. Default 65,536.
    pub initial: f64,
    /// What the scale is multiplied by after `growth_interval` steps without an overflow: finite
    /// and at least 1. Default 2.
    pub growth_factor: f64,
    /// Number of steps without an overflow after which the scale is raised: at least 1. Default
    /// 2,000.
    pub growth_interval: u64,
    /// What the scale is multiplied by at an overflow: above 0 and below 1. Default 0.5.
    pub backoff_factor: f64,
    /// Number of overflows that lower the scale once: at least 1. Default 1.
    pub hysteresis: u32,
    /// Whether only overflows in consecutive steps count towards `hysteresis`. Default false.
    pub consecutive_hysteresis: bool,
    /// The scale is never lowered below this: above 0, a number that f32 can hold twice. Default 1.
    pub minimum: f64,
}

/// Whether the loss is scaled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossScaleMode {
    /// It is not scaled, or the program scales it.
    #[default]
    Off,
    /// It is always multiplied by the same number.
    Static,
    /// It is multiplied by a number that follows overflows.
    Dynamic,
}

names! { LossScaleMode:
    "off" = Off,
    "static" = Static,
    "dynamic" = Dynamic,
}

impl Default for LossScaleConfig {
    fn default() -> Self {
        Self {
            mode: LossScaleMode::Off,
            initial: 65_536.0,
            growth_factor: 2.0,
            growth_interval: 2000,
            backoff_factor: 0.5,
            hysteresis: 1,
            consecutive_hysteresis: false,
            minimum: 1.0,
        }
    }
}

impl LossScaleConfig {
    /// The rule that this section describes.
    pub fn rule(&self) -> LossScaleRule {
        let initial = self.initial as f32;
        match self.mode {
            LossScaleMode::Off => LossScaleRule::OFF,
            LossScaleMode::Static => LossScaleRule { initial, ..LossScaleRule::OFF },
            LossScaleMode::Dynamic => LossScaleRule {
                initial,
                is_dynamic: true,
                growth_factor: self.growth_factor as f32,
                growth_interval: self.growth_interval,
                backoff_factor: self.backoff_factor as f32,
                hysteresis: self.hysteresis,
                consecutive_hysteresis: self.consecutive_hysteresis,
                minimum: self.minimum as f32,
            },
        }
    }

    pub(super) fn validate(&self) -> Result<()> {
        let Self { initial, growth_factor, backoff_factor, minimum, .. } = *self;
        // Gradients are divided by the scale in f32.
        let is_scale = |value: f64| {
            value >= f64::from(f32::MIN_POSITIVE) && value <= f64::from(f32::MAX) / 2.0
        };
        let allowed = "above 0 and a number of f32";
        demand(is_scale(initial), "loss_scale.initial", initial, allowed)?;
        demand(is_scale(minimum), "loss_scale.minimum", minimum, allowed)?;
        if self.mode == LossScaleMode::Dynamic {
            let allowed = format!("at least loss_scale.minimum ({minimum})");
            demand(initial >= minimum, "loss_scale.initial", initial, &allowed)?;
        }
        let in_range = growth_factor.is_finite() && growth_factor >= 1.0;
        demand(in_range, "loss_scale.growth_factor", growth_factor, "finite and at least 1")?;
        let in_range = backoff_factor > 0.0 && backoff_factor < 1.0;
        demand(in_range, "loss_scale.backoff_factor", backoff_factor, "above 0 and below 1")?;
        let (interval, hysteresis) = (self.growth_interval, self.hysteresis);
        demand(interval >= 1, "loss_scale.growth_interval", interval, "at least 1")?;
        demand(hysteresis >= 1, "loss_scale.hysteresis", hysteresis, "at least 1")
    }
}
