//! Updates that the caller makes with its own code: sub-group by sub-group, checked by the
//! compiler, or by handle.

mod chunk;
mod lent_chunk;
mod pass;
mod purge;
mod sections;
mod sub_groups;
mod update;
mod update_handles;

pub use chunk::{UpdateChunk, UpdateRun};
pub(super) use lent_chunk::LentChunk;
pub(super) use pass::Pass;
pub use sections::{GradientSection, StateSection};
pub use sub_groups::{SubGroup, SubGroups};
pub use update_handles::{Change, UpdateHandles};
