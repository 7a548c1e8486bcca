//! What lies where: drives (inspected, opened, preallocated, locked), the extent layout of a chunk,
//! and the placement of extents on stripe units. Metadata only: no tensor data moves here.
//!
//! ```text
//! DRIVE/optswap/JOB/shard-00003/state    this shard's stripe units on this drive
//!                               owner    who holds it: job, rank, host, pid, boot id (TOML)
//! ```
//!
//! Later, records of committed epochs lie beside `state`; a scratch job has none.

mod drive;
mod extent;
mod owner;
mod placement;
mod shard;

pub use drive::{Drive, inspect_drives};
pub use extent::ExtentLayout;
pub use owner::Owner;
pub use placement::{Placement, Segment};
pub use shard::{ShardDirectory, ShardFiles};
