//! The caller's own update: its calls in order, which both `SubGroups` and `UpdateHandles` are
//! built on.

use std::time::Instant;

use super::super::optimizer::SwappedOptimizer;
use super::super::outcome::{StepOptions, StepOutcome, StepResult};
use super::super::parameters::ParameterSink;
use super::super::progress::BeforeStep;
use super::super::step::{clear_if_used, halves_of};
use super::lent_chunk::LentChunk;
use super::pass::Pass;
use crate::coord::{Activity, Phase, agree};
use crate::error::{Error, Result};
use crate::gradients::{GradientStore, Gradients, ShardGradients, StepGradients};
use crate::optim::GradElem;
use crate::swap::{ChunkHandle, SweepKind};
use crate::timers::{NO_CHUNK, Timer};
use crate::units::{ChunkIndex, ParamIndex};

impl SwappedOptimizer {
    /// Collective: checks the arguments, takes the norm, and decides with all ranks whether the
    /// step is skipped. Returns the gradients of the caller's memory, sorted into the shard; `None`
    /// if those that were handed over are used.
    pub(super) fn begin_pass<'g, G: GradElem, S: ParameterSink + ?Sized>(
        &mut self,
        gradients: &Gradients<'g, G>,
        params: &mut S,
        options: StepOptions<'_>,
    ) -> Result<(StepOutcome, Option<ShardGradients<'g, G>>)> {
        let _call = self.enter_step("begin_update");
        let before = self.progress.before_step();
        let begun = self.begin_step()?;
        if matches!(gradients, Gradients::HandedOver) {
            let outcome = self.begin_stored_pass::<G, S>(before, begun, params, options)?;
            return Ok((outcome, None));
        }
        let accepted = self.accept(gradients, params, options).map(StepGradients::Borrowed);
        let kind = SweepKind::UpdateInOrder;
        let (begun, gradients) = self.decide_step(kind, begun, accepted, options)?;
        let StepGradients::Borrowed(laid_out) = gradients else {
            return Err(Error::internal("gradients that were handed over are stored"));
        };
        let chunks = self.partition().chunks().iter();
        let has_gradient = chunks.map(|chunk| laid_out.within(chunk.in_shard()).next().is_some());
        let pass = Pass::new(before, begun, has_gradient.collect());
        self.gradients.hold().refuse_pieces();
        Ok((self.start_pass(pass), Some(laid_out)))
    }

    /// The same with gradients that were handed over, whose sums are kept as `A`.
    fn begin_stored_pass<A: GradElem, S: ParameterSink + ?Sized>(
        &mut self,
        before: BeforeStep,
        begun: (Instant, Activity),
        params: &mut S,
        options: StepOptions<'_>,
    ) -> Result<StepOutcome> {
        let sink = self.gradients.clone();
        let mut held = sink.hold();
        let is_kept = held.store().check_format::<A>();
        let accepted = is_kept.and_then(|()| self.accept_handed_over(&mut held, params, options));
        let gradients = accepted.map(|()| StepGradients::<A>::Stored(held.store()));
        let decided = self.decide_step(SweepKind::UpdateInOrder, begun, gradients, options);
        let begun = match decided {
            Ok((begun, _)) => begun,
            Err(error) => {
                let failed = Err(error);
                clear_if_used(&mut held, &failed);
                return failed;
            }
        };
        let (plan, store) = (&self.shard.plan, held.store());
        let chunks = (0..plan.partition().chunks().len()).map(ChunkIndex::from_index);
        let has_gradient = chunks.map(|chunk| store.has_gradient(plan, chunk)).collect();
        let mut pass = Pass::new(before, begun, has_gradient);
        pass.stored = Some(held.lend());
        Ok(self.start_pass(pass))
    }

    fn start_pass(&mut self, pass: Pass) -> StepOutcome {
        pass.begun.activity.turn_to(Phase::SwapAndUpdate);
        self.pass.insert(pass).begun.outcome
    }

    /// The number of sub-groups of this rank's shard.
    pub fn sub_groups(&self) -> u32 {
        let chunks = self.partition().chunks().len();
        let last = chunks.checked_sub(1).map(ChunkIndex::from_index);
        last.map_or(0, |last| self.shard.plan.sub_group_of(last) + 1)
    }

    pub(super) fn swap_in_sub_group(&mut self, sub_group: u32) -> Result<()> {
        self.shard.swapper.check_process()?;
        let count = self.sub_groups();
        let pass = self.pass.as_mut().ok_or_else(no_update)?;
        let wrong = |message: &str| Error::usage(message).with("sub-group", sub_group);
        if !pass.begun.outcome.is_taken() {
            return Err(wrong("a step that is not taken swaps no sub-group in"));
        }
        if sub_group >= count {
            return Err(wrong("there is no such sub-group").with("sub-groups", count));
        }
        if pass.open == Some(sub_group) {
            return Err(wrong("a sub-group is swapped in twice"));
        }
        if sub_group < pass.sub_groups {
            return Err(wrong("a sub-group that was swapped out in this step is swapped in again"));
        }
        if let Some(open) = pass.open {
            return Err(wrong("a sub-group is swapped in before another is swapped out")
                .with("still in", open));
        }
        if sub_group > pass.sub_groups {
            return Err(
                wrong("sub-groups are swapped in in order").with("the next one", pass.sub_groups)
            );
        }
        (pass.open, pass.sub_groups) = (Some(sub_group), sub_group + 1);
        Ok(())
    }

    pub(super) fn next_lent_chunk<S: ParameterSink + ?Sized>(
        &mut self,
        params: &mut S,
    ) -> Result<Option<ChunkHandle>> {
        self.shard.check_params(params)?;
        let pass = self.pass.as_mut().ok_or_else(no_update)?;
        let open = pass.open.ok_or_else(|| Error::usage("no sub-group is swapped in"))?;
        let (index, plan) = (pass.chunks, &self.shard.plan);
        let chunk = ChunkIndex::from_index(index);
        if index >= plan.partition().chunks().len() || plan.sub_group_of(chunk) != open {
            return Ok(None);
        }
        self.check_buffers(chunk, open)?;
        let pass = self.pass.as_mut().ok_or_else(no_update)?;
        let mut sweep = self.shard.swapper.resume()?;
        let timers = &mut self.watch.recorder.timers;
        let arrived = timers.time(Timer::SwapInState, || sweep.next_chunk());
        sweep.keep();
        let arrived = arrived.inspect_err(|_| pass.has_changed = true)?;
        let resident = arrived.filter(|resident| resident.index() == chunk);
        let resident = resident.ok_or_else(|| Error::internal("another chunk has come"))?;
        pass.chunks += 1;
        let decoded = pass.spare.pop().unwrap_or_default();
        let section = params.section(self.shard.plan.partition().chunk(chunk).in_shard());
        let attempt = self.progress.attempts;
        let (_, mut io) = self.shard.for_sweep(attempt, self.snapshot.as_mut(), timers);
        let uppers = halves_of(io.plan, section);
        let taken = io.take_in(&resident, uppers).and_then(|()| match &pass.stored {
            Some(store) => io.verify_gradient(store, chunk, resident.gradient()),
            None => Ok(()),
        });
        taken.inspect_err(|_| pass.has_changed = true)?;
        let chunk_in = LentChunk::new(io.plan, io.pool, resident, uppers, decoded);
        self.lent.lend(chunk, chunk_in).map(Some)
    }

    /// Checks that a buffer is left for the next chunk, and one for its spilled gradient if it has
    /// one.
    fn check_buffers(&self, next: ChunkIndex, sub_group: u32) -> Result<()> {
        let plan = &self.shard.plan;
        let pinned = plan.cached_chunks();
        let buffers = plan.buffer_count() - pinned;
        let moving = self.lent.handles().filter(|handle| handle.chunk().index() >= pinned);
        if next.index() >= pinned && moving.count() >= buffers {
            return Err(Error::usage("every buffer is in the caller's hands")
                .with("sub-group", sub_group)
                .with("buffers", buffers)
                .hint("swap a chunk out before the next one, or raise swap.memory_budget"));
        }
        let stored = self.pass.as_ref().and_then(|pass| pass.stored.as_ref());
        if !stored.is_some_and(|store| store.is_spilled(next)) {
            return Ok(());
        }
        let held = self.lent.contents().filter(|chunk| !chunk.resident.gradient().is_empty());
        let buffers = plan.gradients().buffers();
        if held.count() < buffers {
            return Ok(());
        }
        Err(Error::usage("every buffer for spilled gradients is in the caller's hands")
            .with("buffers", buffers)
            .hint("swap a chunk out before the next one, or raise swap.memory_budget"))
    }

    pub(super) fn return_chunk<S: ParameterSink + ?Sized>(
        &mut self,
        handle: ChunkHandle,
        params: &mut S,
        is_changed: bool,
    ) -> Result<()> {
        self.shard.swapper.check_process()?;
        self.shard.check_params(params)?;
        let mut chunk = self.lent.take(handle)?;
        let timers = &mut self.watch.recorder.timers;
        timers.record(Timer::OptimizerStep, chunk.since.elapsed());
        let mut emitted = Ok(());
        let decoded = if is_changed || chunk.has_changed {
            self.pass.iter_mut().for_each(|pass| pass.has_changed = true);
            let live = self.shard.plan.partition().chunk(handle.chunk()).in_shard();
            let section = params.section(live.clone());
            let attempt = self.progress.attempts;
            let (_, mut io) = self.shard.for_sweep(attempt, self.snapshot.as_mut(), timers);
            chunk.encode(io.plan, io.pool, io.plan.rounder(attempt), section);
            let (resident, decoded) = chunk.into_parts();
            io.swap_out(resident, halves_of(io.plan, section));
            emitted = params.emitted(live);
            decoded
        } else {
            let (resident, decoded) = chunk.into_parts();
            resident.release();
            decoded
        };
        if let Some(pass) = &mut self.pass {
            pass.spare.push(decoded);
        }
        self.watch.recorder.timers.turn_to(NO_CHUNK);
        emitted
    }

    pub(super) fn swap_out_sub_group(&mut self, sub_group: u32) -> Result<()> {
        self.shard.swapper.check_process()?;
        let pass = self.pass.as_mut().ok_or_else(no_update)?;
        if pass.open != Some(sub_group) {
            return Err(Error::usage("a sub-group that is not in is swapped out")
                .with("sub-group", sub_group));
        }
        if let Some(handle) = self.lent.handles().next() {
            return Err(Error::usage("a sub-group is swapped out before its chunks")
                .with("sub-group", sub_group)
                .with("handle", handle));
        }
        let plan = &self.shard.plan;
        let end = plan.chunks_of(sub_group).end;
        if let Some(left) = pass.first_left(end) {
            return Err(Error::usage(
                "a sub-group is swapped out before its last gradient is used",
            )
            .with("sub-group", sub_group)
            .with("holding", plan.describe(ChunkIndex::from_index(left))));
        }
        let mut sweep = self.shard.swapper.resume()?;
        let mut skipped = Ok(());
        while pass.chunks < end && skipped.is_ok() {
            skipped = sweep.next_chunk().map(|chunk| {
                chunk.into_iter().for_each(|chunk| chunk.release());
                pass.chunks += 1;
            });
        }
        sweep.keep();
        skipped.inspect_err(|_| pass.has_changed = true)?;
        pass.open = None;
        if !plan.config().swap.pipeline_write {
            let timers = &mut self.watch.recorder.timers;
            timers.time(Timer::SwapOutState, || self.shard.swapper.wait_written())?;
        }
        Ok(())
    }

    /// Collective: ends an update; `result` is its result on this rank.
    pub(super) fn end_update(&mut self, result: Result<()>) -> Result<StepOutcome> {
        let _call = self.enter("finish of an update");
        self.shard.swapper.check_process()?;
        let mut pass = self.pass.take().ok_or_else(no_update)?;
        let outcome = pass.begun.outcome;
        if outcome.result == StepResult::OutOfTime {
            self.gradients.hold().take_back(pass.stored.take());
            return agree(&*self.comm, result).map(|()| outcome);
        }
        let stored = pass.stored.take();
        let ended = self.end_pass(pass, result);
        self.end_gradients(stored);
        ended
    }

    /// Forgets the gradients that an update has used; the sink takes those of the next step.
    fn end_gradients(&self, stored: Option<GradientStore>) {
        let mut held = self.gradients.hold();
        let is_used = stored.is_some();
        held.take_back(stored);
        if is_used {
            held.clear();
        }
    }

    fn end_pass(&mut self, pass: Pass, result: Result<()>) -> Result<StepOutcome> {
        let outcome = pass.begun.outcome;
        let result = result.and_then(|()| self.check_complete(&pass));
        let may_have_changed = |chunk: &LentChunk| chunk.has_changed || chunk.is_exposed;
        let has_changed = pass.has_changed || self.lent.contents().any(may_have_changed);
        self.lent.clear();
        let ends_early = result.is_err() || outcome.is_skipped();
        let timers = &mut self.watch.recorder.timers;
        let ended = self.shard.swapper.resume().and_then(|sweep| {
            if ends_early {
                sweep.abandon()
            } else {
                timers.time(Timer::SwapOutState, || sweep.finish())
            }
        });
        let has_changed = has_changed || ended.is_err();
        let result = result.and(ended);
        let was_fine = result.is_ok();
        let ended = self.end_step(pass.begun, result, &pass.updated);
        if ended.as_ref().is_err_and(Error::is_agreed) {
            let counted: &[ParamIndex] = if was_fine { &pass.updated } else { &[] };
            self.pardon_if_unchanged(has_changed, pass.before, counted)?;
        }
        ended
    }

    /// Collective: after an error, the optimizer stays usable if no rank has changed anything.
    fn pardon_if_unchanged(
        &mut self,
        has_changed: bool,
        before: BeforeStep,
        counted: &[ParamIndex],
    ) -> Result<()> {
        let mut changed = [u64::from(has_changed)];
        self.comm.all_reduce_sum(&mut changed)?;
        if changed == [0] {
            self.progress.forget_step(before, counted);
        }
        Ok(())
    }

    /// Checks that every chunk with a gradient has been lent to the caller, and is back.
    fn check_complete(&self, pass: &Pass) -> Result<()> {
        if let Some(handle) = self.lent.handles().next() {
            return Err(
                Error::usage("an update ends before a chunk is swapped out").with("handle", handle)
            );
        }
        if let Some(open) = pass.open {
            return Err(Error::usage("an update ends before a sub-group is swapped out")
                .with("sub-group", open));
        }
        let left = pass.first_left(pass.has_gradient.len());
        let Some(left) = left.filter(|_| pass.begun.outcome.is_taken()) else { return Ok(()) };
        let (chunk, plan) = (ChunkIndex::from_index(left), &self.shard.plan);
        Err(Error::usage("an update ends before a sub-group with gradients is swapped in")
            .with("sub-group", plan.sub_group_of(chunk))
            .with("holding", plan.describe(chunk)))
    }

    /// Gives up an update that has not been ended.
    pub(in crate::step) fn forget_pass(&mut self) {
        self.lent.clear();
        if let Some(mut pass) = self.pass.take() {
            drop(self.shard.swapper.resume());
            self.end_gradients(pass.stored.take());
        }
    }
}

pub(super) fn no_update() -> Error {
    Error::usage("no update is under way").hint("begin one with begin_update, or handles().begin")
}
