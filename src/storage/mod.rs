//! Where state lies on the drives: trying, locking and preallocating drives' files, the extent
//! layout of a chunk, the placement of extents on stripe units, the slots of chunks, and the
//! records of commits. No tensor data moves here.
//!
//! ```text
//! DRIVE/optswap/profile.toml              what the drive can do, if it was probed
//! DRIVE/optswap/JOB/shard-00003/state     this shard's stripe units on this drive
//!                               owner     who holds it: job, rank, host, pid, boot id (TOML)
//!                               layout    durable jobs: how the shard lies on its drives
//!                               record-0  durable jobs, first drive: commits, in turns
//!                               record-1
//! ```

pub mod balance;
pub mod commit;
mod details;
mod device;
mod directory;
mod drive;
mod extent;
mod filesystem;
mod found;
mod lock;
mod owner;
mod placement;
mod private;
mod profile;
mod record;
mod scratch;
mod shard;
mod shares;
mod slots;
mod space;
mod state_file;
mod trial;

pub use details::DriveDetails;
pub use device::Device;
pub use directory::ShardDirectory;
pub use drive::{Drive, is_forbidden, same_disk, try_drives};
pub use extent::ExtentLayout;
pub use filesystem::{filesystem_of, is_local_filesystem, is_memory_filesystem};
pub use found::FoundShard;
pub use lock::Life;
pub use owner::{Owner, boot_id};
pub use placement::{MovedUnits, Placement, Segment, Shares};
pub use private::PrivateDirectory;
pub use profile::DriveProfile;
pub use record::{Record, RecordFiles, ShardLayout, held};
pub use scratch::scratch_file;
pub use shard::ShardFiles;
pub use shares::normalized;
pub use slots::Slots;
pub use space::{check_file_size, overwrite_in_place};
pub use state_file::StateFile;
pub use trial::DriveTrial;

/// The target of log messages about the drives of a node, which the node's first rank writes.
pub const DRIVES_TARGET: &str = "optswap::drives";
