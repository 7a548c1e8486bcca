//! The first write of everything, and looking at state between steps.

use half::bf16;

use super::optimizer::SwappedOptimizer;
use super::plan::Plan;
use super::view::{Decoder, StateView, sections_mut, upper_halves};
use crate::coord::{Activity, Phase, agree};
use crate::error::{Error, Result};
use crate::optim::ParamElem;
use crate::partition::Run;
use crate::state::LossScaler;
use crate::swap::{Ending, ResidentChunk, SweepKind};
use crate::units::ChunkIndex;

impl SwappedOptimizer {
    /// Collective: writes the whole state for the first time. `fill` gives the initial master of a
    /// run of a parameter; moments begin as the optimizer declares them, built-in kinds with zero.
    /// A second call starts training anew.
    ///
    /// # Errors
    /// Agreed errors of `fill` or of the drives; usage if the codec of the master needs parameters
    /// to hold its upper halves.
    pub fn initialize_parameters(
        &mut self,
        fill: impl FnMut(&Run, &mut [f32]) -> Result<()>,
    ) -> Result<()> {
        let mut none = vec![(); self.plan.partition().elems() as usize];
        self.initialize_parameters_into(&mut none, fill)
    }

    /// Collective: as [`Self::initialize_parameters`], and emits the parameters of the shard, in
    /// shard order.
    ///
    /// # Errors
    /// As [`Self::initialize_parameters`]; usage if `params` has not the shard's length.
    pub fn initialize_parameters_into<P: ParamElem>(
        &mut self,
        params: &mut [P],
        mut fill: impl FnMut(&Run, &mut [f32]) -> Result<()>,
    ) -> Result<()> {
        self.unusable = Some("its initialisation failed");
        let result = self.write_all(params, &mut |run, arrays| match arrays {
            [master, ..] => fill(run, master),
            [] => Ok(()),
        });
        agree(&*self.comm, result)?;
        self.update_counts.fill(0);
        self.attempts = 0;
        self.loss_scaler = LossScaler::new(self.plan.config().loss_scale.rule());
        self.unusable = None;
        self.commit(&[])
    }

    /// Collective: writes the whole state as it was after `attempts` steps, of which each parameter
    /// took `update_counts`, and emits the parameters. `fill` gives all state tensors of a run: the
    /// master and the moments.
    ///
    /// # Errors
    /// As [`Self::initialize_parameters_into`].
    pub fn restore<P: ParamElem>(
        &mut self,
        attempts: u64,
        update_counts: Vec<u64>,
        user_blob: &[u8],
        params: &mut [P],
        mut fill: impl FnMut(&Run, &mut [&mut [f32]]) -> Result<()>,
    ) -> Result<()> {
        self.unusable = Some("its initialisation failed");
        let result = self.write_all(params, &mut fill);
        agree(&*self.comm, result)?;
        (self.update_counts, self.attempts) = (update_counts, attempts);
        self.user_blob = user_blob.to_vec();
        self.unusable = None;
        self.commit(user_blob)
    }

    fn write_all<P: ParamElem>(
        &mut self,
        params: &mut [P],
        fill: &mut impl FnMut(&Run, &mut [&mut [f32]]) -> Result<()>,
    ) -> Result<()> {
        self.forget_pass();
        // A snapshot of what is overwritten here would be of no state.
        self.snapshot = None;
        self.discard_gradients();
        self.check_params(params)?;
        let _activity = Activity::begin(&*self.comm, Phase::Sweep);
        let mut values = vec![Vec::new(); self.plan.tensors().len()];
        // What is on its way is overwritten, also after a failure.
        self.swapper.recover();
        let (kind, ending) = (SweepKind::Fill, Ending::Written);
        let mut sweep = self.swapper.sweep(kind, ending, &self.slots)?;
        while let Some(mut resident) = sweep.next_chunk()? {
            let index = resident.index();
            let chunk = self.plan.partition().chunk(index);
            let live = chunk.shard_offset as usize..(chunk.shard_offset + chunk.elems) as usize;
            let params = &mut params[live];
            fill_chunk(&self.plan, index, &mut values, fill)?;
            encode_chunk(&self.plan, index, &values, &mut resident, params);
            let layout = self.plan.layout(index);
            let uppers = if self.plan.is_halved() { P::upper_halves(params) } else { &[] };
            self.checksums.take(&self.pool, &layout, index, &resident, uppers);
            self.slots.mark_written(index);
            resident.swap_out();
        }
        sweep.finish()?;
        self.process_io.since_last();
        Ok(())
    }

