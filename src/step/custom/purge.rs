//! All state but the masters, as it was before the first step.

use super::super::optimizer::SwappedOptimizer;
use super::super::parameters::ParameterSink;
use super::super::step::halves_of;
use super::super::view::sections_mut;
use crate::coord::{Activity, Phase, agree};
use crate::error::Result;
use crate::swap::{Ending, SweepKind};

impl SwappedOptimizer {
    /// Collective: drops all state but the masters. Moments begin anew as the optimizer declares
    /// them, and update counts at 0; a durable job commits this state. (DeepSpeed's `purge_state`.)
    /// `params` are the parameters of the shard as they were emitted last, which the codec
    /// remainder16 needs: they hold the upper halves of its masters.
    ///
    /// # Errors
    /// Agreed. Usage if `params` does not fit the shard or is not what was emitted last. After
    /// errors of the drives the optimizer is unusable; a durable job can go back to its last commit
    /// with [`Self::recover`].
    pub fn purge_state<S: ParameterSink + ?Sized>(&mut self, params: &mut S) -> Result<()> {
        let _call = self.enter("purge_state");
        let _activity = Activity::begin(&*self.comm, Phase::Sweep);
        let ready = self.check_usable().and_then(|()| {
            self.shard.check_params(params)?;
            self.shard.verify_params(params, self.progress.attempts)?;
            // What was on its way before is recorded with the last step.
            self.shard.swapper.settle()
        });
        agree(&*self.comm, ready)?;
        self.record_moved();
        self.progress.unusable = Some("purging its state failed");
        let purged = self.purge_chunks(params);
        agree(&*self.comm, purged)?;
        self.progress.update_counts.fill(0);
        self.commit()
    }

    fn purge_chunks<S: ParameterSink + ?Sized>(&mut self, params: &mut S) -> Result<()> {
        let (swapper, mut io) = self.shard.for_sweep(
            self.progress.attempts,
            self.snapshot.as_mut(),
            &mut self.watch.recorder.timers,
        );
        let mut sweep = swapper.sweep(SweepKind::Update, Ending::Written, io.slots)?;
        let plan = io.plan;
        let mut values = Vec::new();
        while let Some(mut resident) = sweep.next_chunk()? {
            let index = resident.index();
            let chunk = plan.partition().chunk(index);
            let halves = halves_of(plan, params.section(chunk.in_shard()));
            io.take_in(&resident, halves)?;
            let (mut sections, uppers) = sections_mut(plan, index, &mut resident);
            for (section, tensor) in sections.iter_mut().zip(plan.tensors()).skip(1) {
                values.clear();
                values.resize(chunk.elems as usize, tensor.initial);
                values.resize(chunk.padded_elems as usize, 0.0);
                section.encode_nearest(&values, &mut []);
            }
            if !uppers.is_empty() {
                uppers[..halves.len()].copy_from_slice(halves);
            }
            io.swap_out(resident, halves);
        }
        sweep.finish()?;
        // What was read ahead belongs to the next step; everything else here belongs to no step.
        swapper.settle()?;
        swapper.take_moved();
        self.watch.forget_kernel();
        Ok(())
    }
}
