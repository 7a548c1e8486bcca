//! One step: norm, decision, pipeline, agreement.

use std::time::Instant;

use half::bf16;

use super::chunk_io::ChunkIo;
use super::decision::{Brought, WorldNorm, decide, reduce};
use super::optimizer::SwappedOptimizer;
use super::outcome::{Begun, StepOptions, StepOutcome, StepResult};
use super::parameters::ParameterSink;
use super::update::Updates;
use super::watch::waits_of;
use crate::config::AccumulateIn;
use crate::coord::{Activity, Phase, agree, differing_values};
use crate::error::{Error, ErrorKind, Result};
use crate::gradients::{Gradients, HeldGradients, ShardGradients, StepGradients};
use crate::optim::{BlockNorm, GradElem, ParamElem};
use crate::plan::Plan;
use crate::swap::{Ending, Sweep, SweepKind};
use crate::timers::{NO_CHUNK, Timer};
use crate::units::ParamIndex;

impl SwappedOptimizer {
    /// Collective: one optimizer step. Gradients are those of this rank's shard, reduced over the
    /// ranks, or those that were handed over before ([`Gradients::HandedOver`]), which are
    /// forgotten when the step has been taken or skipped. `params` receives the updated parameters
    /// of the shard, in shard order; parameters without a gradient keep what `params` holds. With
    /// the codec remainder16, `params` must hold what the last step emitted, because that is the
    /// upper half of the masters.
    ///
    /// # Errors
    /// Agreed. Usage leaves everything as it was: gradients that do not fit the shard or are only
    /// partly there, parameters of another length or format, hyper-parameters out of range, an
    /// optimizer without initial state, a program's own optimizer. After I/O and lost-state errors
    /// the optimizer is unusable, because a part of the state is one step ahead; a durable job can
    /// go back to its last commit with [`Self::recover`].
    pub fn step<G: GradElem, S: ParameterSink + ?Sized>(
        &mut self,
        gradients: &Gradients<'_, G>,
        params: &mut S,
        options: StepOptions<'_>,
    ) -> Result<StepOutcome> {
        let _call = self.enter_step("step");
        if matches!(gradients, Gradients::HandedOver) {
            return match self.shard.plan.config().gradients.accumulate_in {
                AccumulateIn::F32 => self.step_handed_over::<f32, S>(params, options),
                AccumulateIn::Bf16 => self.step_handed_over::<bf16, S>(params, options),
            };
        }
        let begun = self.begin_step()?;
        let accepted = self.accept(gradients, params, options);
        self.take_step(begun, accepted.map(StepGradients::Borrowed), params, options)
    }

    fn step_handed_over<A: GradElem, S: ParameterSink + ?Sized>(
        &mut self,
        params: &mut S,
        options: StepOptions<'_>,
    ) -> Result<StepOutcome> {
        let begun = self.begin_step()?;
        let sink = self.gradients.clone();
        let mut held = sink.hold();
        let accepted = self.accept_handed_over(&mut held, params, options);
        let gradients = accepted.map(|()| StepGradients::<A>::Stored(held.store()));
        let result = self.take_step(begun, gradients, params, options);
        clear_if_used(&mut held, &result);
        result
    }

    /// Collective: begins a step, with its clock and its records.
    pub(super) fn begin_step(&mut self) -> Result<(Instant, Activity)> {
        let step = self.progress.attempts + 1;
        self.watch.record_handed_over(&mut self.gradients.hold());
        self.watch.write_due_trace(step, &*self.comm)?;
        let start = Instant::now();
        self.watch.recorder.begin_step(step, waits_of(&*self.comm), start);
        Ok((start, Activity::begin(&*self.comm, Phase::Norm)))
    }

