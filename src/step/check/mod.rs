//! Holding the state on the drives against what it should be: a twin in memory, digests, synthetic
//! data.

mod digest;
mod synthetic;
mod verify;

pub use synthetic::{fill_synthetic_gradients, fill_synthetic_masters};
pub use verify::{ReferenceUpdate, Verifier};
