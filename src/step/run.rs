//! One step: norm, decision, pipeline, agreement.

use std::time::{Duration, Instant};

use half::bf16;

use super::gradients::{Gradients, ShardGradients};
use super::norm::{Stop, WorldNorm, reduce};
use super::optimizer::SwappedOptimizer;
use super::passage::{Parts, Passage};
use super::plan::Plan;
use super::source::StepGradients;
use super::update::Updates;
use crate::coord::{Activity, Phase, agree};
use crate::error::{Error, ErrorKind, Result};
use crate::optim::{BlockNorm, GradElem, ParamElem};
use crate::swap::{Ending, Sweep, SweepKind};
use crate::timers::{NO_CHUNK, Timer};
use crate::units::ParamIndex;

/// What a step may be told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepOptions<'a> {
    /// What the loss was multiplied by, beside what `[loss_scale]` says; gradients are divided by
    /// both.
    pub loss_scale: f32,
    /// Committed with the step, and handed back when the job goes on from it: where the caller is
    /// in its data, for instance.
    pub user_blob: &'a [u8],
    /// Whether this rank has been asked to stop. One is enough: all stop.
    pub stop: Stop,
    /// Whether this rank has been asked for a table of the world. One is enough: all know it.
    pub wants_table: bool,
}

impl Default for StepOptions<'_> {
    fn default() -> Self {
        Self { loss_scale: 1.0, user_blob: &[], stop: Stop::No, wants_table: false }
    }
}

/// What a step did; the same on every rank but for `duration`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepOutcome {
    /// Steps attempted so far, this one included.
    pub attempt: u64,
    /// Whether the step was skipped because a gradient was infinite or NaN. Nothing has changed on
    /// any drive then, nor in the caller's parameters.
    pub skipped: bool,
    /// Global norm of the unscaled gradients, before clipping; infinite if the step was skipped.
    pub grad_norm: f64,
    /// What every gradient was multiplied by: loss scale and clipping together.
    pub grad_scale: f32,
    /// The number of the commit that this step became, if it did.
    pub epoch: Option<u64>,
    /// Whether a rank has been asked to stop. The step was taken, and committed if the job is
    /// durable, unless `is_taken` says otherwise.
    pub stop: bool,
    /// Whether there was time for the step; if not, nothing has changed.
    pub is_taken: bool,
    /// Whether a rank has been asked for a table of the world.
    pub wants_table: bool,
    /// From the call until all updates were made and agreed, and what had to be on the drives was
    /// there: everything for a commit, nothing where writes go on behind the step.
    pub duration: Duration,
}

/// A step of which everything is decided, and nothing has changed.
pub(super) struct Begun {
    start: Instant,
    pub activity: Activity,
    pub outcome: StepOutcome,
}

impl SwappedOptimizer {
    /// Collective: one optimizer step. Gradients are this rank's shard of the reduced gradients;
    /// `params` receives the updated parameters of the shard, in shard order (a slice of units for
    /// none). Parameters without a gradient keep what `params` holds.
    ///
    /// # Errors
    /// Agreed errors. A usage error (wrong gradients) leaves everything as it was; an I/O error
    /// makes the optimizer unusable, because a part of the state is one step ahead.
    pub fn step<G: GradElem, P: ParamElem>(
        &mut self,
        gradients: &Gradients<'_, G>,
        params: &mut [P],
        options: StepOptions<'_>,
    ) -> Result<StepOutcome> {
        let begun = self.begin_step()?;
        let accepted = self.accept(gradients, params, options);
        self.take_step(begun, accepted.map(StepGradients::Borrowed), params, options)
    }

    /// Collective: a step begins.
    pub(super) fn begin_step(&mut self) -> Result<(Instant, Activity)> {
        self.write_due_trace()?;
        let start = Instant::now();
        let waits = self.waits();
        self.recorder.begin_step(self.attempts + 1, waits, start);
        Ok((start, Activity::begin(&*self.comm, Phase::Norm)))
    }

