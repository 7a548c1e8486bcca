//! The first write of everything, and looking at state between steps.

use super::optimizer::SwappedOptimizer;
use super::view::{StateView, sections, sections_mut};
use crate::coord::agree;
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
        let result = self.write_all(&mut fill);
        agree(&*self.comm, result)?;
        self.update_counts.fill(0);
        self.attempts = 0;
        self.unusable = None;
        Ok(())
    }

    fn write_all(
        &mut self,
        fill: &mut impl FnMut(&Run, &mut [f32]) -> Result<()>,
    ) -> Result<SweepTotals> {
        let mut sweep = self.swapper.sweep(SweepKind::Fill)?;
        while let Some(mut resident) = sweep.next_chunk()? {
            let index = resident.index();
            let chunk = self.plan.partition().chunk(index);
            let [master, ..] = sections_mut(&self.plan.layout(index), &mut resident);
            for run in self.plan.partition().runs_of(index) {
                fill(run, &mut master[run.in_chunk(chunk)])?;
            }
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
            let plan = &self.plan;
            let mut sweep = self.swapper.sweep(SweepKind::Inspect)?;
            while let Some(resident) = sweep.next_chunk()? {
                let index = resident.index();
                let chunk = plan.partition().chunk(index);
                let [master, exp_avg, exp_avg_sq] = sections(&plan.layout(index), &resident);
                for run in plan.partition().runs_of(index) {
                    let at = run.in_chunk(chunk);
                    look(StateView {
                        run,
                        parameter: plan.inventory().parameter(run.param),
                        master: &master[at.clone()],
                        exp_avg: &exp_avg[at.clone()],
                        exp_avg_sq: &exp_avg_sq[at],
                    })?;
                }
            }
            sweep.finish().map(drop)
        });
        agree(&*self.comm, result)
    }

    /// Shows every chunk's extent as it lies on the drives; not agreed.
    pub(super) fn inspect_chunks(
        &mut self,
        mut look: impl FnMut(&super::Plan, &ResidentChunk),
    ) -> Result<()> {
        self.check_usable()?;
        let mut sweep = self.swapper.sweep(SweepKind::Inspect)?;
        while let Some(resident) = sweep.next_chunk()? {
            look(&self.plan, &resident);
        }
        sweep.finish().map(drop)
    }
}
