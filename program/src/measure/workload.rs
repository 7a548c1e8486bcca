//! The swapper without a training program: masters are synthetic, and gradients are made before the
//! clock starts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use half::bf16;
use serde::{Deserialize, Serialize};

use optswap::internals::config::{AccumulateIn, Config, GradientPlace, memory_limit};
use optswap::internals::coord::{Communicator, Topology, agree, gather_all};
use optswap::internals::error::{Error, ErrorKind, Result};
use optswap::internals::gradients::{Gradients, MicroBatch};
use optswap::internals::job::{answer_table_request, stop_request, table_request};
use optswap::internals::optim::{GradElem, ParamElem};
use optswap::internals::partition::Run;
use optswap::internals::state::{Inventory, Parameter};
use optswap::internals::step::{
    CreateOptions, StepOptions, StepOutcome, Stop, SwappedOptimizer, Verifier,
    fill_synthetic_gradients, fill_synthetic_masters,
};
use optswap::internals::units::Bytes;

/// The largest synthetic parameter, so that there are several; larger only where there would be
/// more than so many.
const PARAM_ELEMS_MAX: u64 = 16 << 20;
const PARAMS_MAX: u64 = 4096;

/// Bytes that comparing with an optimizer in memory takes for each element: its state, and the
/// gradient as f32.
const VERIFIER_BYTES: usize = 16;

/// Elements of a piece of gradient, where they are handed over.
const HANDED_OVER_ELEMS: usize = 1 << 20;

/// One rank's part of a model, its gradients, and the optimizer.
pub(super) struct Workload<G> {
    pub optimizer: SwappedOptimizer,
    /// Steps take them in turns. They were made before: making them would take longer than a step
    /// may, and reads of the next step go on meanwhile.
    gradients: [Vec<G>; 2],
    params: Vec<bf16>,
    verifier: Option<Verifier>,
    steps: u64,
}

/// What one rank measured over several steps.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Stretch {
    /// From the first step's start until everything is on the drives, comparisons left out.
    pub seconds: f64,
    /// The same, until this rank's own last write ended, before it waits for others.
    pub done_seconds: f64,
    /// The same, until its last write to each of its drives ended.
    pub drive_done_seconds: Vec<f64>,
    /// Of each `step()`, in seconds.
    pub step_seconds: Vec<f64>,
}

impl<G: GradElem> Workload<G> {
    /// Collective: creates the job and initialises it.
    ///
    /// # Errors
    /// Agreed: usage if the configuration does not fit the model, the drives or memory; errors of
    /// the drives or of lost ranks.
    pub fn create(
        comm: &Arc<dyn Communicator>,
        config: &Config,
        inventory: Inventory,
        seed: u64,
        verifies: bool,
        convert: impl Fn(f32) -> G,
    ) -> Result<Self> {
        let mut optimizer = SwappedOptimizer::create(
            config,
            inventory,
            Arc::clone(comm),
            CreateOptions::default(),
        )?;
        let elems = optimizer.partition().elems();
        check_memory::<G>(&**comm, elems, verifies)?;
        let flat_start = optimizer.partition().flat().start;
        let fill = |run: &Run, masters: &mut [f32]| {
            fill_synthetic_masters(seed, flat_start + run.shard_offset, masters);
            Ok(())
        };
        let elems = elems as usize;
        let mut params = vec![bf16::ZERO; elems];
        optimizer.initialize_parameters(&mut params, fill)?;
        let verifier = if verifies { Some(Verifier::new(&optimizer, fill)?) } else { None };
        let gradients = [1, 2].map(|turn| {
            let mut shard: Vec<G> = vec![convert(0.0); elems];
            fill_synthetic_gradients(seed, turn, flat_start, &mut shard, &convert);
            shard
        });
        Ok(Self { optimizer, gradients, params, verifier, steps: 0 })
    }

    /// Collective: the digest of the state.
    ///
    /// # Errors
    /// Agreed errors of the drives.
    pub fn state_digest(&mut self) -> Result<String> {
        self.optimizer.state_digest(&self.params)
    }

