//! The loss scale: what the loss is multiplied by, so that small gradients survive 16-bit formats.
//! It is a pure function of how steps ended, and so the same on every rank.

use serde::{Deserialize, Serialize};

/// How the loss scale follows the overflows of steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossScaleRule {
    /// The scale of the first step: above 0.
    pub initial: f32,
    /// Whether the scale ever changes.
    pub is_dynamic: bool,
    /// What the scale is multiplied by after `growth_interval` steps without an overflow: at least
    /// 1.
    pub growth_factor: f32,
    /// Number of steps without an overflow after which the scale is raised: at least 1.
    pub growth_interval: u64,
    /// What the scale is multiplied by at an overflow: above 0 and below 1.
    pub backoff_factor: f32,
    /// Number of overflows that lower the scale once: at least 1.
    pub hysteresis: u32,
    /// Whether only overflows in consecutive steps count towards `hysteresis`.
    pub consecutive_hysteresis: bool,
    /// The scale is never lowered below this.
    pub minimum: f32,
}

impl LossScaleRule {
    /// The rule of a loss that is not scaled: always 1.
    pub const OFF: Self = Self {
        initial: 1.0,
        is_dynamic: false,
        growth_factor: 1.0,
        growth_interval: 1,
        backoff_factor: 1.0,
        hysteresis: 1,
        consecutive_hysteresis: false,
        minimum: 1.0,
    };
}

/// What a loss scaler remembers from step to step; records and checkpoints hold it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossScalerState {
    /// What the loss of the next step is multiplied by.
    pub scale: f32,
    /// Steps without an overflow since the last change.
    pub good_steps: u64,
    /// Number of overflows after which the scale is lowered: 1 if the next one lowers it.
    pub hysteresis_left: u32,
}

/// What the end of a step did to the scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleChange {
    /// The scale is unchanged.
    Kept,
    /// The scale has been raised.
    Raised,
    /// The scale has been lowered.
    Lowered,
    /// The scale should have been lowered, but is at its minimum.
    AtMinimum,
}

/// A loss scaler like torch's `GradScaler` and DeepSpeed's `DynamicLossScaler`. The two differ in
/// hysteresis, where this one does as DeepSpeed does; with a hysteresis of 1 all are the same.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossScaler {
    rule: LossScaleRule,
    state: LossScalerState,
}

impl LossScaler {
    /// A scaler before its first step.
    pub fn new(rule: LossScaleRule) -> Self {
        let hysteresis_left = rule.hysteresis;
        let state = LossScalerState { scale: rule.initial, good_steps: 0, hysteresis_left };
        Self { rule, state }
    }

    /// What the loss of the next step is to be multiplied by; above 0.
    pub fn scale(&self) -> f32 {
        self.state.scale
    }

    /// What the scaler remembers, for [`Self::restore`].
    pub fn state(&self) -> LossScalerState {
        self.state
    }

    /// Goes on from what an earlier scaler remembered. A scale that never changes stays as it is
    /// configured now.
    pub fn restore(&mut self, state: LossScalerState) {
        if self.rule.is_dynamic {
            let scale = state.scale.max(self.rule.minimum);
            let hysteresis_left = state.hysteresis_left.clamp(1, self.rule.hysteresis);
            self.state = LossScalerState { scale, hysteresis_left, ..state };
        }
    }

    /// Enters the end of a step. `overflowed` says that the step was skipped for an infinity or NaN
    /// on any rank.
    pub fn update(&mut self, overflowed: bool) -> ScaleChange {
        let (rule, state) = (&self.rule, &mut self.state);
        if !rule.is_dynamic {
            return ScaleChange::Kept;
        }
        if overflowed {
            state.good_steps = 0;
            if state.hysteresis_left > 1 {
                state.hysteresis_left -= 1;
                return ScaleChange::Kept;
            }
            if state.scale <= rule.minimum {
                return ScaleChange::AtMinimum;
            }
            state.scale = (state.scale * rule.backoff_factor).max(rule.minimum);
            return ScaleChange::Lowered;
        }
        state.good_steps += 1;
        let is_due = state.good_steps >= rule.growth_interval;
        if rule.consecutive_hysteresis || is_due {
            state.hysteresis_left = rule.hysteresis;
        }
        if !is_due {
            return ScaleChange::Kept;
        }
        state.good_steps = 0;
        let raised = state.scale * rule.growth_factor;
        if !raised.is_finite() {
            return ScaleChange::Kept;
        }
        state.scale = raised;
        ScaleChange::Raised
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dynamic(hysteresis: u32, consecutive_hysteresis: bool) -> LossScaler {
        LossScaler::new(LossScaleRule {
            initial: 16.0,
            is_dynamic: true,
            growth_factor: 2.0,
            growth_interval: 3,
            backoff_factor: 0.5,
            hysteresis,
            consecutive_hysteresis,
            minimum: 4.0,
        })
    }

    fn scales(mut scaler: LossScaler, overflows: &[bool]) -> Vec<f32> {
        let scale_after = |overflowed: &bool| {
            scaler.update(*overflowed);
            scaler.scale()
        };
        overflows.iter().map(scale_after).collect()
    }

    #[test]
    fn it_grows_after_good_steps_and_shrinks_at_once() {
        let seen = scales(dynamic(1, false), &[false, false, false, true, false, false, false]);
        assert_eq!(seen, [16.0, 16.0, 32.0, 16.0, 16.0, 16.0, 32.0]);
    }

    #[test]
    fn hysteresis_bears_some_overflows() {
        // As DeepSpeed: what was borne comes back when the scale grows.
        let seen = scales(dynamic(2, false), &[true, true, true, false, false, false, true, true]);
        assert_eq!(seen, [16.0, 8.0, 4.0, 4.0, 4.0, 8.0, 8.0, 4.0]);
        // Or after every good step.
        let seen = scales(dynamic(2, true), &[true, false, true, true, false, true]);
        assert_eq!(seen, [16.0, 16.0, 16.0, 8.0, 8.0, 8.0]);
    }

    #[test]
    fn it_stays_between_minimum_and_infinity() {
        let mut scaler = dynamic(1, false);
        let changes: Vec<_> = (0..3).map(|_| scaler.update(true)).collect();
        assert_eq!(changes, [ScaleChange::Lowered, ScaleChange::Lowered, ScaleChange::AtMinimum]);
        assert_eq!(scaler.scale(), 4.0);
        scaler.restore(LossScalerState { scale: 2f32.powi(127), ..scaler.state() });
        for _ in 0..9 {
            scaler.update(false);
        }
        assert_eq!(scaler.scale(), 2f32.powi(127));
    }

    #[test]
    fn a_static_scale_never_changes() {
        let rule = LossScaleRule { initial: 128.0, ..LossScaleRule::OFF };
        assert_eq!(scales(LossScaler::new(rule), &[true, false, true]), [128.0; 3]);
    }
}
