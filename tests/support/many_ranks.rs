//! Many ranks as threads of the test, eight on a node, and what each sends, receives and holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use optswap::{Communicator, Rank, Result, ThreadCommunicator};

use crate::allocations::counted;

/// Ranks that share a node.
pub const RANKS_PER_NODE: usize = 8;

const DEADLINE: Duration = Duration::from_secs(600);
/// Enough for what a start does, and little enough for thousands of threads.
const STACK_BYTES: usize = 512 << 10;

#[derive(Default)]
struct Traffic {
    sent: AtomicU64,
    received: AtomicU64,
}

/// A communicator that counts the bytes that its rank hands in and gets, whatever way they take.
pub struct Counted {
    inner: Arc<dyn Communicator>,
    host: String,
    node: u32,
    traffic: Arc<Traffic>,
}

impl Counted {
    pub fn new(inner: Arc<dyn Communicator>) -> Self {
        let node = inner.rank().index() / RANKS_PER_NODE;
        let host = format!("node{node:04}");
        Self { inner, host, node: node as u32, traffic: Arc::default() }
    }

    /// Bytes sent and received so far.
    pub fn bytes(&self) -> [u64; 2] {
        [&self.traffic.sent, &self.traffic.received].map(|it| it.load(Ordering::Relaxed))
    }

    fn count(&self, sent: usize, received: usize) {
        self.traffic.sent.fetch_add(sent as u64, Ordering::Relaxed);
        self.traffic.received.fetch_add(received as u64, Ordering::Relaxed);
    }
}

impl Communicator for Counted {
    fn rank(&self) -> Rank {
        self.inner.rank()
    }

    fn size(&self) -> usize {
        self.inner.size()
    }

    fn host(&self) -> &str {
        &self.host
    }

    fn node(&self) -> Option<u32> {
        Some(self.node)
    }

    fn barrier(&self) -> Result<()> {
        self.inner.barrier()
    }

    fn all_reduce_sum(&self, values: &mut [u64]) -> Result<()> {
        self.count(size_of_val(values), size_of_val(values));
        self.inner.all_reduce_sum(values)
    }

    fn all_gather_bytes(&self, mine: &[u8], counts: &[usize], all: &mut [u8]) -> Result<()> {
        self.count(mine.len(), all.len());
        self.inner.all_gather_bytes(mine, counts, all)
    }

    fn all_to_all_bytes(
        &self,
        send: &[u8],
        send_counts: &[usize],
        recv: &mut [u8],
        recv_counts: &[usize],
    ) -> Result<()> {
        self.count(send.len(), recv.len());
        self.inner.all_to_all_bytes(send, send_counts, recv, recv_counts)
    }
}

/// What one rank did in one stage.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    pub stage: &'static str,
    pub sent: u64,
    pub received: u64,
    /// Bytes of memory that the rank holds more after it, and the most that it held meanwhile.
    pub held: isize,
    pub most: isize,
}

impl Cost {
    /// The numbers, for comparing them over sizes.
    pub fn numbers(&self) -> [(&'static str, u64); 4] {
        [
            ("sent", self.sent),
            ("received", self.received),
            ("held", self.held.max(0) as u64),
            ("held meanwhile", self.most.max(0) as u64),
        ]
    }

    fn max(self, other: Self) -> Self {
        Self {
            stage: self.stage,
            sent: self.sent.max(other.sent),
            received: self.received.max(other.received),
            held: self.held.max(other.held),
            most: self.most.max(other.most),
        }
    }
}

/// The stages of one rank.
pub struct Stages {
    pub comm: Arc<Counted>,
    costs: Vec<Cost>,
}

impl Stages {
    /// Runs a stage and enters what it cost.
    pub fn stage<T>(
        &mut self,
        stage: &'static str,
        work: impl FnOnce(&Arc<dyn Communicator>) -> T,
    ) -> T {
        let [sent, received] = self.comm.bytes();
        let comm: Arc<dyn Communicator> = Arc::clone(&self.comm) as _;
        let (value, held, most) = counted(|| work(&comm));
        let [sent_now, received_now] = self.comm.bytes();
        let (sent, received) = (sent_now - sent, received_now - received);
        self.costs.push(Cost { stage, sent, received, held, most });
        value
    }
}

/// What stages cost rank 0, and what they cost at most any other rank.
pub struct Costs {
    pub ranks: usize,
    pub first: Vec<Cost>,
    pub others: Vec<Cost>,
}

/// Runs `body` on so many ranks.
pub fn on_many_ranks(ranks: usize, body: impl Fn(&mut Stages) -> Result<()> + Sync) -> Costs {
    let world = ThreadCommunicator::world(ranks, DEADLINE);
    let costs: Vec<Vec<Cost>> = std::thread::scope(|scope| {
        let spawn = |comm| {
            let body = &body;
            let rank = move || {
                let comm = Arc::new(Counted::new(Arc::new(comm)));
                let mut stages = Stages { comm, costs: Vec::with_capacity(16) };
                body(&mut stages).unwrap_or_else(|error| panic!("{error}"));
                // Nobody leaves before all have done.
                stages.comm.barrier().unwrap();
                stages.costs
            };
            let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
            thread.spawn_scoped(scope, rank).unwrap()
        };
        let threads: Vec<_> = world.into_iter().map(spawn).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let [first, others @ ..] = costs.as_slice() else { panic!("no ranks") };
    let worst = others.iter().cloned().reduce(|most, costs| {
        most.into_iter().zip(costs).map(|(most, cost)| most.max(cost)).collect()
    });
    Costs { ranks, first: first.clone(), others: worst.unwrap() }
}
