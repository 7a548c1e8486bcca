//! Bytes per parameter, by the codecs of the state tensors.

use serde::Serialize;

use optswap::internals::state::StateTensor;
use optswap::internals::storage::ExtentLayout;

/// So many elements that rounding to whole sectors makes no difference.
const MANY_ELEMS: u64 = 1 << 20;

/// What one parameter's optimizer state takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct StateBytes {
    /// Space in one slot.
    pub space: f64,
    /// Read in a step.
    pub read: f64,
    /// Written in a step.
    pub written: f64,
}

impl StateBytes {
    /// The bytes of these tensors. With the codec remainder16, the training program's parameters
    /// hold the upper halves of the masters. They do not survive the process, so a durable job
    /// writes those halves too.
    pub fn of(tensors: &[StateTensor], is_durable: bool) -> Self {
        let layout = ExtentLayout::new(MANY_ELEMS, tensors, is_durable);
        let [read, written] =
            [layout.swap_in_bytes(), layout.bytes()].map(|bytes| bytes as f64 / MANY_ELEMS as f64);
        Self { space: written, read, written }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use optswap::internals::config::CodecsConfig;
    use optswap::internals::state::OptimizerKind;

    pub fn adamw(codecs: &str, is_durable: bool) -> StateBytes {
        let codecs: CodecsConfig = codecs.parse().unwrap();
        StateBytes::of(&codecs.state_tensors(OptimizerKind::AdamW), is_durable)
    }

    #[test]
    fn durable_jobs_write_the_upper_half_too() {
        let bytes = |codecs, is_durable| {
            let StateBytes { read, written, .. } = adamw(codecs, is_durable);
            [read, written].map(|bytes| (bytes * 100.0).round() / 100.0)
        };
        assert_eq!(bytes("fp32", true), [12.0, 12.0]);
        assert_eq!(bytes("remainder16", false), [10.0, 10.0]);
        assert_eq!(bytes("remainder16", true), [10.0, 12.0]);
        assert_eq!(bytes("bf16+remainder16", false), [6.0, 6.0]);
        assert_eq!(bytes("int8", false), [6.03, 6.03]);
        assert_eq!(bytes("int8+remainder16", false), [4.03, 4.03]);
    }
}
