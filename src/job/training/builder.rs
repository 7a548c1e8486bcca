//! Starting a job: from its drives, from a checkpoint, or anew.

use std::path::PathBuf;
use std::sync::Arc;

use super::super::signals::stop_request;
use super::Training;
use super::origin::Origin;
use super::start::open_furthest;
use crate::checkpoint::{Checkpoints, Progress};
use crate::config::Config;
use crate::coord::{Call, Checked, Communicator, agree};
use crate::error::Result;
use crate::optim::ParamElem;
use crate::partition::Run;
use crate::state::{Inventory, Parameter};
use crate::step::{Sharding, SwappedOptimizer, agree_on_config};

/// A job that has not been started, from [`Training::builder`].
#[must_use = "nothing happens before `start`"]
pub struct TrainingBuilder<'a> {
    config: &'a Config,
    comm: Arc<dyn Communicator>,
    parameters: Vec<Parameter>,
    sharding: Sharding,
    progress: Option<Progress>,
}

impl<'a> TrainingBuilder<'a> {
    pub(super) fn new(config: &'a Config, comm: Arc<dyn Communicator>) -> Self {
        let (parameters, sharding) = (Vec::new(), Sharding::default());
        Self { config, comm, parameters, sharding, progress: None }
    }

    /// Adds parameters of the model, in the order in which they lie end to end. All ranks that
    /// share an inventory add the same.
    pub fn parameters(mut self, parameters: impl IntoIterator<Item = Parameter>) -> Self {
        self.parameters.extend(parameters);
        self
    }

    /// Sets how parameters are dealt to ranks; by default each rank gets one contiguous range.
    pub fn sharding(self, sharding: Sharding) -> Self {
        Self { sharding, ..self }
    }

    /// Sets a function to be called while a checkpoint is saved or loaded, with this rank's bytes
    /// moved so far and in all.
    pub fn progress(self, progress: Progress) -> Self {
        Self { progress: Some(progress), ..self }
    }

    /// Collective: starts the job: from its drives if it has committed steps there, else from its
    /// newest checkpoint, else with masters that `fill` writes: it is given a run of a parameter
    /// (`run.elems` elements of parameter `run.param`, from element `run.param_offset` on) and a
    /// slice of as many values. If the steps on the drives cannot be gone on with here (a drive or
    /// a node is gone, another number of ranks), the newest checkpoint replaces them, with a
    /// warning that names both.
    ///
    /// `P` is the number format of the parameters that steps emit: f32, bf16, f16, or `()` for
    /// none.
    ///
    /// # Errors
    /// Agreed. Usage: a configuration out of range, no drives, no parameters or two of one name,
    /// shards that do not fit; committed steps, or a checkpoint, of another model. Unavailable: a
    /// drive is missing and there is no checkpoint, or a job of the name is alive, on these drives
    /// or on others with the same directory of checkpoints. Cannot create: a drive is too small.
    /// I/O and lost state; errors of `fill`.
    pub fn start<P: ParamElem>(
        self,
        fill: impl FnMut(&Run, &mut [f32]) -> Result<()>,
    ) -> Result<Training<P>> {
        let Self { config, comm, parameters, sharding, progress } = self;
        let comm = Checked::over(comm);
        let _call = Call::enter(&*comm, "Training::start", String::new);
        agree_on_config(&*comm, config)?;
        // From now on a signal is heeded, however long the start takes.
        stop_request();
        let inventory = agree(&*comm, Inventory::new(parameters))?;
        let mut checkpoints = Checkpoints::open(config, Arc::clone(&comm))?;
        if let (Some(checkpoints), Some(progress)) = (&mut checkpoints, progress) {
            checkpoints.set_progress(progress);
        }
        let (mut optimizer, newest) =
            open_furthest(config, &inventory, &sharding, &comm, checkpoints.as_ref())?;
        let mut params = vec![P::emit(0.0); optimizer.partition().elems() as usize];
        let origin = fill_state(&mut optimizer, checkpoints.as_ref(), newest, &mut params, fill)?;
        tracing::info!("{origin}");
        Ok(Training::new(config, optimizer, checkpoints, origin, params))
    }
}

fn fill_state<P: ParamElem>(
    optimizer: &mut SwappedOptimizer,
    checkpoints: Option<&Checkpoints>,
    newest: Option<PathBuf>,
    params: &mut Vec<P>,
    fill: impl FnMut(&Run, &mut [f32]) -> Result<()>,
) -> Result<Origin> {
    if let Some(resumed) = optimizer.resumed().cloned() {
        optimizer.emit_parameters(params)?;
        return Ok(Origin::Drives(resumed));
    }
    let (Some(checkpoints), Some(directory)) = (checkpoints, newest) else {
        optimizer.initialize_parameters(params, fill)?;
        return Ok(Origin::Fresh);
    };
    let user_blob = checkpoints.load(optimizer, &directory, params)?;
    Ok(Origin::Checkpoint { directory, attempt: optimizer.attempts(), user_blob })
}
