//! The first write of everything: masters by the caller, moments as the optimizer declares them, or
//! all of it from a checkpoint.

use super::optimizer::SwappedOptimizer;
use super::parameters::ParameterSink;
use super::view::sections_mut;
use crate::coord::{Activity, Phase, agree};
use crate::error::{Error, Result};
use crate::optim::ParamElem;
use crate::partition::Run;
use crate::plan::Plan;
use crate::state::{LossScaler, MASTER, Parameter};
use crate::swap::{Ending, SweepKind};
use crate::units::ChunkIndex;

impl SwappedOptimizer {
    /// Collective: writes the whole state for the first time, and emits the parameters of the
    /// shard, in shard order, into `params`. `fill` writes the initial masters of a run:
    /// `run.elems` elements of parameter `run.param`, from element `run.param_offset` on. Moments
    /// begin as the optimizer declares them, those of built-in kinds with zero. A durable job
    /// commits this state.
    ///
    /// # Errors
    /// Agreed. Usage if there are committed steps to go on from ([`Self::resumed`]), which would be
    /// lost; nothing has changed then ([`Self::restart_training`] overwrites them). Usage if
    /// `params` does not fit the shard, or the codec of the master needs bf16 parameters. Usage if
    /// a master is NaN or infinite; nothing is committed then. Errors of `fill`, and of the drives.
    pub fn initialize_parameters<S: ParameterSink + ?Sized>(
        &mut self,
        params: &mut S,
        fill: impl FnMut(&Run, &mut [f32]) -> Result<()>,
    ) -> Result<()> {
        let _call = self.enter("initialize_parameters");
        agree(&*self.comm, self.check_nothing_lost())?;
        self.restart_training(params, fill)
    }

    /// Collective: begins training anew, and overwrites whatever this optimizer has trained or gone
    /// on from, committed steps included. Otherwise the same as [`Self::initialize_parameters`].
    ///
    /// # Errors
    /// Agreed. Usage if `params` does not fit the shard, or the codec of the master needs bf16
    /// parameters; usage if a master is NaN or infinite. Errors of `fill`, and of the drives.
    pub fn restart_training<S: ParameterSink + ?Sized>(
        &mut self,
        params: &mut S,
        mut fill: impl FnMut(&Run, &mut [f32]) -> Result<()>,
    ) -> Result<()> {
        let _call = self.enter("restart_training");
        self.progress.unusable = Some("its initialisation failed");
        let result = self.write_all(params, &mut |parameter, run, arrays| match arrays {
            [master, ..] => {
                fill(run, master)?;
                parameter.check_finite(MASTER, run.param_offset, master)
            }
            [] => Ok(()),
        });
        agree(&*self.comm, result)?;
        self.progress.update_counts.fill(0);
        self.progress.attempts = 0;
        self.progress.user_blob.clear();
        self.progress.loss_scaler = LossScaler::new(self.shard.plan.config().loss_scale.rule());
        self.resumed = None;
        self.commit()
    }

    /// Collective: writes the whole state as it was after `attempts` steps, of which each parameter
    /// took `update_counts`, and emits the parameters. `fill` gives all state tensors of a run: the
    /// master and the moments.
    ///
    /// # Errors
    /// Agreed. Usage if `params` does not fit the shard, or the codec of the master needs bf16
    /// parameters. Errors of `fill`, and of the drives.
    pub(crate) fn restore<S: ParameterSink + ?Sized>(
        &mut self,
        attempts: u64,
        update_counts: Vec<u64>,
        user_blob: &[u8],
        params: &mut S,
        mut fill: impl FnMut(&Run, &mut [&mut [f32]]) -> Result<()>,
    ) -> Result<()> {
        let _call = self.enter("load");
        self.progress.unusable = Some("its initialisation failed");
        let result = self.write_all(params, &mut |_, run, arrays| fill(run, arrays));
        agree(&*self.comm, result)?;
        (self.progress.update_counts, self.progress.attempts) = (update_counts, attempts);
        self.progress.user_blob = user_blob.to_vec();
        self.commit()
    }

