//! Where gradients are handed over before the step, from whatever thread produces them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::store::{GradientStore, StoreTools};
use crate::error::{Error, Result};
use crate::io::Buffer;
use crate::optim::GradElem;
use crate::plan::Plan;
use crate::swap::SpillPort;
use crate::timers::{Timer, Timers, Tracer};
use crate::units::ParamIndex;

/// Whether more gradients of a parameter follow before the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MicroBatch {
    /// Another micro-batch follows, which will be added.
    More,
    /// This is the last micro-batch before the step.
    Last,
}

/// Takes this rank's gradients while backward goes on, and keeps their sums in memory or on the
/// drives until the step (`gradients.place`). Clones are the same sink. It may be used from several
/// threads at once; their calls wait for each other, and never for other ranks.
///
/// When its optimizer has been closed or dropped, adding a piece is an error.
#[derive(Clone)]
pub struct GradientSink {
    shared: Arc<Shared>,
}

struct Shared {
    plan: Plan,
    pool: Arc<rayon::ThreadPool>,
    state: Mutex<State>,
}

struct State {
    store: GradientStore,
    spills: SpillPort,
    /// Of what is done here, until the optimizer takes them over.
    timers: Timers,
    /// An update that the caller makes is under way; it has the store if it uses it.
    is_lent: bool,
    /// The optimizer is gone.
    has_ended: bool,
}

impl GradientSink {
    /// An empty sink; `resident` has a buffer for each chunk whose gradients stay in memory.
    pub(crate) fn new(
        plan: &Plan,
        pool: Arc<rayon::ThreadPool>,
        (spills, resident): (SpillPort, Vec<Buffer>),
        tracer: Arc<Tracer>,
    ) -> Self {
        let store = GradientStore::new(plan, resident);
        let timers = Timers::traced(tracer);
        let state = Mutex::new(State { store, spills, timers, is_lent: false, has_ended: false });
        Self { shared: Arc::new(Shared { plan: plan.clone(), pool, state }) }
    }

    /// Hands over the gradients of elements `offset..offset + piece.len()` of a parameter. They are
    /// copied, or added to those of earlier micro-batches, before this returns. A micro-batch of a
    /// parameter ends when all of this rank's share has come; its pieces may come in any order, all
    /// with the same `micro_batch`.
    ///
    /// Where `gradients.place` says so, complete chunks are written to the drives while the caller
    /// goes on. If that fails, [`crate::SwappedOptimizer::flush_gradients`] or the step gives the
    /// error to all ranks.
    ///
    /// # Errors
    /// Usage, naming the parameter: unknown, beyond its end, outside of this rank's share, twice in
    /// one micro-batch, or after the last one. Nothing has changed then; the next flush or step
    /// gives the error to all ranks, once, and the right piece may be handed over all the same.
    /// Usage on this rank alone while an update is under way, when the optimizer is gone, in a
    /// forked child, or if `gradients.place` leaves gradients with the caller.
    pub fn add<G: GradElem>(
        &self,
        param: ParamIndex,
        offset: u64,
        piece: &[G],
        micro_batch: MicroBatch,
    ) -> Result<()> {
        let mut held = self.hold();
        held.state.spills.check_process()?;
        if held.state.has_ended {
            return Err(Error::usage("the optimizer has been closed")
                .hint("take the gradient sink of one that is open"));
        }
        if held.state.is_lent {
            return Err(Error::usage("an update is under way")
                .hint("end it before gradients of the next step are handed over"));
        }
        let start = Instant::now();
        let (store, mut tools) = held.store_and_tools();
        let is_last = micro_batch == MicroBatch::Last;
        let added = store.add(&mut tools, (param, offset), piece, is_last);
        held.state.timers.record(Timer::HandOverGradient, start.elapsed());
        added
    }

    /// The store, until the result is dropped; other threads wait meanwhile.
    pub(crate) fn hold(&self) -> HeldGradients<'_> {
        let state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        HeldGradients { shared: &self.shared, state }
    }
}

/// The gradients that have been handed over, while no other thread can add to them.
pub(crate) struct HeldGradients<'a> {
    shared: &'a Shared,
    state: MutexGuard<'a, State>,
}

impl HeldGradients<'_> {
    /// What has been handed over.
    pub fn store(&self) -> &GradientStore {
        &self.state.store
    }

    /// Waits until everything is where it belongs, and records that time. Not agreed.
    ///
    /// # Errors
    /// Usage if a piece was refused, or if the last piece of a parameter has not come; everything
    /// stays then. I/O: the gradients are lost.
    pub fn flush(&mut self, timer: Timer) -> Result<()> {
        let start = Instant::now();
        let (store, mut tools) = self.store_and_tools();
        let flushed = store.flush(&mut tools);
        self.state.timers.record(timer, start.elapsed());
        flushed
    }

    /// Forgets what has been handed over.
    pub fn clear(&mut self) {
        if self.state.is_lent {
            return;
        }
        let State { store, spills, .. } = &mut *self.state;
        store.clear(self.shared.plan.partition(), spills);
    }

    /// Gives the times and counts of what was done here to `timers`.
    pub fn drain_timers(&mut self, timers: &mut Timers) {
        timers.absorb(&mut self.state.timers);
    }

    /// Takes the store out for an update that the caller makes; until it is back, nothing can be
    /// handed over.
    pub fn lend(&mut self) -> GradientStore {
        self.state.is_lent = true;
        std::mem::take(&mut self.state.store)
    }

    /// Refuses pieces while the caller makes an update with gradients of their own memory.
    pub fn refuse_pieces(&mut self) {
        self.state.is_lent = true;
    }

    /// Takes the store back if it was lent; pieces are welcome again.
    pub fn take_back(&mut self, store: Option<GradientStore>) {
        if let Some(store) = store {
            self.state.store = store;
        }
        self.state.is_lent = false;
    }

    /// Forgets everything, for good: the optimizer goes.
    pub fn end(&mut self) {
        self.state.has_ended = true;
        self.state.store = GradientStore::default();
    }

    fn store_and_tools(&mut self) -> (&mut GradientStore, StoreTools<'_>) {
        let State { store, spills, timers, .. } = &mut *self.state;
        let Shared { plan, pool, .. } = self.shared;
        (store, StoreTools { plan, pool, spills, timers })
    }
}
