//! What a rank publishes about itself while it works, so that ranks that wait for it can name it
//! and what it is doing. A communicator may have a [`Presence`]; the step sets its phase, and the
//! I/O thread its count of operations.

use std::ops::Sub;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::page::{PLACES, Page, Record, now_ms};
use super::{Communicator, Topology, gather_all};
use crate::error::Result;
use crate::units::Rank;

/// Completed operations are written to the page at most this often.
const PROGRESS_EVERY_MS: u64 = 50;

/// What a rank is doing, collectives aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// No step yet.
    Starting,
    /// The caller's own work.
    BetweenSteps,
    /// Looking through the gradients.
    Norm,
    /// Swapping in, updating, swapping out.
    SwapAndUpdate,
    /// Writing the record of a commit.
    Commit,
    /// Writing or reading the whole state, not in a step.
    Sweep,
}

impl Phase {
    #[cfg(feature = "mpi")]
    const ALL: [Self; 6] = [
        Self::Starting,
        Self::BetweenSteps,
        Self::Norm,
        Self::SwapAndUpdate,
        Self::Commit,
        Self::Sweep,
    ];

    /// The phase in words, for messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::BetweenSteps => "computing between steps",
            Self::Norm => "in step: norm",
            Self::SwapAndUpdate => "in step: swapping and updating",
            Self::Commit => "in step: committing",
            Self::Sweep => "swapping outside of a step",
        }
    }

    /// The phase of a number on the page.
    #[cfg(feature = "mpi")]
    pub(super) fn from_number(number: u64) -> Self {
        Self::ALL.get(number as usize).copied().unwrap_or(Self::Starting)
    }
}

/// The collectives of a [`Communicator`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Collective {
    /// [`Communicator::barrier`]
    Barrier,
    /// [`Communicator::all_reduce_sum`]
    AllReduce,
    /// [`Communicator::all_gather_bytes`]
    AllGather,
    /// [`Communicator::all_to_all_bytes`]
    AllToAll,
}

impl Collective {
    #[cfg(feature = "mpi")]
    const ALL: [Self; 4] = [Self::Barrier, Self::AllReduce, Self::AllGather, Self::AllToAll];

    /// The name of the MPI call.
    pub fn name(self) -> &'static str {
        match self {
            Self::Barrier => "MPI_Ibarrier",
            Self::AllReduce => "MPI_Iallreduce",
            Self::AllGather => "MPI_Iallgatherv",
            Self::AllToAll => "MPI_Ialltoallv",
        }
    }

    /// The collective of a number on the page.
    #[cfg(feature = "mpi")]
    pub(super) fn from_number(number: u64) -> Option<Self> {
        Self::ALL.get(usize::try_from(number).ok()?.checked_sub(1)?).copied()
    }
}

/// How long a rank has been in collectives since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    /// Time in collectives.
    pub inside: Duration,
    /// The part of it in which the rank did not run, because it was stopped or had no processor, so
    /// that the others waited for it.
    pub paused: Duration,
}

impl Waits {
    /// Time spent waiting for other ranks.
    pub fn waited(self) -> Duration {
        self.inside.saturating_sub(self.paused)
    }
}

impl Sub for Waits {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            inside: self.inside.saturating_sub(earlier.inside),
            paused: self.paused.saturating_sub(earlier.paused),
        }
    }
}

/// What this rank publishes about itself, and the page on which it does. Threads may share it.
#[derive(Debug)]
pub struct Presence {
    topology: Topology,
    /// The ranks of this node that share the page, this one among them.
    locals: Vec<Rank>,
    /// This rank's place among them.
    slot: usize,
    page: Option<Page>,
    record: Mutex<Record>,
    inside_ns: AtomicU64,
    paused_ns: AtomicU64,
}

impl Presence {
    /// Collective: opens the page of every node. If the ranks of a node cannot share one, none of
    /// them knows what the others are doing.
    ///
    /// # Errors
    /// Those of the communicator: peer if a rank does not answer in time.
    pub fn share(comm: &dyn Communicator) -> Result<Arc<Self>> {
        let topology = Topology::discover(comm)?;
        let mut locals: Vec<Rank> = topology.local_ranks().collect();
        // The name is random, so that it cannot be guessed and no two jobs have the same.
        let random = std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
        let mine = format!("optswap-{}-{}", std::process::id(), random.trim());
        let name = gather_all(comm, &mine)?.swap_remove(locals[0].index());
        let mut slot = locals.iter().position(|rank| *rank == comm.rank()).unwrap_or(0);
        let now_ms = now_ms();
        let mark = u64::from(comm.rank().0) + 1;
        let record = Record { mark, changed_ms: now_ms, alive_ms: now_ms, ..Record::default() };

        let page = Page::open(&PLACES, &name);
        let written = page.as_ref().is_ok_and(|page| page.write(slot, &record).is_ok());
        comm.barrier()?;
        if let Ok(page) = &page {
            page.unlink();
        }
        let page = page.ok().filter(|page| written && has_all(page, &locals));
        if page.is_none() {
            tracing::info!(
                "the ranks of {} share no page in {}: of a late one, only its number is known",
                comm.host(),
                PLACES.join(" or ")
            );
            (locals, slot) = (vec![comm.rank()], 0);
        }
        let (inside_ns, paused_ns) = (AtomicU64::new(0), AtomicU64::new(0));
        let record = Mutex::new(record);
        Ok(Arc::new(Self { topology, locals, slot, page, record, inside_ns, paused_ns }))
    }

