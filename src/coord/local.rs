//! Communicators without MPI: one rank alone, and ranks that are threads of one process.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Communicator;
use crate::error::{Error, ErrorKind, Result};
use crate::timers::Patience;
use crate::units::Rank;

/// The host's name, as uname(2) gives it.
pub(super) fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// A world of one rank: this process. Its collectives return at once and never fail.
#[derive(Debug)]
pub struct Solo {
    host: String,
}

impl Default for Solo {
    fn default() -> Self {
        Self { host: host_name() }
    }
}

impl Communicator for Solo {
    fn rank(&self) -> Rank {
        Rank(0)
    }

    fn size(&self) -> usize {
        1
    }

    fn host(&self) -> &str {
        &self.host
    }

    fn barrier(&self) -> Result<()> {
        Ok(())
    }

    fn all_reduce_sum(&self, _values: &mut [u64]) -> Result<()> {
        Ok(())
    }

    fn all_gather_bytes(&self, mine: &[u8], _counts: &[usize], all: &mut [u8]) -> Result<()> {
        all.copy_from_slice(mine);
        Ok(())
    }

    fn all_to_all_bytes(
        &self,
        send: &[u8],
        _send_counts: &[usize],
        recv: &mut [u8],
        _recv_counts: &[usize],
    ) -> Result<()> {
        recv.copy_from_slice(send);
        Ok(())
    }

    fn split(&self, _color: u32) -> Result<Arc<dyn Communicator>> {
        Ok(Arc::new(Self { host: self.host.clone() }))
    }
}

type Deposits = Vec<Arc<Vec<u8>>>;

#[derive(Default)]
struct Round {
    /// Counts finished rounds.
    number: u64,
    deposits: Vec<Option<Arc<Vec<u8>>>>,
    /// How many of them are there.
    arrived: usize,
    /// What all deposited in the last finished round. It is not replaced before every rank has
    /// come back with its next deposit, and so has read it.
    result: Arc<Deposits>,
    /// A rank is gone; no round will be complete again.
    broken: Option<Rank>,
    /// The tables of communicators that `split` makes, by the round's number and color, each with
    /// the number of ranks that have not fetched it yet.
    divided: HashMap<(u64, u32), (Arc<Table>, usize)>,
}

struct Table {
    round: Mutex<Round>,
    changed: Condvar,
}

impl Table {
    fn of(size: usize) -> Arc<Self> {
        let round = Round { deposits: vec![None; size], ..Round::default() };
        Arc::new(Self { round: Mutex::new(round), changed: Condvar::new() })
    }
}

/// A rank that is a thread of this process. If it is dropped before the others have finished, their
/// collectives fail instead of hanging.
pub struct ThreadCommunicator {
    rank: Rank,
    size: usize,
    host: String,
    timeout: Duration,
    table: Arc<Table>,
}

impl ThreadCommunicator {
    /// The communicators of a world of `size` ranks, in rank order, one for each thread. A
    /// collective that the other ranks do not join within `timeout` is an error.
    pub fn world(size: usize, timeout: Duration) -> Vec<Self> {
        let table = Table::of(size);
        let rank = |rank| Self {
            rank: Rank::from_index(rank),
            size,
            host: host_name(),
            timeout,
            table: Arc::clone(&table),
        };
        (0..size).map(rank).collect()
    }