    /// Checks the arguments of a step, and sorts its gradients into the shard.
    pub(super) fn accept<'g, G: GradElem, P: ParamElem>(
        &self,
        gradients: &Gradients<'g, G>,
        params: &[P],
        options: StepOptions<'_>,
    ) -> Result<ShardGradients<'g, G>> {
        self.check_arguments(params, options)?;
        self.gradients.check_unused()?;
        let (inventory, partition) = (self.plan.inventory(), self.plan.partition());
        let laid_out = gradients.lay_out(inventory, partition)?;
        laid_out.completed(self.plan.config().gradients.missing, inventory, partition)
    }

    /// Collective: the rest of a step, with the gradients that were accepted, if they were.
    pub(super) fn take_step<G: GradElem, P: ParamElem>(
        &mut self,
        begun: (Instant, Activity),
        accepted: Result<StepGradients<'_, G>>,
        params: &mut [P],
        options: StepOptions<'_>,
    ) -> Result<StepOutcome> {
        let accepted = self.check_rule().and(accepted);
        let swap = &self.plan.config().swap;
        // Where sub-groups wait for each other, gradients that were read for a later one must not
        // hold the buffer that an earlier one waits for.
        let is_bound = !(swap.pipeline_read && swap.pipeline_write);
        let kind = match &accepted {
            Ok(StepGradients::Stored(_)) if is_bound => SweepKind::UpdateInOrder,
            _ => SweepKind::Update,
        };
        let (begun, gradients) = self.decide_step(kind, begun, accepted, options)?;
        let outcome = begun.outcome;
        if !outcome.is_taken {
            return Ok(outcome);
        }
        let Parts { swapper, passage, groups, update_counts, .. } = self.parts();
        let result = swapper.resume().and_then(|sweep| {
            if outcome.skipped {
                return sweep.abandon();
            }
            begun.activity.turn_to(Phase::SwapAndUpdate);
            let (plan, pool) = (passage.plan, passage.pool);
            let (grad_scale, rounder) = (outcome.grad_scale, plan.rounder(passage.attempt));
            let updates = Updates { plan, pool, groups, update_counts, grad_scale, rounder };
            run_updates(&updates, &gradients, passage, sweep, params)
        });
        let updated = if outcome.skipped { Vec::new() } else { gradients.params(&self.plan) };
        self.end_step(begun, result, &updated)
    }

    /// Collective: norm and decision of a step, with the gradients that were accepted, if they
    /// were. The sweep is under way afterwards if the step is taken, skipped or not.
    pub(super) fn decide_step<'g, G: GradElem>(
        &mut self,
        kind: SweepKind,
        (start, activity): (Instant, Activity),
        accepted: Result<StepGradients<'g, G>>,
        options: StepOptions<'_>,
    ) -> Result<(Begun, StepGradients<'g, G>)> {
        let loss_scale = self.loss_scale_of(options);
        // Swap-ins start here at the latest, before the norm is known; a skipped step keeps them
        // for the next one.
        let ending = self.ending();
        let ready =
            accepted.and_then(|it| Ok((it, self.swapper.sweep(kind, ending, &self.slots)?)));

        let timers = &mut self.recorder.timers;
        let norm = timers.time(Timer::SwapOutGradient, || match &ready {
            Ok((gradients, _)) => gradients.norm(&self.pool, self.plan.norm_blocks()),
            Err(_) => BlockNorm::default(),
        });
        let has_failed = ready.is_err();
        let (stop, has_news) = (options.stop, [self.balance.find_evidence(), options.wants_table]);
        let world = timers
            .time(Timer::GradientNorm, || reduce(&*self.comm, norm, has_failed, stop, has_news))?;
        if world.failed > 0 {
            agree(&*self.comm, ready.map(drop))?;
            return Err(Error::internal("a rank refused the step without an error"));
        }
        if world.unbalanced > 0 {
            self.balance.reweigh(&self.plan, &*self.comm)?;
        }
        let (gradients, sweep) = ready?;
        let clip_norm = self.plan.config().optimizer.clip_norm;
        if world.out_of_time > 0 {
            agree(&*self.comm, sweep.abandon())?;
            activity.turn_to(Phase::BetweenSteps);
            // A commit of the steps since the last one costs no more than a record.
            if self.committed_attempts().is_some_and(|committed| committed < self.attempts) {
                let user_blob = self.user_blob.clone();
                self.commit(&user_blob)?;
            }
            let outcome = decide(world, self.attempts, clip_norm, loss_scale);
            let outcome = StepOutcome { is_taken: false, epoch: self.epoch(), ..outcome };
            return Ok((Begun { start, activity, outcome }, gradients));
        }
        sweep.keep();
        self.attempts += 1;
        self.loss_scale = loss_scale;
        options.user_blob.clone_into(&mut self.user_blob);
        let outcome = decide(world, self.attempts, clip_norm, loss_scale);
        Ok((Begun { start, activity, outcome }, gradients))
    }

    /// Collective: everything of a step after the last chunk has been updated, which came to
    /// `result`.
    pub(super) fn end_step(
        &mut self,
        begun: Begun,
        result: Result<()>,
        updated: &[ParamIndex],
    ) -> Result<StepOutcome> {
        let Begun { start, activity, mut outcome } = begun;
        self.follow_outcome(&outcome);
        activity.turn_to(Phase::Commit);
        outcome.epoch = self.settle(result, updated, outcome.stop)?;
        outcome.duration = start.elapsed();
        self.balance.end_step(outcome.duration);
        self.tell_step(&outcome);
        Ok(outcome)
    }

    /// Whether there is code for the update.
    fn check_rule(&self) -> Result<()> {
        self.plan.config().optimizer.own.as_ref().map_or(Ok(()), |own| {
            Err(Error::usage("a program's own optimizer is not updated by `step`")
                .with("optimizer", &own.name)
                .hint("update chunk by chunk: SwappedOptimizer::begin_update"))
        })
    }

    /// What must be on the drives when the next step ends.
    fn ending(&self) -> Ending {
        let config = self.plan.config();
        let is_commit = config.is_durable()
            && (self.attempts + 1).is_multiple_of(config.durability.commit_every);
        match () {
            () if is_commit => Ending::Flushed,
            () if config.swap.write_behind && config.swap.pipeline_write => Ending::Behind,
            () => Ending::Written,
        }
    }

    /// Collective: waits until everything that is on its way has arrived: the last writes of the
    /// steps so far, and reads ahead. Chunks that `swap.cache` keeps in memory stay there, see
    /// [`Self::write_back`].
    ///
    /// # Errors
    /// Agreed: what has failed behind a step, on any rank. The optimizer is then as unusable as
    /// after a step that failed.
    pub fn flush(&mut self) -> Result<()> {
        let settled = self.check_usable().and_then(|()| self.swapper.settle());
        self.agree_on_arrival(settled)
    }

    /// Collective: as [`Self::flush`], and writes the chunks that are newer in memory, so that the
    /// files hold the whole state.
    ///
    /// # Errors
    /// As [`Self::flush`].
    pub fn write_back(&mut self) -> Result<()> {
        let flushed = self.check_usable().and_then(|()| {
            self.swapper.flush()?;
            self.swapper.settle()
        });
        self.agree_on_arrival(flushed)
    }

    fn agree_on_arrival(&mut self, flushed: Result<()>) -> Result<()> {
        let _activity = Activity::begin(&*self.comm, Phase::Sweep);
        self.record_moved();
        agree(&*self.comm, flushed).inspect_err(|error| {
            // Refused, nothing has been asked of the drives.
            if error.kind() == ErrorKind::Usage {
                return;
            }
            self.unusable.get_or_insert("writes behind an earlier step failed");
        })
    }

    pub(super) fn check_arguments<P: ParamElem>(
        &self,
        params: &[P],
        options: StepOptions<'_>,
    ) -> Result<()> {
        self.check_usable()?;
        self.check_params(params)?;
        let loss_scale = self.loss_scale_of(options);
        if !(loss_scale.is_finite() && loss_scale > 0.0) {
            return Err(Error::usage("the loss scale must be finite and above 0")
                .with("loss scale", loss_scale));
        }
        if self.plan.is_halved() {
            let (attempt, halves) = (self.attempts + 1, P::upper_halves(params));
            self.checksums.verify_parameters(&self.pool, &self.plan, attempt, halves)?;
        }
        Ok(())
    }

    /// Collective: counts the updates, writes the record if this step is one to commit, and agrees.
    /// The record comes before the agreement: it counts only if all ranks have theirs. Gives the
    /// number of the commit.
    fn settle(
        &mut self,
        moved: Result<()>,
        updated: &[ParamIndex],
        stops: bool,
    ) -> Result<Option<u64>> {
        let start = Instant::now();
        let written = moved.and_then(|()| {
            updated.iter().for_each(|param| self.update_counts[param.index()] += 1);
            let is_due = stops || self.is_commit_due();
            if !is_due {
                return Ok(None);
            }
            let user_blob = self.user_blob.clone();
            self.write_record(&user_blob)
        });
        let timers = &mut self.recorder.timers;
        timers.record(Timer::Commit, start.elapsed());
        let agreed = timers.time(Timer::Agreement, || agree(&*self.comm, written));
        let record = agreed.inspect_err(|_| {
            self.unusable = Some("an earlier step failed");
        })?;
        let epoch = record.as_ref().map(|record| record.stamp.epoch);
        record.into_iter().for_each(|record| self.take_commit(record));
        Ok(epoch)
    }
}