    /// Publishes that this rank is in this phase from now on.
    pub fn enter(&self, phase: Phase) {
        self.change(|record| record.phase = phase as u64);
    }

    /// Publishes how many I/O operations have completed so far. This may be called after every one
    /// of them: the page is written only if its last change is some time ago, or with the next
    /// change.
    pub fn progress(&self, completed_ops: u64) {
        self.get_on(|record| record.completed_ops = completed_ops);
    }

    fn get_on(&self, change: impl FnOnce(&mut Record)) {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut record);
        let now_ms = now_ms();
        if now_ms >= record.changed_ms + PROGRESS_EVERY_MS {
            record.changed_ms = now_ms;
            self.write(&mut record);
        }
    }

    /// Enters a collective and gives its number, counted from 1, the same on all ranks.
    pub fn enter_collective(&self, collective: Collective) -> u64 {
        self.change(|record| {
            record.collective = collective as u64 + 1;
            record.entered += 1;
            record.entered
        })
    }

    /// Leaves the collective.
    pub fn leave_collective(&self) {
        self.change(|record| record.collective = 0);
    }

    /// Adds the time of one collective.
    pub fn add_waits(&self, waits: Waits) {
        self.inside_ns.fetch_add(waits.inside.as_nanos() as u64, Ordering::Relaxed);
        self.paused_ns.fetch_add(waits.paused.as_nanos() as u64, Ordering::Relaxed);
    }

    /// How long this rank has been in collectives so far.
    pub fn waits(&self) -> Waits {
        let read = |ns: &AtomicU64| Duration::from_nanos(ns.load(Ordering::Relaxed));
        Waits { inside: read(&self.inside_ns), paused: read(&self.paused_ns) }
    }

    /// Where every rank runs.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Whether this rank can read what `rank` publishes: both share a page.
    pub fn sees(&self, rank: Rank) -> bool {
        self.locals.contains(&rank)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Record) -> T) -> T {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        record.changed_ms = now_ms();
        let value = change(&mut record);
        self.write(&mut record);
        value
    }

    /// Called with the record locked, so that an older one never follows a newer one.
    fn write(&self, record: &mut Record) {
        record.alive_ms = now_ms();
        if let Some(page) = &self.page {
            // If the page cannot be written, messages about late ranks say less; nothing else
            // suffers.
            let _ = page.write(self.slot, record);
        }
    }
}

/// For ranks that wait.
#[cfg(feature = "mpi")]
impl Presence {
    /// Publishes that this rank is alive while it waits.
    pub(super) fn beat(&self) {
        self.write(&mut self.record.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Publishes when late ranks on other hosts made progress, for the other ranks of the node.
    pub(super) fn publish_progress_elsewhere(&self, elsewhere_ms: u64) {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        record.elsewhere_ms = record.elsewhere_ms.max(elsewhere_ms);
        self.write(&mut record);
    }

    /// What all ranks on the page have published, this one included.
    pub(super) fn look(&self) -> Vec<(Rank, Record)> {
        let read = self.page.as_ref().and_then(|page| page.read(self.locals.len()).ok());
        match read {
            Some(records) => self.locals.iter().copied().zip(records).collect(),
            None => {
                let mine = self.record.lock().unwrap_or_else(PoisonError::into_inner);
                vec![(self.locals[self.slot], *mine)]
            }
        }
    }
}

/// Whether all of these ranks have written to this page, and not to another one of the same name.
fn has_all(page: &Page, locals: &[Rank]) -> bool {
    let records = page.read(locals.len()).unwrap_or_default();
    let is_from = |(record, rank): (&Record, &Rank)| record.mark == u64::from(rank.0) + 1;
    records.len() == locals.len() && records.iter().zip(locals).all(is_from)
}

/// Publishes the phase of this rank for as long as this value lives, and then that the caller is
/// computing between steps.
#[derive(Debug)]
pub struct Activity(Option<Arc<Presence>>);

impl Activity {
    /// Begins with this phase. Nothing is published if the communicator has no [`Presence`].
    pub fn begin(comm: &dyn Communicator, phase: Phase) -> Self {
        let activity = Self(comm.presence().cloned());
        activity.turn_to(phase);
        activity
    }

    /// Goes on with another phase.
    pub fn turn_to(&self, phase: Phase) {
        if let Some(presence) = &self.0 {
            presence.enter(phase);
        }
    }
}

impl Drop for Activity {
    fn drop(&mut self) {
        self.turn_to(Phase::BetweenSteps);
    }
}

/// Publishes that a rank gets on with what is no I/O operation of its drives, such as writing or
/// comparing a checkpoint, so that those who wait for it wait on.
#[derive(Clone, Debug)]
pub struct Pulse(Option<Arc<Presence>>);

impl Pulse {
    /// That of this rank. Nothing is published if the communicator has no [`Presence`].
    pub fn of(comm: &dyn Communicator) -> Self {
        Self(comm.presence().cloned())
    }

    /// To be called whenever something is done, as often as one likes.
    pub fn beat(&self) {
        if let Some(presence) = &self.0 {
            presence.get_on(|_| ());
        }
    }
}