    /// What all collectives are made of: every rank gives bytes, and gets the bytes of all, in rank
    /// order.
    fn exchange(&self, mine: Vec<u8>) -> Result<Arc<Deposits>> {
        let mut patience = Patience::new(self.timeout, Instant::now());
        let mut round = self.table.round.lock().unwrap_or_else(PoisonError::into_inner);
        let number = round.number;
        let before = round.deposits[self.rank.index()].replace(Arc::new(mine));
        round.arrived += usize::from(before.is_none());
        if round.arrived == self.size {
            round.arrived = 0;
            round.result = Arc::new(round.deposits.iter_mut().filter_map(Option::take).collect());
            round.number += 1;
            self.table.changed.notify_all();
        }
        while round.number == number {
            if let Some(gone) = round.broken {
                return Err(Error::new(ErrorKind::Peer, format!("{gone} has left the job")));
            }
            let now = Instant::now();
            if patience.look(now) {
                let missing = round.deposits.iter().position(Option::is_none).unwrap_or(0);
                let missing = Rank::from_index(missing);
                return Err(Error::new(ErrorKind::Peer, format!("{missing} did not come in time"))
                    .with("peer_timeout", format!("{} s", self.timeout.as_secs_f64())));
            }
            let until = patience.next_look().saturating_duration_since(now);
            let waited = self.table.changed.wait_timeout(round, until);
            round = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(Arc::clone(&round.result))
    }
}

impl Drop for ThreadCommunicator {
    fn drop(&mut self) {
        let mut round = self.table.round.lock().unwrap_or_else(PoisonError::into_inner);
        round.broken.get_or_insert(self.rank);
        self.table.changed.notify_all();
    }
}

impl Communicator for ThreadCommunicator {
    fn rank(&self) -> Rank {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn host(&self) -> &str {
        &self.host
    }

    fn barrier(&self) -> Result<()> {
        self.exchange(Vec::new()).map(drop)
    }

    fn all_reduce_sum(&self, values: &mut [u64]) -> Result<()> {
        let all = self.exchange(bytemuck::cast_slice(values).to_vec())?;
        values.fill(0);
        for theirs in all.iter() {
            for (sum, bytes) in values.iter_mut().zip(theirs.as_chunks::<8>().0) {
                *sum = sum.wrapping_add(u64::from_ne_bytes(*bytes));
            }
        }
        Ok(())
    }

    fn all_gather_bytes(&self, mine: &[u8], _counts: &[usize], all: &mut [u8]) -> Result<()> {
        let mut rest = all;
        for theirs in self.exchange(mine.to_vec())?.iter() {
            let (place, after) = rest.split_at_mut(theirs.len());
            place.copy_from_slice(theirs);
            rest = after;
        }
        Ok(())
    }

    fn all_to_all_bytes(
        &self,
        send: &[u8],
        send_counts: &[usize],
        recv: &mut [u8],
        recv_counts: &[usize],
    ) -> Result<()> {
        // Each rank's deposit begins with where each part starts, so that the others find theirs.
        let mut deposit: Vec<u8> = Vec::with_capacity(send.len() + 8 * self.size);
        let mut start = 0usize;
        for count in send_counts {
            deposit.extend_from_slice(&start.to_ne_bytes());
            start += count;
        }
        deposit.extend_from_slice(send);
        let all = self.exchange(deposit)?;
        let mut at = 0;
        for (theirs, len) in all.iter().zip(recv_counts) {
            let (starts, data) = theirs.split_at(8 * self.size);
            let start = usize::from_ne_bytes(starts.as_chunks::<8>().0[self.rank.index()]);
            recv[at..at + len].copy_from_slice(&data[start..start + len]);
            at += len;
        }
        Ok(())
    }

    fn split(&self, color: u32) -> Result<Arc<dyn Communicator>> {
        let colors = self.exchange(color.to_ne_bytes().to_vec())?;
        let is_mine = |theirs: &Arc<Vec<u8>>| **theirs == color.to_ne_bytes();
        let size = colors.iter().filter(|theirs| is_mine(theirs)).count();
        let rank = colors[..self.rank.index()].iter().filter(|theirs| is_mine(theirs)).count();
        let mut round = self.table.round.lock().unwrap_or_else(PoisonError::into_inner);
        // No rank begins another round before this one has its table.
        let key = (round.number, color);
        let made = || (Table::of(size), size);
        let (table, left) = round.divided.entry(key).or_insert_with(made);
        let table = Arc::clone(table);
        *left -= 1;
        if *left == 0 {
            round.divided.remove(&key);
        }
        drop(round);
        self.barrier()?;
        let (rank, host) = (Rank::from_index(rank), self.host.clone());
        Ok(Arc::new(Self { rank, size, host, timeout: self.timeout, table }))
    }
}
