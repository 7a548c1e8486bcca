//! One step: norm, decision, pipeline, agreement.

use std::time::{Duration, Instant};

use half::bf16;

use super::checksums::Checksums;
use super::gradients::Gradients;
use super::norm::{Stop, WorldNorm, reduce};
use super::optimizer::SwappedOptimizer;
use super::plan::Plan;
use super::snapshot::Snapshot;
use super::source::StepGradients;
use super::update::Updates;
use crate::coord::{Activity, Phase, agree};
use crate::error::{Error, Result};
use crate::optim::{BlockNorm, GradElem, ParamElem};
use crate::storage::Slots;
use crate::swap::{Ending, ResidentChunk, Sweep, SweepKind};
use crate::timers::{Counter, NO_CHUNK, Timer, Timers};
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
        let accepted = self.check_arguments(params, options).and_then(|()| {
            self.gradients.check_unused()?;
            let (inventory, partition) = (self.plan.inventory(), self.plan.partition());
            let laid_out = gradients.lay_out(inventory, partition)?;
            laid_out.completed(self.plan.config().gradients.missing, inventory, partition)
        });
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

    /// Collective: the rest of a step, with the gradients that were accepted, if they were.
    pub(super) fn take_step<G: GradElem, P: ParamElem>(
        &mut self,
        (start, activity): (Instant, Activity),
        accepted: Result<StepGradients<'_, G>>,
        params: &mut [P],
        options: StepOptions<'_>,
    ) -> Result<StepOutcome> {
        let loss_scale = self.loss_scale_of(options);
        // Swap-ins start here at the latest, before the norm is known; a skipped step keeps them
        // for the next one.
        let (kind, ending) = (SweepKind::Update, self.ending());
        let ready =
            accepted.and_then(|it| Ok((it, self.swapper.sweep(kind, ending, &self.slots)?)));

        let timers = &mut self.recorder.timers;
        let norm = timers.time(Timer::SwapOutGradient, || match &ready {
            Ok((gradients, _)) => gradients.norm(&self.pool, self.plan.norm_blocks()),
            Err(_) => BlockNorm::default(),
        });
        let has_failed = ready.is_err();
        let (stop, has_news) = (options.stop, [self.balance.has_evidence(), options.wants_table]);
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
            drop(activity);
            // A commit of the steps since the last one costs no more than a record.
            if self.committed_attempts().is_some_and(|committed| committed < self.attempts) {
                let user_blob = self.user_blob.clone();
                self.commit(&user_blob)?;
            }
            let outcome = decide(world, self.attempts, clip_norm, loss_scale);
            return Ok(StepOutcome { is_taken: false, epoch: self.epoch(), ..outcome });
        }

        self.attempts += 1;
        self.loss_scale = loss_scale;
        options.user_blob.clone_into(&mut self.user_blob);
        let mut outcome = decide(world, self.attempts, clip_norm, loss_scale);
        let result = if outcome.skipped {
            sweep.abandon()
        } else {
            activity.turn_to(Phase::SwapAndUpdate);
            let updates = Updates {
                plan: &self.plan,
                pool: &self.pool,
                groups: &self.groups,
                update_counts: &self.update_counts,
                grad_scale: outcome.grad_scale,
                dice: self.plan.dice(self.attempts),
            };
            let mut work = Work {
                updates,
                gradients: &gradients,
                attempt: self.attempts,
                slots: &mut self.slots,
                checksums: &mut self.checksums,
                snapshot: self.snapshot.as_mut(),
                timers: &mut self.recorder.timers,
            };
            work.run(sweep, params)
        };
        let updated = if outcome.skipped { Vec::new() } else { gradients.params(&self.plan) };
        self.follow_outcome(&outcome);
        activity.turn_to(Phase::Commit);
        outcome.epoch = self.settle(result, &updated, outcome.stop, options.user_blob)?;
        outcome.duration = start.elapsed();
        self.balance.end_step(outcome.duration);
        self.tell_step(&outcome);
        Ok(outcome)
    }

    /// What must be on the drives when the next step ends.
    fn ending(&self) -> Ending {
        let config = self.plan.config();
        let is_commit = config.is_durable()
            && (self.attempts + 1).is_multiple_of(config.durability.commit_every);
        match () {
            () if is_commit => Ending::Flushed,
            () if config.swap.write_behind => Ending::Behind,
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
        agree(&*self.comm, flushed).inspect_err(|_| {
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
        user_blob: &[u8],
    ) -> Result<Option<u64>> {
        let start = Instant::now();
        let written = moved.and_then(|()| {
            updated.iter().for_each(|param| self.update_counts[param.index()] += 1);
            let is_due = stops || self.is_commit_due();
            if is_due { self.write_record(user_blob) } else { Ok(None) }
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
struct Work<'a, 'g, G> {
    updates: Updates<'a>,
    gradients: &'a StepGradients<'g, G>,
    attempt: u64,
    slots: &'a mut Slots,
    checksums: &'a mut Checksums,
    snapshot: Option<&'a mut Snapshot>,
    timers: &'a mut Timers,
}

impl<G: GradElem> Work<'_, '_, G> {
    fn run<P: ParamElem>(&mut self, mut sweep: Sweep<'_>, params: &mut [P]) -> Result<()> {
        let (plan, pool) = (self.updates.plan, self.updates.pool);
        for _ in plan.partition().chunks() {
            let chunk = self.timers.time(Timer::SwapInState, || sweep.next_chunk())?;
            let Some(mut resident) = chunk else { break };
            let index = resident.index();
            self.timers.turn_to(index.0);
            self.timers.count(Counter::Chunks, 1);
            let at = plan.partition().chunk(index);
            let params = &mut params[at.shard_offset as usize..][..at.elems as usize];
            let before = Instant::now();
            self.look_at(&resident, halves_of(plan, params))?;
            self.timers.record(Timer::VerifyChecksums, before.elapsed());

            let before = Instant::now();
            let verifies = self.checksums.is_due(index, self.attempt);
            let (bytes, spilled) = resident.with_gradient();
            let gradients = self.gradients.of_chunk((plan, pool), index, spilled, verifies)?;
            if !spilled.is_empty() {
                self.timers.record(Timer::VerifyChecksums, before.elapsed());
            }
            let has_changed = self
                .timers
                .time(Timer::OptimizerStep, || self.updates.run(index, &gradients, bytes, params));
            if has_changed {
                let before = Instant::now();
                let uppers = halves_of(plan, params);
                self.checksums.take(pool, &plan.layout(index), index, &resident, uppers);
                self.timers.record(Timer::TakeChecksums, before.elapsed());
                self.slots.mark_written(index);
                resident.swap_out();
            } else {
                resident.release();
            }
        }
        self.timers.turn_to(NO_CHUNK);
        self.timers.time(Timer::SwapOutState, || sweep.finish())
    }

    /// Before the update: is it what was written, and does a snapshot want it? (Upper halves of
    /// masters have been compared with the caller's other arguments.)
    fn look_at(&mut self, resident: &ResidentChunk, uppers: &[bf16]) -> Result<()> {
        let (plan, pool) = (self.updates.plan, self.updates.pool);
        let chunk = resident.index();
        if !resident.is_fresh() {
            let bytes = plan.layout(chunk).swap_in_bytes();
            self.timers.count(Counter::CacheHitBytes, bytes);
        }
        if resident.is_fresh() && self.checksums.is_due(chunk, self.attempt) {
            let extent = self.slots.read_extent(chunk);
            self.checksums.verify(pool, plan, chunk, extent, resident, &[])?;
        }
        if let Some(snapshot) = &mut self.snapshot {
            let layout = plan.layout(chunk);
            snapshot.offer(chunk, &layout, resident, uppers, self.checksums.of(chunk));
        }
        Ok(())
    }
}

/// Parameters as upper halves of masters, where they are that.
fn halves_of<'a, P: ParamElem>(plan: &Plan, params: &'a [P]) -> &'a [bf16] {
    if plan.is_halved() { P::upper_halves(params) } else { &[] }
}