/// The same on every rank, because all of it follows from what was reduced.
fn decide(world: WorldNorm, attempt: u64, clip_norm: f64, loss_scale: f32) -> StepOutcome {
    let mut outcome = StepOutcome {
        attempt,
        skipped: world.overflows > 0,
        grad_norm: f64::INFINITY,
        grad_scale: 0.0,
        epoch: None,
        stop: world.stopping > 0,
        is_taken: true,
        wants_table: world.asking > 0,
        duration: Duration::ZERO,
    };
    if !outcome.skipped {
        let loss_scale = f64::from(loss_scale);
        outcome.grad_norm = world.norm / loss_scale;
        // As torch's clip_grad_norm_: the small constant keeps a norm of zero harmless.
        let clip = match clip_norm > 0.0 {
            true => (clip_norm / (outcome.grad_norm + 1e-6)).min(1.0),
            false => 1.0,
        };
        outcome.grad_scale = (clip / loss_scale) as f32;
    }
    outcome
}

/// The pipeline's middle: what happens to each chunk while it is in memory.
/// The pipeline's middle: what happens to each chunk while it is in memory.
fn run_updates<G: GradElem, P: ParamElem>(
    updates: &Updates<'_>,
    gradients: &StepGradients<'_, G>,
    mut passage: Passage<'_>,
    mut sweep: Sweep<'_>,
    params: &mut [P],
) -> Result<()> {
    let plan = updates.plan;
    for _ in plan.partition().chunks() {
        let chunk = passage.timers.time(Timer::SwapInState, || sweep.next_chunk())?;
        let Some(mut resident) = chunk else { break };
        let index = resident.index();
        let at = plan.partition().chunk(index);
        let params = &mut params[at.shard_offset as usize..][..at.elems as usize];
        passage.take_in(&resident, halves_of(plan, params))?;
        let (bytes, spilled) = resident.with_gradient();
        let gradients = passage.gradients(gradients, index, spilled)?;
        let has_changed = passage
            .timers
            .time(Timer::OptimizerStep, || updates.run(index, &gradients, bytes, params));
        if has_changed {
            passage.swap_out(resident, halves_of(plan, params));
        } else {
            resident.release();
        }
    }
    passage.timers.turn_to(NO_CHUNK);
    passage.timers.time(Timer::SwapOutState, || sweep.finish())
}

/// Parameters as upper halves of masters, where they are that.
pub(super) fn halves_of<'a, P: ParamElem>(plan: &Plan, params: &'a [P]) -> &'a [bf16] {
    if plan.is_halved() { P::upper_halves(params) } else { &[] }
}
