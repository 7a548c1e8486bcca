//! Bytes per parameter, by the codecs of the state tensors.

use serde::Serialize;

use crate::error::{Error, Result};

/// What one parameter's state of AdamW takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct StateBytes {
    /// The codecs' names.
    pub codec: &'static str,
    /// Space in one slot.
    pub space: f64,
    /// Read in a step.
    pub read: f64,
    /// Written in a step.
    pub written: f64,
}

/// Codec, and bytes read and written in a step of a scratch job. int8 has a scale for each block of
/// elements, which makes the fractions.
const CODECS: [(&str, f64); 6] = [
    ("fp32", 12.0),
    ("remainder16", 10.0),
    ("bf16", 8.0),
    ("bf16+remainder16", 6.0),
    ("int8", 6.03),
    ("int8+remainder16", 4.03),
];

impl StateBytes {
    /// The bytes of a codec. A durable job also writes the half of the master that the training
    /// job's own parameters hold: they do not survive it.
    ///
    /// # Errors
    /// Usage, naming all codecs, if there is none of this name.
    pub fn of(codec: &str, is_durable: bool) -> Result<Self> {
        let found = CODECS.iter().find(|(name, _)| *name == codec);
        let Some((codec, moved)) = found else {
            let names = CODECS.map(|(name, _)| name);
            return Err(Error::usage("there is no such codec")
                .with("codec", codec)
                .hint(format!("known: {}", names.join(", "))));
        };
        let high_half = if is_durable && codec.ends_with("remainder16") { 2.0 } else { 0.0 };
        let written = moved + high_half;
        Ok(Self { codec, space: written, read: *moved, written })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durable_jobs_write_the_high_half_too() {
        let bytes = |codec, durable| StateBytes::of(codec, durable).map(|it| (it.read, it.written));
        assert_eq!(bytes("fp32", true).unwrap(), (12.0, 12.0));
        assert_eq!(bytes("remainder16", false).unwrap(), (10.0, 10.0));
        assert_eq!(bytes("remainder16", true).unwrap(), (10.0, 12.0));
        assert_eq!(bytes("int8+remainder16", false).unwrap(), (4.03, 4.03));
        assert!(bytes("fp8", false).unwrap_err().to_string().contains("bf16+remainder16"));
    }
}