    /// Whether parameters fit the shard, and can hold upper halves of masters if they must.
    pub(super) fn check_params<P: ParamElem>(&self, params: &[P]) -> Result<()> {
        let elems = self.plan.partition().elems();
        if params.len() as u64 != elems {
            return Err(Error::usage("the slice for parameters has another length than the shard")
                .with("slice", params.len())
                .with("shard", elems));
        }
        if self.plan.is_halved() && P::upper_halves(params).len() != params.len() {
            return Err(Error::usage(
                "with the codec remainder16 the parameters hold the upper halves of the masters, \
                 so they must be bf16",
            )
            .hint("hand in bf16 parameters, or set codecs.master = \"fp32\""));
        }
        Ok(())
    }

    /// Collective: reads the whole state back, in no particular order of chunks, and shows it run
    /// by run. Nothing is written, and nothing counts as part of a step.
    ///
    /// # Errors
    /// Agreed errors of `look` or of the drives; usage if the masters' upper halves are not on the
    /// drives, see [`Self::inspect_with`].
    pub fn inspect(&mut self, look: impl FnMut(StateView<'_>) -> Result<()>) -> Result<()> {
        self.inspect_with::<()>(&[], look)
    }

    /// Collective: as [`Self::inspect`], with the parameters of the shard, which a scratch job with
    /// the codec remainder16 needs: they hold the upper halves of its masters. For all others they
    /// are ignored.
    ///
    /// # Errors
    /// As [`Self::inspect`].
    pub fn inspect_with<P: ParamElem>(
        &mut self,
        params: &[P],
        mut look: impl FnMut(StateView<'_>) -> Result<()>,
    ) -> Result<()> {
        let params = P::upper_halves(params);
        let mut decoder = Decoder::default();
        let result = self.check_usable().and_then(|()| {
            self.read_all(params, |plan, resident, _| {
                let index = resident.index();
                let chunk = plan.partition().chunk(index);
                let values = decoder.decode(plan, index, resident, params);
                let mut runs = plan.partition().runs_of(index).iter();
                runs.try_for_each(|run| {
                    let at = run.in_chunk(chunk);
                    let values: Vec<&[f32]> = values.iter().map(|it| &it[at.clone()]).collect();
                    let parameter = plan.inventory().parameter(run.param);
                    look(StateView { run, parameter, master: values[0], moments: &values[1..] })
                })
            })
        });
        agree(&*self.comm, result)
    }

    /// Reads every chunk back, compares it with its checksums, and shows it with them; not agreed.
    /// `params` are those of the shard, for masters whose upper halves are not on the drives.
    pub(super) fn read_all(
        &mut self,
        params: &[bf16],
        mut look: impl FnMut(&Plan, &ResidentChunk, &[u32]) -> Result<()>,
    ) -> Result<()> {
        let needs_params = self.plan.is_halved() && !self.plan.config().is_durable();
        if needs_params && params.len() as u64 != self.plan.partition().elems() {
            return Err(Error::usage(
                "the upper halves of the masters are not on the drives, but in the parameters",
            )
            .hint("hand in the bf16 parameters of the shard that the last step emitted"));
        }
        let _activity = Activity::begin(&*self.comm, Phase::Sweep);
        // What was on its way before still counts.
        self.swapper.settle()?;
        self.record_moved();
        // What follows is of no step.
        self.recorder.spans().turn(false, 0);
        let (kind, ending) = (SweepKind::Inspect, Ending::Written);
        let mut sweep = self.swapper.sweep(kind, ending, &self.slots)?;
        while let Some(resident) = sweep.next_chunk()? {
            let index = resident.index();
            let extent = self.slots.read_extent(index);
            let uppers =
                upper_halves(&self.plan, index, &self.plan.layout(index), &resident, params);
            self.checksums.verify(&self.pool, &self.plan, index, extent, &resident, uppers)?;
            look(&self.plan, &resident, self.checksums.of(index))?;
        }
        sweep.finish()?;
        self.process_io.since_last();
        Ok(())
    }
}

/// Lets the caller give the values of one chunk, padding included, which stays zero.
fn fill_chunk(
    plan: &Plan,
    index: ChunkIndex,
    values: &mut [Vec<f32>],
    fill: &mut impl FnMut(&Run, &mut [&mut [f32]]) -> Result<()>,
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
        fill(run, &mut arrays)?;
    }
    Ok(())
}

/// Encodes the values of a chunk, padding included, into its extent and emits its parameters.
pub(super) fn encode_chunk<P: ParamElem>(
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
