//! One step: norm, decision, pipeline, agreement.

use std::time::{Duration, Instant};

use super::gradients::{Gradients, ShardGradients};
use super::norm::{WorldNorm, reduce, shard_norm};
use super::optimizer::SwappedOptimizer;
use super::plan::Plan;
use super::update::ChunkUpdate;
use crate::coord::agree;
use crate::error::{Error, Result};
use crate::optim::{AdamW, BlockNorm, GradElem, ParamElem};
use crate::partition::Partition;
use crate::swap::{Sweep, SweepKind, SweepTotals};
use crate::timers::{Timer, Timers};
use crate::units::ParamIndex;

/// What a step may be told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepOptions {
    /// What the loss was multiplied by; gradients are divided by it.
    pub loss_scale: f32,
}

impl Default for StepOptions {
    fn default() -> Self {
        Self { loss_scale: 1.0 }
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
    /// From the call until everything was on this rank's drives and agreed.
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
        options: StepOptions,
    ) -> Result<StepOutcome> {
        let start = Instant::now();
        let kernel_before = self.process_io.bytes();
        let accepted = self.check_usable().and_then(|()| {
            check_arguments(self.plan.partition(), params, options)?;
            gradients.lay_out(self.plan.inventory(), self.plan.partition())
        });
        // Swap-ins start here, before the norm is known; a skipped step drops them.
        let ready =
            accepted.and_then(|laid_out| Ok((laid_out, self.swapper.sweep(SweepKind::Update)?)));

        let timers = &mut self.recorder.timers;
        let norm = timers.time(Timer::SwapOutGradient, || match &ready {
            Ok((laid_out, _)) => shard_norm(&self.pool, laid_out, params.len()),
            Err(_) => BlockNorm::default(),
        });
        let has_failed = ready.is_err();
        let world = timers.time(Timer::GradientNorm, || reduce(&*self.comm, norm, has_failed))?;
        if world.failed > 0 {
            agree(&*self.comm, ready.map(drop))?;
            return Err(Error::internal("a rank refused the step without an error"));
        }
        let (laid_out, sweep) = ready?;

        self.attempts += 1;
        let mut outcome =
            decide(world, self.attempts, self.plan.config().optimizer.clip_norm, options);
        let result = if outcome.skipped {
            sweep.abandon()
        } else {
            let adamw = |param: ParamIndex| {
                let hyper = &self.groups[self.plan.inventory().parameter(param).group];
                AdamW::new(hyper, self.update_counts[param.index()] + 1, outcome.grad_scale)
            };
            let work = Work { plan: &self.plan, pool: &self.pool, gradients: &laid_out };
            work.run(sweep, params, adamw, timers)
        };
        timers.record(Timer::StepOwn, start.elapsed());
        let agreed = timers.time(Timer::Agreement, || agree(&*self.comm, result));
        let totals = agreed.inspect_err(|_| {
            self.unusable = Some("an earlier step failed");
        })?;
        if !outcome.skipped {
            for param in laid_out.params() {
                self.update_counts[param.index()] += 1;
            }
        }

        outcome.duration = start.elapsed();
        let kernel_bytes = self.process_io.bytes() - kernel_before;
        self.recorder.add_step(&totals, kernel_bytes, outcome.duration);
        Ok(outcome)
    }
}

fn check_arguments<P>(partition: &Partition, params: &[P], options: StepOptions) -> Result<()> {
    if params.len() as u64 != partition.elems() {
        return Err(Error::usage("the slice for parameters has another length than the shard")
            .with("slice", params.len())
            .with("shard", partition.elems()));
    }
    if !(options.loss_scale.is_finite() && options.loss_scale > 0.0) {
        return Err(Error::usage("the loss scale must be finite and above 0")
            .with("loss scale", options.loss_scale));
    }
    Ok(())
}

/// The same on every rank, because all of it follows from what was reduced.
fn decide(world: WorldNorm, attempt: u64, clip_norm: f64, options: StepOptions) -> StepOutcome {
    let duration = Duration::ZERO;
    if world.overflows > 0 {
        let grad_norm = f64::INFINITY;
        return StepOutcome { attempt, skipped: true, grad_norm, grad_scale: 0.0, duration };
    }
    let loss_scale = f64::from(options.loss_scale);
    let grad_norm = world.norm / loss_scale;
    // As torch's clip_grad_norm_: the small constant keeps a norm of zero harmless.
    let clip = if clip_norm > 0.0 { (clip_norm / (grad_norm + 1e-6)).min(1.0) } else { 1.0 };
    let grad_scale = (clip / loss_scale) as f32;
    StepOutcome { attempt, skipped: false, grad_norm, grad_scale, duration }
}

/// The pipeline's middle: what happens to each chunk while it is in memory.
struct Work<'a, 'g, G> {
    plan: &'a Plan,
    pool: &'a rayon::ThreadPool,
    gradients: &'a ShardGradients<'g, G>,
}

impl<G: GradElem> Work<'_, '_, G> {
    fn run<P: ParamElem>(
        &self,
        mut sweep: Sweep<'_>,
        params: &mut [P],
        adamw: impl Fn(ParamIndex) -> AdamW,
        timers: &mut Timers,
    ) -> Result<SweepTotals> {
        for _ in self.plan.partition().chunks() {
            let chunk = timers.time(Timer::SwapInState, || sweep.next_chunk())?;
            let Some(mut resident) = chunk else { break };
            let chunk = self.plan.partition().chunk(resident.index());
            let layout = self.plan.layout(resident.index());
            let start = chunk.shard_offset as usize;
            let elems = chunk.elems as usize;
            let update = ChunkUpdate {
                pool: self.pool,
                gradients: self.gradients,
                shard_offset: start,
                elems,
                params: &mut params[start..start + elems],
            };
            let has_changed =
                timers.time(Timer::OptimizerStep, || update.run(&layout, &mut resident, &adamw));
            if has_changed {
                resident.swap_out();
            } else {
                resident.release();
            }
        }
        timers.time(Timer::SwapOutState, || sweep.finish())
    }
}
