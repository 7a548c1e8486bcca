//! A communicator that notices ranks which are in different calls. Ranks that call collectives in
//! another order, or leave one out, would hang, or add up what does not belong together.
//!
//! Every collective begins with one sum of the same length, in which the ranks compare which call
//! they are in. A short all-reduce has its values in that same sum, so a step sends no message more
//! than without.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::alike::{ALIKE_WORDS, Alike, by_value, rank_words};
use super::presence::Presence;
use super::{Communicator, gather_all};
use crate::error::{Error, Result};
use crate::units::Rank;

/// Words of the first sum of every collective: enough for the values of a step's all-reduce.
const SUM_WORDS: usize = 96;
const VALUES_MAX: usize = SUM_WORDS - ALIKE_WORDS;

/// Calls named in one error.
const NAMED_MAX: usize = 8;

/// What a rank is in: the outermost of the calls under way.
#[derive(Debug, Default)]
pub struct Calls(Mutex<Outermost>);

#[derive(Debug, Default)]
struct Outermost {
    depth: usize,
    name: &'static str,
    of: String,
}

impl Calls {
    fn lock(&self) -> MutexGuard<'_, Outermost> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a call; `of` says of what it is, such as a step's number or a parameter's name.
    fn enter(&self, name: &'static str, of: impl FnOnce() -> String) {
        let mut outermost = self.lock();
        if outermost.depth == 0 {
            (outermost.name, outermost.of) = (name, of());
        }
        outermost.depth += 1;
    }

    /// The call under way, in words.
    fn words(&self) -> String {
        let outermost = self.lock();
        match (outermost.depth, outermost.of.as_str()) {
            (0, _) => "a collective of the program's own".to_owned(),
            (_, "") => outermost.name.to_owned(),
            (_, of) => format!("{} of {of}", outermost.name),
        }
    }
}

/// A call under way, until this is dropped.
#[derive(Debug)]
#[must_use]
pub struct Call(Option<Arc<Calls>>);

impl Call {
    /// Enters a call on this communicator. Inside of another call it changes nothing.
    pub fn enter(comm: &dyn Communicator, name: &'static str, of: impl FnOnce() -> String) -> Self {
        let calls = comm.calls().cloned();
        if let Some(calls) = &calls {
            calls.enter(name, of);
        }
        Self(calls)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.0.iter().for_each(|calls| calls.lock().depth -= 1);
    }
}

/// A communicator whose ranks compare what they are doing.
pub struct Checked {
    inner: Arc<dyn Communicator>,
    calls: Arc<Calls>,
    /// Whether these are all ranks of the job, so that an error of all of them is agreed.
    is_world: bool,
    /// The error that all ranks have got. Nothing is sent afterwards: the ranks are apart.
    broken: OnceLock<String>,
}

impl Checked {
    /// All ranks of a job, checked; `comm` itself if it is checked already.
    pub fn over(comm: Arc<dyn Communicator>) -> Arc<dyn Communicator> {
        Self::wrapped(comm, true)
    }

    /// A part of the ranks, checked; `comm` itself if it is checked already.
    pub fn over_part(comm: Arc<dyn Communicator>) -> Arc<dyn Communicator> {
        Self::wrapped(comm, false)
    }

    fn wrapped(comm: Arc<dyn Communicator>, is_world: bool) -> Arc<dyn Communicator> {
        if comm.calls().is_some() {
            return comm;
        }
        let (calls, broken) = (Arc::default(), OnceLock::new());
        Arc::new(Self { inner: comm, calls, is_world, broken })
    }

    fn agreed_by_all(&self, error: Error) -> Error {
        if self.is_world { error.agreed() } else { error }
    }

    /// Collective: compares calls, and adds up a few values on the way.
    fn compare(&self, collective: &str, elems: usize, values: &mut [u64]) -> Result<()> {
        if self.size() == 1 {
            return Ok(());
        }
        if let Some(error) = self.broken.get() {
            return Err(self.agreed_by_all(Error::usage(error.clone())));
        }
        let what = format!("{}, {collective} of {elems}", self.calls.words());
        let alike = Alike::of(&what)?;
        let mut sums = [0; SUM_WORDS];
        sums[..ALIKE_WORDS].copy_from_slice(&alike.words());
        sums[ALIKE_WORDS..][..values.len()].copy_from_slice(values);
        self.inner.all_reduce_sum(&mut sums)?;
        if !alike.is_of_all(&sums[..ALIKE_WORDS], self.size()) {
            return Err(self.apart(what)?);
        }
        values.copy_from_slice(&sums[ALIKE_WORDS..][..values.len()]);
        Ok(())
    }

