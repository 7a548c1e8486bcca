//! What saving checkpoints while training goes on costs.

use serde::Serialize;

use super::StateBytes;
use optswap::internals::state::StateTensor;

/// Checkpoints at every so many steps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CheckpointForecast {
    /// From one to the next, in steps.
    pub every: u64,
    /// Bytes of one, of all ranks: the whole state.
    pub bytes: u64,
    /// Seconds that writing one takes; none if it is not known how fast they are written.
    pub seconds: Option<f64>,
    /// Seconds of a step that saves one. It hands its chunks over as they come by, at most two of a
    /// rank ahead, so it takes no less than the writing.
    pub saving_step_seconds: Option<f64>,
    /// Seconds of a step on average.
    pub mean_step_seconds: Option<f64>,
}

impl CheckpointForecast {
    /// Of a model of so many parameters, whose steps take so long; `bytes_per_s` is what all ranks
    /// together write to where checkpoints go.
    pub fn of(
        params: u64,
        tensors: &[StateTensor],
        every: u64,
        bytes_per_s: Option<f64>,
        step_seconds: f64,
    ) -> Self {
        let bytes = params as f64 * StateBytes::of(tensors, true).space;
        let seconds = bytes_per_s.map(|speed| bytes / speed);
        let saving = seconds.map(|seconds| seconds.max(step_seconds));
        let mean = |saving: f64| step_seconds + (saving - step_seconds) / every.max(1) as f64;
        Self {
            every,
            bytes: bytes as u64,
            seconds,
            saving_step_seconds: saving,
            mean_step_seconds: saving.map(mean),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use optswap::internals::config::CodecsConfig;
    use optswap::internals::state::OptimizerKind;

    #[test]
    fn a_step_that_saves_takes_no_less_than_the_writing() {
        let codecs: CodecsConfig = "bf16+remainder16".parse().unwrap();
        let tensors = codecs.state_tensors(OptimizerKind::AdamW);
        let of = |speed| CheckpointForecast::of(1 << 30, &tensors, 10, speed, 2.0);
        // The upper halves of masters are part of a checkpoint.
        let slow = of(Some(1e9));
        assert_eq!(slow.bytes, 8 << 30);
        let seconds = (8u64 << 30) as f64 / 1e9;
        assert_eq!((slow.seconds, slow.saving_step_seconds), (Some(seconds), Some(seconds)));
        assert!((slow.mean_step_seconds.unwrap() - (2.0 + (seconds - 2.0) / 10.0)).abs() < 1e-9);
        assert_eq!(of(Some(1e12)).mean_step_seconds, Some(2.0));
        assert_eq!(of(None).mean_step_seconds, None);
    }
}
