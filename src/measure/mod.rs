//! Measuring: drives by themselves, and the swapper in the benchmark and in tuning. It prints
//! nothing; what it finds are values for `report`.

mod probe;

pub use probe::{DriveProbe, NodeProbe, ProbeOptions, probe_nodes};