    /// Collective, when it is known that calls differ: the error that says which rank is in which.
    fn apart(&self, what: String) -> Result<Error> {
        let words = self.calls.words();
        let all: Vec<(String, String)> = gather_all(&*self.inner, &(words, what))?;
        let mut found = by_value(all.iter().map(|(words, _)| words));
        if found.len() == 1 {
            found = by_value(all.iter().map(|(_, what)| what));
        }
        let mut error = Error::usage("ranks are in different calls");
        for (call, ranks) in found.iter().take(NAMED_MAX) {
            error = error.with(rank_words(ranks), call);
        }
        if found.len() > NAMED_MAX {
            error = error.with("more", found.len() - NAMED_MAX);
        }
        let error = error.hint("all ranks make the same calls, in the same order");
        // Only one thread is in a collective.
        let _ = self.broken.set(error.to_string());
        Ok(self.agreed_by_all(error))
    }
}

impl Communicator for Checked {
    fn rank(&self) -> Rank {
        self.inner.rank()
    }

    fn size(&self) -> usize {
        self.inner.size()
    }

    fn host(&self) -> &str {
        self.inner.host()
    }

    fn node(&self) -> Option<u32> {
        self.inner.node()
    }

    fn barrier(&self) -> Result<()> {
        self.compare("a barrier", 0, &mut [])
    }

    fn all_reduce_sum(&self, values: &mut [u64]) -> Result<()> {
        if values.len() <= VALUES_MAX {
            return self.compare("a sum", values.len(), values);
        }
        self.compare("a sum", values.len(), &mut [])?;
        self.inner.all_reduce_sum(values)
    }

    fn all_gather_bytes(&self, mine: &[u8], counts: &[usize], all: &mut [u8]) -> Result<()> {
        self.compare("an all-gather", all.len(), &mut [])?;
        self.inner.all_gather_bytes(mine, counts, all)
    }

    fn all_to_all_bytes(
        &self,
        send: &[u8],
        send_counts: &[usize],
        recv: &mut [u8],
        recv_counts: &[usize],
    ) -> Result<()> {
        // How much each rank gets may differ.
        self.compare("an all-to-all", 0, &mut [])?;
        self.inner.all_to_all_bytes(send, send_counts, recv, recv_counts)
    }

    fn split(&self, color: u32) -> Result<Arc<dyn Communicator>> {
        self.compare("a split", 0, &mut [])?;
        let inner = self.inner.split(color)?;
        let (calls, broken) = (Arc::clone(&self.calls), OnceLock::new());
        Ok(Arc::new(Self { inner, calls, is_world: false, broken }))
    }

    fn presence(&self) -> Option<&Arc<Presence>> {
        self.inner.presence()
    }

    fn calls(&self) -> Option<&Arc<Calls>> {
        Some(&self.calls)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::coord::ThreadCommunicator;

    /// Runs each closure as a rank and gives their results.
    fn on_ranks<const N: usize>(
        bodies: [fn(&dyn Communicator) -> Result<u64>; N],
    ) -> Vec<Result<u64>> {
        let world = ThreadCommunicator::world(N, Duration::from_secs(20));
        std::thread::scope(|scope| {
            let ranks = world.into_iter().zip(bodies).map(|(comm, body)| {
                scope.spawn(move || {
                    let comm = Checked::over(Arc::new(comm));
                    let result = body(&*comm);
                    // Nobody leaves before the others have seen the same.
                    std::mem::forget(comm);
                    result
                })
            });
            let ranks: Vec<_> = ranks.collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    fn sum(comm: &dyn Communicator, name: &'static str, of: &str) -> Result<u64> {
        let _call = Call::enter(comm, name, || of.to_owned());
        let mut value = [u64::from(comm.rank().0) + 1];
        comm.all_reduce_sum(&mut value)?;
        Ok(value[0])
    }

    #[test]
    fn ranks_in_the_same_call_get_the_sum() {
        let results = on_ranks::<3>([|comm| sum(comm, "step", "1"); 3]);
        assert!(results.into_iter().all(|result| result.unwrap() == 6));
    }

    #[test]
    fn another_call_is_one_error_on_all_ranks_that_names_both() {
        let results = on_ranks::<3>([
            |comm| sum(comm, "flush", ""),
            |comm| {
                let _call = Call::enter(comm, "step", || "4".to_owned());
                comm.all_gather_bytes(&[1], &[1; 3], &mut [0; 3])?;
                Ok(0)
            },
            |comm| sum(comm, "step", "4"),
        ]);
        for result in results {
            let error = result.unwrap_err();
            assert!(error.is_agreed());
            let text = error.to_string();
            assert!(
                text.contains("(rank 0 flush, ranks 1-2 step of 4)"),
                "which rank is in which call: {text}"
            );
        }
    }

    #[test]
    fn the_same_call_with_another_length_is_named_too_and_nothing_is_sent_afterwards() {
        let body: fn(&dyn Communicator) -> Result<u64> = |comm| {
            let mut values = vec![0; 1 + comm.rank().index()];
            let first = comm.all_reduce_sum(&mut values).unwrap_err().to_string();
            // The other ranks may be gone, so this must not wait for them.
            let second = comm.barrier().unwrap_err().to_string();
            assert_eq!(first, second);
            Err(Error::usage(first))
        };
        for result in on_ranks::<2>([body, body]) {
            let text = result.unwrap_err().to_string();
            assert!(text.contains("a sum of 1") && text.contains("a sum of 2"), "{text}");
        }
    }
}
