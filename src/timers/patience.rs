//! Waiting with a limit that counts only time in which this process ran. A scheduler may suspend a
//! job (`scontrol suspend`, SIGSTOP, a frozen control group), and a debugger may hold a rank: what
//! did not complete meanwhile is not late.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Looks in the time of a limit. Whoever waits looks so often, and a gap that is [`GAP`] times as
/// long as it was to be shows that the process did not run.
const LOOKS: u32 = 16;
const GAP: u32 = 4;
const LOOK_EVERY_MAX: Duration = Duration::from_secs(1);
const JOIN_LOOK_EVERY: Duration = Duration::from_millis(1);

/// At the end of a job, what does not end for so long is left behind: a drive or a file system that
/// hangs must not keep the reason from being said.
pub const CLOSING: Duration = Duration::from_secs(5);

/// How long something may make no progress. The caller says what time it is, so that tests need not
/// wait.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    limit: Duration,
    look_every: Duration,
    waited: Duration,
    looked: Instant,
}

impl Patience {
    /// Patience that ends when `limit` has passed without progress.
    pub fn new(limit: Duration, now: Instant) -> Self {
        let look_every = (limit / LOOKS).clamp(Duration::from_millis(1), LOOK_EVERY_MAX);
        Self { limit, look_every, waited: Duration::ZERO, looked: now }
    }

    /// Notes progress: the limit counts from now on.
    pub fn restart(&mut self, now: Instant) {
        (self.waited, self.looked) = (Duration::ZERO, now);
    }

    /// Until when to wait before the next [`Self::look`].
    pub fn next_look(&self) -> Instant {
        let left = self.limit.saturating_sub(self.waited);
        self.looked + self.look_every.min(left.max(Duration::from_millis(1)))
    }

    /// Counts the time since the last look, and says whether the limit is over. After a gap it
    /// never is: results may have come in the meantime that nobody has collected yet.
    pub fn look(&mut self, now: Instant) -> bool {
        let gap = now.saturating_duration_since(self.looked);
        self.looked = now;
        let has_run = gap <= GAP * self.look_every;
        self.waited += if has_run { gap } else { self.look_every };
        has_run && self.waited >= self.limit
    }
}

/// Waits for a thread to end, but not beyond the limit; then it is left to itself, and the result
/// is `None`. For ends that must not hang with a file system that does.
pub fn join_within<T>(thread: JoinHandle<T>, limit: Duration) -> Option<std::thread::Result<T>> {
    let mut patience = Patience::new(limit, Instant::now());
    while !thread.is_finished() {
        if patience.look(Instant::now()) {
            return None;
        }
        std::thread::sleep(JOIN_LOOK_EVERY);
    }
    Some(thread.join())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    #[test]
    fn it_ends_at_the_limit_for_one_who_looks() {
        let start = Instant::now();
        let mut patience = Patience::new(LIMIT, start);
        let over = (1..).find(|second| patience.look(start + Duration::from_secs(*second)));
        assert_eq!(over, Some(60));
    }

    #[test]
    fn progress_starts_it_anew() {
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        let mut patience = Patience::new(LIMIT, start);
        assert!((1..60).all(|second| !patience.look(at(second))));
        patience.restart(at(59));
        assert!((60..119).all(|second| !patience.look(at(second))));
        assert!(patience.look(at(119)));
    }

    #[test]
    fn time_in_which_the_process_was_stopped_does_not_count() {
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        let mut patience = Patience::new(LIMIT, start);
        assert!((1..=59).all(|second| !patience.look(at(second))));
        assert!(!patience.look(at(10_059)), "the gap itself is not judged, however long");
        assert!(patience.look(at(10_060)), "but what was waited before counts");
    }

    #[test]
    fn a_thread_that_does_not_end_is_left_to_itself() {
        let (keep, wait) = std::sync::mpsc::channel::<()>();
        let hangs = std::thread::spawn(move || wait.recv());
        assert!(join_within(hangs, Duration::from_millis(20)).is_none());
        drop(keep);
        let ends = std::thread::spawn(|| 7);
        assert_eq!(join_within(ends, LIMIT).unwrap().unwrap(), 7);
    }

    #[test]
    fn a_short_limit_is_looked_at_more_often() {
        let start = Instant::now();
        let patience = Patience::new(Duration::from_millis(160), start);
        assert_eq!(patience.next_look() - start, Duration::from_millis(10));
    }
}