    fn check_nothing_lost(&self) -> Result<()> {
        let Some(resumed) = &self.resumed else { return Ok(()) };
        Err(Error::usage("the job has committed steps, which an initialisation would overwrite")
            .with("job", &self.shard.plan.config().job)
            .with("committed", format!("step {}", resumed.attempt))
            .hint(
                "go on from them: emit_parameters gives the parameters, and Training does all of \
                 it; or call restart_training to lose them",
            ))
    }

    fn write_all<S: ParameterSink + ?Sized>(
        &mut self,
        params: &mut S,
        fill: &mut impl FnMut(&Parameter, &Run, &mut [&mut [f32]]) -> Result<()>,
    ) -> Result<()> {
        self.forget_pass();
        // A snapshot that is under way would mix old and new state.
        self.snapshot = None;
        self.discard_gradients();
        self.shard.check_params(params)?;
        let _activity = Activity::begin(&*self.comm, Phase::Sweep);
        let shard = &mut self.shard;
        let plan = &shard.plan;
        let mut values = vec![Vec::new(); plan.tensors().len()];
        // All of the state is overwritten, so what is on its way does not matter, nor whether it
        // fails.
        shard.swapper.recover();
        let mut sweep = shard.swapper.sweep(SweepKind::Fill, Ending::Written, &shard.slots)?;
        while let Some(mut resident) = sweep.next_chunk()? {
            let index = resident.index();
            let live = plan.partition().chunk(index).in_shard();
            let section = params.section(live.clone());
            fill_chunk(plan, index, &mut values, fill)?;
            encode_chunk(plan, index, &values, &mut resident, section);
            let layout = plan.layout(index);
            let uppers = if plan.is_halved() { S::Elem::upper_halves(section) } else { &[] };
            shard.checksums.take(&shard.pool, &layout, index, &resident, uppers);
            params.emitted(live)?;
            shard.slots.mark_written(index);
            resident.swap_out();
        }
        sweep.finish()?;
        self.watch.forget_kernel();
        Ok(())
    }
}

/// Fills the arrays of one chunk with initial values, and lets the caller write those of its runs.
/// Padding stays zero.
fn fill_chunk(
    plan: &Plan,
    index: ChunkIndex,
    values: &mut [Vec<f32>],
    fill: &mut impl FnMut(&Parameter, &Run, &mut [&mut [f32]]) -> Result<()>,
) -> Result<()> {
    let chunk = plan.partition().chunk(index);
    for (values, tensor) in values.iter_mut().zip(plan.tensors()) {
        values.clear();
        values.resize(chunk.elems as usize, tensor.initial);
        values.resize(chunk.padded_elems as usize, 0.0);
    }
    for run in plan.partition().runs_of(index) {
        let at = run.in_chunk(chunk);
        let mut arrays: Vec<&mut [f32]> =
            values.iter_mut().map(|values| &mut values[at.clone()]).collect();
        fill(plan.inventory().parameter(run.param), run, &mut arrays)?;
    }
    Ok(())
}

/// Encodes the values of a chunk, padding included, into its extent and emits its parameters.
pub(crate) fn encode_chunk<P: ParamElem>(
    plan: &Plan,
    index: ChunkIndex,
    values: &[Vec<f32>],
    bytes: &mut [u8],
    params: &mut [P],
) {
    let (mut sections, uppers) = sections_mut(plan, index, bytes);
    if !plan.is_halved() {
        params.iter_mut().zip(&values[0]).for_each(|(param, master)| *param = P::emit(*master));
    }
    for (section, values) in sections.iter_mut().zip(values) {
        section.encode_nearest(values, P::upper_halves_mut(params));
    }
    if !uppers.is_empty() {
        let halves = P::upper_halves(params);
        uppers[..halves.len()].copy_from_slice(halves);
    }
}
