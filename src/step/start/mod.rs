//! From a configuration to an open shard: checks, the job on the drives or a new one, files,
//! buffers and threads.

mod open;
mod placement_log;
mod preflight;
mod resources;
mod resume;
mod sharding;
mod weights;

pub(crate) use open::agree_on_config;
pub use open::{CreateOptions, Existing, Prepared, prepare};
pub(super) use open::{Opened, open_files};
pub(super) use resources::{open_records, open_threads};
pub(crate) use resume::as_it_lies;
pub use resume::{Choice, Sight, choose};
pub use sharding::{Dealt, Expected, Sharding, Shards};
