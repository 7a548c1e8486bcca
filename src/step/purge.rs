//! All state but the masters, as it was before the first step.

use super::optimizer::SwappedOptimizer;
use super::passage::Parts;
use super::run::halves_of;
use super::view::sections_mut;
use crate::coord::{Activity, Phase, agree};
use crate::error::Result;
use crate::optim::ParamElem;
use crate::swap::{Ending, SweepKind};

impl SwappedOptimizer {
    /// Collective: drops all state but the masters. Moments begin anew as the optimizer declares
    /// them, and update counts with 0; a durable job commits that. (DeepSpeed's `purge_state`.)
    ///
    /// # Errors
    /// Agreed errors of the drives, after which the optimizer is unusable, as after a step that
    /// failed; usage if the masters' upper halves are in the parameters, see
    /// [`Self::purge_state_with`].
    pub fn purge_state(&mut self) -> Result<()> {
        let none = vec![(); self.plan.partition().elems() as usize];
        self.purge_state_with(&none)
    }

    /// Collective: as [`Self::purge_state`], with the parameters of the shard, which the codec
    /// remainder16 needs: they hold the upper halves of its masters.
    ///
    /// # Errors
    /// As [`Self::purge_state`].
    pub fn purge_state_with<P: ParamElem>(&mut self, params: &[P]) -> Result<()> {
        let _activity = Activity::begin(&*self.comm, Phase::Sweep);
        let ready = self.check_usable().and_then(|()| {
            self.check_params(params)?;
            if self.plan.is_halved() {
                let halves = P::upper_halves(params);
                self.checksums.verify_parameters(&self.pool, &self.plan, self.attempts, halves)?;
            }
            // What was on its way before still counts.
            self.swapper.settle()
        });
        agree(&*self.comm, ready)?;
        self.record_moved();
        self.unusable = Some("purging its state failed");
        let purged = self.purge_chunks(params);
        agree(&*self.comm, purged)?;
        self.update_counts.fill(0);
        self.unusable = None;
        let user_blob = self.user_blob.clone();
        self.commit(&user_blob)
    }

    fn purge_chunks<P: ParamElem>(&mut self, params: &[P]) -> Result<()> {
        let (kind, ending) = (SweepKind::Update, Ending::Written);
        let Parts { swapper, mut passage, .. } = self.parts();
        let mut sweep = swapper.sweep(kind, ending, passage.slots)?;
        let plan = passage.plan;
        let mut values = Vec::new();
        while let Some(mut resident) = sweep.next_chunk()? {
            let index = resident.index();
            let chunk = plan.partition().chunk(index);
            let params = &params[chunk.shard_offset as usize..][..chunk.elems as usize];
            let halves = halves_of(plan, params);
            passage.take_in(&resident, halves)?;
            let (mut sections, uppers) = sections_mut(plan, index, &mut resident);
            let state = sections.iter_mut().zip(plan.tensors()).skip(1);
            for (section, tensor) in state {
                values.clear();
                values.resize(chunk.elems as usize, tensor.initial);
                values.resize(chunk.padded_elems as usize, 0.0);
                section.encode_nearest(&values, &mut []);
            }
            if !uppers.is_empty() {
                uppers[..halves.len()].copy_from_slice(halves);
            }
            passage.swap_out(resident, halves);
        }
        sweep.finish()?;
        // What is read ahead belongs to the next step, and nothing else here to any.
        self.swapper.settle()?;
        self.swapper.take_moved();
        self.process_io.since_last();
        Ok(())
    }
}
