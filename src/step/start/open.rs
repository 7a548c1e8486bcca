//! From configuration and parameters to this rank's plan and its open files, in stages that all
//! ranks agree on. Nothing is created before everything has been checked.

use std::sync::Arc;

use super::super::co_owned::CoOwned;
use super::placement_log;
use super::preflight::{check_node_memory, check_open_files, check_size, check_space, neighbours};
use super::resources::{create_files, draw_job_id, reclaim};
use super::resume;
use super::sharding::{Dealt, Sharding, deal, warn_of_drift};
use super::weights::starting_weights;
use crate::config::Config;
use crate::coord::{Communicator, Group, Topology, agree, agree_on_values};
use crate::error::{Error, Result};
use crate::partition::Cut;
use crate::plan::{Plan, ShardSize};
use crate::state::{Inventory, Parameter};
use crate::storage::{Drive, ShardFiles, try_drives};

/// What happens to committed steps of the job that lie on the drives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Existing {
    /// The job goes on from the newest commit that all ranks have.
    #[default]
    GoOn,
    /// They are overwritten, as for a start from a checkpoint.
    Overwrite,
}

/// How to create an optimizer. The default: contiguous shards of one inventory, and a job that goes
/// on from what it has committed.
#[derive(Clone, Default)]
pub struct CreateOptions {
    /// How parameters are dealt to ranks.
    pub sharding: Sharding,
    /// What happens to committed steps that lie on the drives.
    pub existing: Existing,
}

impl CreateOptions {
    /// Options with this sharding; the job goes on from what it has committed.
    pub fn sharded(sharding: Sharding) -> Self {
        Self { sharding, existing: Existing::GoOn }
    }
}

/// This rank's shard, found or created, before its threads and buffers.
pub(in crate::step) struct Opened {
    pub plan: Plan,
    pub files: ShardFiles,
    pub job_id: String,
    pub group: Group,
    pub co_owned: CoOwned,
    /// The files hold committed steps to go on from.
    pub comes_back: bool,
}

/// What the ranks have found out about each other and their drives, before anything is created.
pub struct Prepared {
    /// This rank's plan.
    pub plan: Plan,
    /// What all ranks bring.
    pub dealt: Dealt,
    /// This rank's drives.
    pub drives: Vec<Drive>,
}

/// Collective: deals parameters to ranks, resolves the plan, and looks at drives. Creates nothing.
///
/// # Errors
/// Those of [`SwappedOptimizer::create`](crate::SwappedOptimizer::create).
pub fn prepare(
    config: &Config,
    inventory: Inventory,
    comm: &Arc<dyn Communicator>,
    topology: &Topology,
    sharding: &Sharding,
) -> Result<Prepared> {
    agree_on_config(&**comm, config)?;
    let config = &agree(&**comm, config.with_drives_found())?;
    let inventory = agree(&**comm, with_groups(config, inventory))?;
    let dealt = deal(&inventory, sharding, comm)?;
    warn_of_drift(config, &inventory, &dealt.group);
    let by_rank: Vec<u32> = (0..comm.size() as u32).collect();
    let allotment = dealt.allot(&by_rank, comm.rank());
    // What closed formulas can judge comes before the tables, which a model that is far too large
    // would fill memory with.
    agree(&**comm, ShardSize::resolve(config, &inventory, &allotment))?;
    let drives = &config.drives;
    agree(&**comm, check_open_files(drives.paths.len()))?;
    let tried = try_drives(&drives.paths, &drives.allow_filesystems, &config.job);
    let drives = agree(&**comm, tried)?;
    placement_log::announce(config, &**comm, topology)?;
    let weights = starting_weights(config, &drives, &**comm, topology)?;
    let weighed = weighed(config, &weights);
    let size = ShardSize::resolve(&weighed, &inventory, &allotment);
    check_size(&weighed, &agree(&**comm, size)?, &drives, &**comm, topology)?;
    let plan = agree(&**comm, Plan::resolve(&weighed, inventory, &allotment))?;
    Ok(Prepared { plan, dealt, drives })
}

