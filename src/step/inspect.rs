//! Reading state back between steps.

use half::bf16;

use super::optimizer::SwappedOptimizer;
use super::parameters::ParameterSink;
use super::view::{Decoder, StateView};
use crate::coord::{Activity, Phase, agree};
use crate::error::Result;
use crate::optim::{ParamElem, split_halves};
use crate::plan::Plan;
use crate::swap::ResidentChunk;

impl SwappedOptimizer {
    /// Collective: reads the whole state of this rank's shard back, in no particular order of
    /// chunks, and calls `look` with it run by run. Nothing is written, and nothing counts as part
    /// of a step.
    ///
    /// `params` are the parameters of the shard, in shard order, as they were emitted last. Only a
    /// scratch job with the codec remainder16 needs them, since they hold the upper halves of its
    /// masters; [`NO_PARAMETERS`](crate::NO_PARAMETERS) does for all others.
    ///
    /// # Errors
    /// Agreed: errors of `look` and of the drives; usage if `params` are needed and missing.
    pub fn inspect<P: ParamElem>(
        &mut self,
        params: &[P],
        mut look: impl FnMut(StateView<'_>) -> Result<()>,
    ) -> Result<()> {
        let _call = self.enter("inspect");
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

    /// Collective: emits the parameters of the shard from the masters on the drives, in shard
    /// order.
    ///
    /// # Errors
    /// Agreed. Usage if `params` does not fit the shard, or for a scratch job with the codec
    /// remainder16, where the upper halves of the masters are in the parameters only. Errors of the
    /// drives.
    pub fn emit_parameters<S: ParameterSink + ?Sized>(&mut self, params: &mut S) -> Result<()> {
        let _call = self.enter("emit_parameters");
        agree(&*self.comm, self.shard.check_params(params))?;
        let is_halved = self.shard.plan.is_halved();
        let mut decoder = Decoder::default();
        let result = self.check_usable().and_then(|()| {
            self.read_all(&[], |plan, resident, _| {
                let index = resident.index();
                let live = plan.partition().chunk(index).in_shard();
                let masters = &decoder.decode(plan, index, resident, &[])[0][..live.len()];
                emit(params.section(live.clone()), masters, is_halved);
                params.emitted(live)
            })
        });
        agree(&*self.comm, result)
    }

    /// Reads every chunk back, compares it with its checksums, and calls `look` with both; not
    /// agreed. `params` are those of the shard, for masters whose upper halves are not on the
    /// drives.
    pub(super) fn read_all(
        &mut self,
        params: &[bf16],
        look: impl FnMut(&Plan, &ResidentChunk, &[u32]) -> Result<()>,
    ) -> Result<()> {
        let _activity = Activity::begin(&*self.comm, Phase::Sweep);
        // What was on its way before is recorded with the last step.
        self.shard.swapper.settle()?;
        self.record_moved();
        // What follows belongs to no step.
        self.watch.recorder.spans().turn(false, 0);
        self.shard.read_all(params, look)?;
        self.watch.forget_kernel();
        Ok(())
    }
}

fn emit<P: ParamElem>(params: &mut [P], masters: &[f32], is_halved: bool) {
    if is_halved {
        let halves = P::upper_halves_mut(params).iter_mut().zip(masters);
        halves.for_each(|(upper, master)| *upper = split_halves(*master).0);
    } else {
        params.iter_mut().zip(masters).for_each(|(param, master)| *param = P::emit(*master));
    }
}