    /// Checks the arguments of a step, and sorts its gradients into the shard.
    pub(super) fn accept<'g, G: GradElem, S: ParameterSink + ?Sized>(
        &self,
        gradients: &Gradients<'g, G>,
        params: &mut S,
        options: StepOptions<'_>,
    ) -> Result<ShardGradients<'g, G>> {
        self.check_arguments(params, options)?;
        self.gradients.hold().store().check_unused()?;
        let plan = &self.shard.plan;
        let (inventory, partition) = (plan.inventory(), plan.partition());
        let laid_out = gradients.lay_out(inventory, partition)?;
        laid_out.completed(plan.config().gradients.missing, inventory, partition)
    }

    /// Checks the arguments of a step with gradients that were handed over, and waits for these.
    pub(super) fn accept_handed_over<S: ParameterSink + ?Sized>(
        &mut self,
        held: &mut HeldGradients<'_>,
        params: &mut S,
        options: StepOptions<'_>,
    ) -> Result<()> {
        self.check_arguments(params, options)?;
        let flushed = held.flush(Timer::AsyncSwapGradientWait);
        self.watch.record_handed_over(held);
        flushed?;
        held.store().check_missing(&self.shard.plan)
    }

    fn check_arguments<S: ParameterSink + ?Sized>(
        &self,
        params: &mut S,
        options: StepOptions<'_>,
    ) -> Result<()> {
        self.check_usable()?;
        self.shard.check_params(params)?;
        self.progress.check_step(options)?;
        self.shard.verify_params(params, self.progress.attempts + 1)
    }

    /// Collective: the rest of a step, with the gradients that were accepted, or the error why they
    /// were not.
    fn take_step<G: GradElem, S: ParameterSink + ?Sized>(
        &mut self,
        begun: (Instant, Activity),
        accepted: Result<StepGradients<'_, G>>,
        params: &mut S,
        options: StepOptions<'_>,
    ) -> Result<StepOutcome> {
        let accepted = check_rule(&self.shard.plan).and(accepted);
        let swap = &self.shard.plan.config().swap;
        // Where sub-groups wait for each other, gradients that were read for a later one must not
        // hold the buffer that an earlier one waits for.
        let is_bound = !(swap.pipeline_read && swap.pipeline_write);
        let kind = match &accepted {
            Ok(StepGradients::Stored(_)) if is_bound => SweepKind::UpdateInOrder,
            _ => SweepKind::Update,
        };
        let (mut begun, gradients) = self.decide_step(kind, begun, accepted, options)?;
        let outcome = begun.outcome;
        if outcome.result == StepResult::OutOfTime {
            return Ok(outcome);
        }
        let (groups, update_counts) = (&self.progress.groups, &self.progress.update_counts);
        let (swapper, io) = self.shard.for_sweep(
            self.progress.attempts,
            self.snapshot.as_mut(),
            &mut self.watch.recorder.timers,
        );
        let result = swapper.resume().and_then(|sweep| {
            if outcome.is_skipped() {
                return sweep.abandon();
            }
            begun.activity.turn_to(Phase::SwapAndUpdate);
            let (plan, pool) = (io.plan, io.pool);
            let (grad_scale, rounder) = (outcome.grad_scale, plan.rounder(io.attempt));
            let updates = Updates { plan, pool, groups, update_counts, grad_scale, rounder };
            run_updates(&updates, &gradients, io, sweep, params)
        });
        let updated = std::mem::take(&mut begun.updated);
        self.end_step(begun, result, &updated)
    }

    /// Collective: norm and decision of a step, with the gradients that were accepted, or the error
    /// why they were not. Afterwards the sweep is under way, unless the step is out of time.
    pub(super) fn decide_step<'g, G: GradElem>(
        &mut self,
        kind: SweepKind,
        (start, activity): (Instant, Activity),
        accepted: Result<StepGradients<'g, G>>,
        options: StepOptions<'_>,
    ) -> Result<(Begun, StepGradients<'g, G>)> {
        let loss_scale = self.progress.loss_scale_of(options);
        // Swap-ins start here at the latest, before the norm is known; a skipped step keeps them
        // for the next one.
        let ending = self.ending();
        let shard = &mut self.shard;
        let ready =
            accepted.and_then(|it| Ok((it, shard.swapper.sweep(kind, ending, &shard.slots)?)));

        let timers = &mut self.watch.recorder.timers;
        let norm = timers.time(Timer::SwapOutGradient, || match &ready {
            Ok((gradients, _)) => gradients.norm(&shard.pool, shard.plan.norm_blocks()),
            Err(_) => BlockNorm::default(),
        });
        let params = ready.as_ref().map_or_else(|_| Vec::new(), |(it, _)| it.params(&shard.plan));
        let brought = Brought {
            norm,
            has_failed: ready.is_err(),
            requests: std::mem::take(&mut self.requests),
            is_unbalanced: self.watch.balance.find_evidence(),
            alike: self.progress.alike(loss_scale)?,
            co_owned: self.co_owned.term(&params),
        };
        let world = timers.time(Timer::GradientNorm, || reduce(&*self.comm, brought))?;
        if world.failed > 0 {
            agree(&*self.comm, ready.map(drop))?;
            return Err(Error::internal("a rank refused the step without an error"));
        }
        if !(world.is_alike && world.is_paired) {
            drop(ready);
            return Err(self.name_difference(world, &params, loss_scale)?);
        }
        if world.unbalanced > 0 {
            self.watch.balance.reweigh(&shard.plan, &*self.comm)?;
        }
        let (gradients, sweep) = ready?;
        let clip_norm = shard.plan.config().optimizer.clip_norm;
        if world.out_of_time > 0 {
            agree(&*self.comm, sweep.abandon())?;
            activity.turn_to(Phase::BetweenSteps);
            self.commit_steps_so_far()?;
            let outcome = decide(world, self.progress.attempts, clip_norm, loss_scale);
            let epoch = self.epoch();
            let outcome = StepOutcome { result: StepResult::OutOfTime, epoch, ..outcome };
            return Ok((Begun { start, activity, outcome, updated: Vec::new() }, gradients));
        }
        sweep.keep();
        self.progress.attempts += 1;
        self.progress.loss_scale = loss_scale;
        options.user_blob.clone_into(&mut self.progress.user_blob);
        let outcome = decide(world, self.progress.attempts, clip_norm, loss_scale);
        let updated = if outcome.is_taken() { params } else { Vec::new() };
        Ok((Begun { start, activity, outcome, updated }, gradients))
    }

    /// Collective, where ranks bring to a step what does not go together: the error that says what.
    fn name_difference(
        &self,
        world: WorldNorm,
        params: &[ParamIndex],
        loss_scale: f32,
    ) -> Result<Error> {
        if world.is_alike {
            let (inventory, comm) = (self.shard.plan.inventory(), &*self.comm);
            self.co_owned.name_missing(params, inventory, &self.group, comm)?;
        }
        let what = "ranks bring different values to a step";
        let values = self.progress.values_to_compare(loss_scale);
        let error = differing_values(&*self.comm, what, &values)?;
        Ok(error.hint("set learning rates and other hyper-parameters alike on all ranks"))
    }

    /// Collective: commits the steps since the last commit, which takes no more than a record.
    fn commit_steps_so_far(&mut self) -> Result<()> {
        let attempts = self.progress.attempts;
        if self.committed_attempts().is_some_and(|committed| committed < attempts) {
            self.commit()?;
        }
        Ok(())
    }

    /// Collective: ends a step after its last chunk has been updated. `result` is the result of the
    /// updates on this rank.
    pub(super) fn end_step(
        &mut self,
        begun: Begun,
        result: Result<()>,
        updated: &[ParamIndex],
    ) -> Result<StepOutcome> {
        let Begun { start, activity, mut outcome, .. } = begun;
        self.progress.follow_outcome(&outcome);
        activity.turn_to(Phase::Commit);
        outcome.epoch = self.settle(result, updated, outcome.stop)?;
        outcome.duration = start.elapsed();
        self.watch.end_step(&outcome, &mut self.shard.swapper, waits_of(&*self.comm));
        Ok(outcome)
    }

    /// Which writes the next step waits for at its end.
    fn ending(&self) -> Ending {
        let config = self.shard.plan.config();
        let next = self.progress.attempts + 1;
        if config.is_durable() && next.is_multiple_of(config.durability.commit_every) {
            Ending::Flushed
        } else if config.swap.write_behind && config.swap.pipeline_write {
            Ending::Behind
        } else {
            Ending::Written
        }
    }

    /// Collective: counts the updates, writes the record if the step is to be committed, and
    /// agrees. The record is written before the agreement, and counts only if all ranks have
    /// written theirs. Returns the number of the commit, if there is one.
    fn settle(
        &mut self,
        moved: Result<()>,
        updated: &[ParamIndex],
        stops: bool,
    ) -> Result<Option<u64>> {
        let start = Instant::now();
        let written = moved.and_then(|()| {
            self.progress.count_updates(updated);
            if stops || self.is_commit_due() { self.write_record() } else { Ok(None) }
        });
        let timers = &mut self.watch.recorder.timers;
        timers.record(Timer::Commit, start.elapsed());
        let begin = Instant::now();
        let agreed = self.agree_on_record(written);
        self.watch.recorder.timers.record(Timer::Agreement, begin.elapsed());
        let record = agreed.inspect_err(|_| {
            self.progress.unusable = Some("an earlier step failed");
        })?;
        let epoch = record.as_ref().map(|record| record.stamp.epoch);
        record.into_iter().for_each(|record| self.take_commit(record));
        Ok(epoch)
    }
}