    /// Collective: so many steps, until everything is on the drives.
    ///
    /// # Errors
    /// Agreed: errors of the drives or of lost ranks, terminated after a signal. Internal if a
    /// comparison found a difference.
    pub fn run(&mut self, steps: u64) -> Result<Stretch> {
        let mut stretch = Stretch::default();
        // Writes and reads cross the ends of steps: both ends of a stretch are drained.
        self.optimizer.flush()?;
        self.optimizer.communicator().barrier()?;
        let start = Instant::now();
        let mut comparing = Duration::ZERO;
        for _ in 0..steps {
            let begin = Instant::now();
            if stop_request().is_some() {
                self.optimizer.request_stop(Stop::AfterThisStep);
            }
            if table_request() {
                self.optimizer.request_table();
            }
            let outcome = self.step()?;
            stretch.step_seconds.push(begin.elapsed().as_secs_f64());
            self.steps += 1;
            answer_table_request(&self.optimizer, &outcome)?;
            if outcome.stop {
                let stopped = "stopped by a signal: nothing is measured";
                return Err(Error::new(ErrorKind::Terminated, stopped).agreed());
            }
            let before = Instant::now();
            if let Some(verifier) = &mut self.verifier {
                let shard = &self.gradients[((self.steps - 1) % 2) as usize];
                let gradients = &self.optimizer.plan().config().gradients;
                let is_rounded = gradients.place != GradientPlace::Caller
                    && gradients.accumulate_in == AccumulateIn::Bf16;
                let widen = |gradient: &G| {
                    if is_rounded { bf16::emit(gradient.load()).load() } else { gradient.load() }
                };
                let widened: Vec<f32> = shard.iter().map(widen).collect();
                verifier.step(&self.optimizer, &outcome, &widened);
                verifier.check(&mut self.optimizer, &self.params)?;
                comparing += before.elapsed();
            }
        }
        self.optimizer.flush()?;
        let without = |took: Duration| took.saturating_sub(comparing).as_secs_f64();
        stretch.seconds = without(start.elapsed());
        let done = |last: Instant| {
            if last > start {
                without(last - start)
            } else {
                // Where all state stays in memory, nothing is written.
                0.0
            }
        };
        let of_drives = self.optimizer.last_swap_outs().into_iter().map(done);
        stretch.drive_done_seconds = of_drives.collect();
        let last = stretch.drive_done_seconds.iter().copied().fold(0.0, f64::max);
        stretch.done_seconds = if last > 0.0 { last } else { stretch.seconds };
        Ok(stretch)
    }

    /// Collective: a step with the gradients borrowed, or handed over, the last ones first, where
    /// the configuration has a place for them.
    fn step(&mut self) -> Result<StepOutcome> {
        let options = StepOptions::default();
        let shard = &self.gradients[(self.steps % 2) as usize];
        if self.optimizer.plan().config().gradients.place == GradientPlace::Caller {
            return self.optimizer.step(&Gradients::Shard(shard), &mut self.params, options);
        }
        let sink = self.optimizer.gradient_sink();
        for piece in self.optimizer.partition().pieces().iter().rev() {
            let (first, mut end) = (piece.in_shard().start, piece.in_shard().end);
            while end > first {
                let start = end.saturating_sub(HANDED_OVER_ELEMS).max(first);
                let offset = piece.param_offset + (start - first) as u64;
                let grads = &shard[start..end];
                sink.add(piece.param, offset, grads, MicroBatch::Last)?;
                end = start;
            }
        }
        self.optimizer.step(&Gradients::handed_over(), &mut self.params, options)
    }
}

/// Collective: checks that a node's memory holds what its ranks have beside the optimizer:
/// parameters, two sets of gradients, and an optimizer in memory to compare with.
fn check_memory<G>(comm: &dyn Communicator, elems: u64, verifies: bool) -> Result<()> {
    let of_elem =
        size_of::<bf16>() + 2 * size_of::<G>() + if verifies { VERIFIER_BYTES } else { 0 };
    let topology = Topology::discover(comm)?;
    let all: Vec<u64> = gather_all(comm, &elems.saturating_mul(of_elem as u64))?;
    let needed = topology.local_ranks().map(|rank| all[rank.index()]);
    let needed = needed.fold(0, u64::saturating_add);
    let checked = match memory_limit() {
        Some((limit, source)) if needed > limit.0 => {
            let message = "the parameters and gradients of this node's ranks exceed its memory";
            Err(Error::usage(message)
                .with("needed", Bytes(needed).human())
                .with(source, limit.human())
                .hint("measure with fewer --params: a step's bytes per second do not depend on it"))
        }
        _ => Ok(()),
    };
    agree(comm, checked)
}

/// A model of so many elements.
///
/// # Errors
/// Usage, if there are none or too many.
pub fn synthetic_inventory(params: u64) -> Result<Inventory> {
    let largest = PARAM_ELEMS_MAX.max(params.div_ceil(PARAMS_MAX));
    let count = params.div_ceil(largest);
    let parameter = |index: u64| {
        let elems = largest.min(params - index * largest);
        Parameter::new(format!("synthetic.{index}"), [elems as usize])
    };
    Inventory::new((0..count).map(parameter).collect())
}
