//! Measurements of drives by themselves, and of the swapper in the benchmark and in tuning. Nothing
//! is printed here: results are values, which `report` turns into text.

mod bench;
mod calibrate;
mod node;
mod probe;
mod search;
mod tune;
mod workload;

pub use bench::{BenchOptions, BenchRun, GradientFormat, Repetition, run_bench};
pub use calibrate::{CollectiveSpeed, ProcessorSpeed, measure_collectives, measure_processors};
pub use node::{NodeDrive, NodeFacts, RankPlace, survey};
pub use probe::{DriveProbe, NodeProbe, ProbeOptions, probe_nodes};
pub use search::{Setting, Trial};
pub use tune::{Tuning, tune};
pub use workload::synthetic_inventory;