/// An error if the update is the program's own, for which there is no code here.
fn check_rule(plan: &Plan) -> Result<()> {
    plan.config().optimizer.own.as_ref().map_or(Ok(()), |own| {
        Err(Error::usage("a program's own optimizer is not updated by `step`")
            .with("optimizer", &own.name)
            .hint(
                "update it with Training::step_with, or chunk by chunk with \
                 SwappedOptimizer::begin_update",
            ))
    })
}

/// Forgets the gradients that were handed over if a step has used or lost them.
pub(super) fn clear_if_used(held: &mut HeldGradients<'_>, result: &Result<StepOutcome>) {
    let are_used = match result {
        Ok(outcome) => outcome.result != StepResult::OutOfTime,
        Err(error) => error.kind() != ErrorKind::Usage,
    };
    if are_used {
        held.clear();
    }
}

/// Takes each chunk from the sweep, updates it, and gives it back to be written.
fn run_updates<G: GradElem, S: ParameterSink + ?Sized>(
    updates: &Updates<'_>,
    gradients: &StepGradients<'_, G>,
    mut io: ChunkIo<'_>,
    mut sweep: Sweep<'_>,
    params: &mut S,
) -> Result<()> {
    let plan = updates.plan;
    for _ in plan.partition().chunks() {
        let chunk = io.timers.time(Timer::SwapInState, || sweep.next_chunk())?;
        let Some(mut resident) = chunk else { break };
        let index = resident.index();
        let live = plan.partition().chunk(index).in_shard();
        let section = params.section(live.clone());
        io.take_in(&resident, halves_of(plan, section))?;
        let (bytes, spilled) = resident.with_gradient();
        let gradients = io.gradients(gradients, index, spilled)?;
        let has_changed =
            io.timers.time(Timer::OptimizerStep, || updates.run(index, &gradients, bytes, section));
        if has_changed {
            io.swap_out(resident, halves_of(plan, section));
            params.emitted(live)?;
        } else {
            resident.release();
        }
    }
    io.timers.turn_to(NO_CHUNK);
    io.timers.time(Timer::SwapOutState, || sweep.finish())
}

/// The parameters as upper halves of masters if the codec is remainder16, otherwise nothing.
pub(super) fn halves_of<'a, P: ParamElem>(plan: &Plan, params: &'a [P]) -> &'a [bf16] {
    if plan.is_halved() { P::upper_halves(params) } else { &[] }
}