/// Collective: prepares, looks at space and memory, and then opens the files of a job that goes on,
/// or creates those of a new one.
///
/// # Errors
/// Those of [`SwappedOptimizer::create`](crate::SwappedOptimizer::create).
pub(in crate::step) fn open_files(
    config: &Config,
    inventory: Inventory,
    comm: &Arc<dyn Communicator>,
    topology: &Topology,
    options: &CreateOptions,
) -> Result<Opened> {
    let Prepared { plan, dealt, drives } =
        prepare(config, inventory, comm, topology, &options.sharding)?;
    let config = &plan.config().clone();
    let found = match options.existing {
        Existing::GoOn => resume::reopen(config, plan.inventory(), &dealt, &drives, &**comm)?,
        Existing::Overwrite => None,
    };
    let comes_back = found.is_some();
    let (plan, files, job_id) = match found {
        Some(found) => {
            check_node_memory(&found.0, &**comm, topology)?;
            found
        }
        None => {
            check_node_memory(&plan, &**comm, topology)?;
            let job_id = draw_job_id(config, &**comm)?;
            let directories = check_space(&plan, &drives, &**comm, topology)?;
            // All ranks remove old files before any rank allocates, since ranks of a node share the
            // drives.
            agree(&**comm, reclaim(config, comm.size() as u32, &directories))?;
            let created = create_files(&plan, &**comm, directories, &drives, &job_id);
            let files = agree(&**comm, created)?;
            (plan, files, job_id)
        }
    };
    agree(&**comm, neighbours(&plan))?;
    let co_owned = match plan.allotment().cut {
        Cut::Contiguous { .. } => {
            CoOwned::of_ranges(plan.inventory(), &plan.ranges(), &dealt.group)
        }
        Cut::Own(_) => dealt.co_owned,
    };
    Ok(Opened { plan, files, job_id, group: dealt.group, co_owned, comes_back })
}

/// Collective: checks that all ranks have the same configuration, as far as it decides what a step
/// does or which collectives ranks call.
///
/// # Errors
/// Usage, agreed, with keys, ranks and values.
pub(crate) fn agree_on_config(comm: &dyn Communicator, config: &Config) -> Result<()> {
    let values = agree(comm, config.shared_values())?;
    let hint = "start all ranks with the same flags and the same file; a stale copy of it on one \
                node is a usual reason";
    agree_on_values(comm, "ranks have different configurations", hint, &values)
}

/// Puts parameters of the default group into the groups that the configuration names for them.
fn with_groups(config: &Config, inventory: Inventory) -> Result<Inventory> {
    let groups = config.optimizer.groups.len() + 1;
    let mut parameters = Vec::with_capacity(inventory.parameters().len());
    for parameter in inventory.parameters() {
        let group = match parameter.group {
            0 => config.optimizer.group_of(&parameter.name),
            group => group,
        };
        if group >= groups {
            return Err(Error::usage("a parameter is in a group that is not configured")
                .with("parameter", &parameter.name)
                .with("group", group)
                .with("groups", groups));
        }
        parameters.push(Parameter { group, ..parameter.clone() });
    }
    for (index, group) in config.optimizer.groups.iter().enumerate() {
        if !parameters.iter().any(|parameter| parameter.group == index + 1) {
            tracing::warn!(
                "optimizer.groups: no parameter is in the group of the names {}",
                group.names.join(", ")
            );
        }
    }
    Inventory::new(parameters)
}

/// The configuration with these weights of the drives.
fn weighed(config: &Config, weights: &[f64]) -> Config {
    let mut weighed = config.clone();
    if config.drive_weights() != weights {
        weights.clone_into(&mut weighed.drives.weights);
    }
    weighed
}
