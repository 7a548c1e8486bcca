//! The first write of everything, and looking at state between steps.

use super::optimizer::SwappedOptimizer;
use super::plan::Plan;
use super::view::{StateView, sections, sections_mut};
use crate::coord::{Activity, Phase, agree};
use crate::error::Result;
use crate::partition::Run;
use crate::swap::{ResidentChunk, SweepKind, SweepTotals};

impl SwappedOptimizer {
    /// Collective: writes the whole state for the first time. `fill` gives the initial master of a
    /// run of a parameter; moments and padding are zero. A second call starts training anew.
    ///
    /// # Errors
    /// Agreed errors of `fill` or of the drives.
    pub fn initialize_parameters(
        &mut self,
        mut fill: impl FnMut(&Run, &mut [f32]) -> Result<()>,
    ) -> Result<()> {
        self.unusable = Some("its initialisation failed");
        // A snapshot of what is overwritten here would be of no state.
        self.snapshot = None;
        let result = self.write_chunks(&mut |run, [master, ..]| fill(run, master));
        agree(&*self.comm, result)?;
        self.update_counts.fill(0);
        self.attempts = 0;
        self.unusable = None;
        self.commit(&[])
    }

    /// Collective: writes the whole state as it was after `attempts` steps, of which each parameter
    /// took `update_counts`. `fill` gives all state tensors of a run.
    ///
    /// # Errors
    /// Agreed errors of `fill` or of the drives.
    pub fn restore(
        &mut self,
        attempts: u64,
        update_counts: Vec<u64>,
        user_blob: &[u8],
        mut fill: impl FnMut(&Run, [&mut [f32]; 3]) -> Result<()>,
    ) -> Result<()> {
        self.unusable = Some("its initialisation failed");
        self.snapshot = None;
        let result = self.write_chunks(&mut fill);
        agree(&*self.comm, result)?;
        (self.update_counts, self.attempts) = (update_counts, attempts);
        self.user_blob = user_blob.to_vec();
        self.unusable = None;
        self.commit(user_blob)
    }

    fn write_chunks(
        &mut self,
        fill: &mut impl FnMut(&Run, [&mut [f32]; 3]) -> Result<()>,
    ) -> Result<SweepTotals> {
        let _activity = Activity::begin(&*self.comm, Phase::Sweep);
        let mut sweep = self.swapper.sweep(SweepKind::Fill, &self.slots)?;
        while let Some(mut resident) = sweep.next_chunk()? {
            let index = resident.index();
            let (chunk, layout) = (self.plan.partition().chunk(index), self.plan.layout(index));
            let mut arrays = sections_mut(&layout, &mut resident);
            for run in self.plan.partition().runs_of(index) {
                let at = run.in_chunk(chunk);
                fill(run, arrays.each_mut().map(|array| &mut array[at.clone()]))?;
            }
            self.checksums.take(&self.pool, &layout, index, &resident);
            self.slots.mark_written(index);
            resident.swap_out();
        }
        sweep.finish()
    }

    /// Collective: reads the whole state back from the drives, in no particular order of chunks,
    /// and shows it run by run. Nothing is written, and nothing counts as part of a step.
    ///
    /// # Errors
    /// Agreed errors of `look` or of the drives.
    pub fn inspect(&mut self, mut look: impl FnMut(StateView<'_>) -> Result<()>) -> Result<()> {
        let result = self.check_usable().and_then(|()| {
            self.read_all(|plan, resident, _| {
                let index = resident.index();
                let chunk = plan.partition().chunk(index);
                let [master, exp_avg, exp_avg_sq] = sections(&plan.layout(index), resident);
                let mut runs = plan.partition().runs_of(index).iter();
                runs.try_for_each(|run| {
                    let at = run.in_chunk(chunk);
                    look(StateView {
                        run,
                        parameter: plan.inventory().parameter(run.param),
                        master: &master[at.clone()],
                        exp_avg: &exp_avg[at.clone()],
                        exp_avg_sq: &exp_avg_sq[at],
                    })
                })
            })
        });
        agree(&*self.comm, result)
    }

    /// Reads every chunk back, compares it with its checksums, and shows it with them; not agreed.
    pub(super) fn read_all(
        &mut self,
        mut look: impl FnMut(&Plan, &ResidentChunk, &[u32]) -> Result<()>,
    ) -> Result<()> {
        let _activity = Activity::begin(&*self.comm, Phase::Sweep);
        let mut sweep = self.swapper.sweep(SweepKind::Inspect, &self.slots)?;
        while let Some(resident) = sweep.next_chunk()? {
            let index = resident.index();
            let extent = self.slots.read_extent(index);
            self.checksums.verify(&self.pool, &self.plan, index, extent, &resident)?;
            look(&self.plan, &resident, self.checksums.of(index))?;
        }
        sweep.finish().map(drop)
    }
}
