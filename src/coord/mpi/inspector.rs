//! The stall inspector: who is late in a collective, what was it last doing, and is it worth
//! waiting on. Runs in the loop that waits, on the thread that calls MPI.
//!
//! Of its own node a rank knows from the page. Between nodes, the lowest waiting rank of a node
//! (its speaker) sends notices to rank 0, and rank 0 answers with the progress that it knows of,
//! which the speaker passes on through its page. Waiting therefore goes on everywhere as long as a
//! late rank anywhere makes progress, with two limits:
//!
//! - If rank 0 itself is late nobody answers, and ranks on other hosts give up after `peer_timeout`
//!   although rank 0, or another rank on its node, may have made progress.
//! - Notices go out once per `stall_warning`, so their content is up to twice that old. A
//!   `peer_timeout` that is shorter is over before progress on another host is known.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::mail::Mail;
use crate::coord::STALL_TARGET;
use crate::coord::page::now_ms;
use crate::coord::presence::{Collective, Presence};
use crate::coord::stall::{LateRank, Limits, NodeView, describe, seconds};
use crate::error::{Error, ErrorKind};
use crate::units::Rank;
use crate::wire;

/// The rank that notices go to.
const HUB: Rank = Rank(0);

/// Ranks in one notice, so that it stays short (`mail::MESSAGE_BYTES_MAX`). Of more late ranks of
/// one node, the rest count as those of whom nothing is known.
const NOTICE_LATE_MAX: usize = 32;
const NOTICE_WAITING_MAX: usize = 256;

/// What speakers and the hub send each other, about the collective of this number.
#[derive(Serialize, Deserialize)]
enum Message {
    /// From a speaker: who waits on its node, and who is late.
    Notice { number: u64, waiting: Vec<u32>, late: Vec<LateRank> },
    /// From the hub: how long ago a late rank made progress, if any did.
    Answer { number: u64, progress_ms_ago: Option<u64> },
}

/// What a notice said about a rank.
enum Reported {
    Waiting,
    /// Late, and when the notice came.
    Late(LateRank, u64),
}

/// One wait in one collective.
pub(super) struct Wait {
    collective: Collective,
    number: u64,
    begin_ms: u64,
    /// When a late rank last made progress, or the wait began.
    progress_ms: u64,
    looked_ms: u64,
    next_words_ms: u64,
    /// On the hub: what notices have said of ranks on other nodes.
    reported: BTreeMap<u32, Reported>,
    /// On a speaker: its last notice has not been answered yet.
    is_unanswered: bool,
}

impl Wait {
    /// Leaves out time in which this rank did not run: it has not waited then, nor could it see
    /// what the others did.
    fn leave_out(&mut self, ms: u64) {
        self.begin_ms += ms;
        self.progress_ms += ms;
        self.next_words_ms += ms;
    }
}

pub(super) struct Inspector {
    presence: Arc<Presence>,
    rank: Rank,
    limits: Limits,
    mail: Mutex<Mail>,
}

impl Inspector {
    pub fn new(presence: Arc<Presence>, rank: Rank, limits: Limits, mail: Mail) -> Self {
        Self { presence, rank, limits, mail: Mutex::new(mail) }
    }

    pub fn presence(&self) -> &Arc<Presence> {
        &self.presence
    }

    /// Notes that this rank enters a collective.
    pub fn begin(&self, collective: Collective) -> Wait {
        let number = self.presence.enter_collective(collective);
        let begin_ms = now_ms();
        let mut first_words_ms = self.limits.warning_ms;
        if self.rank == HUB && self.presence.topology().nodes().len() > 1 {
            // The others' notices are sent when they have waited as long, and are on their way.
            first_words_ms += self.limits.warning_ms / 4;
        }
        Wait {
            collective,
            number,
            begin_ms,
            progress_ms: begin_ms,
            looked_ms: begin_ms,
            next_words_ms: begin_ms + first_words_ms,
            reported: BTreeMap::new(),
            is_unanswered: false,
        }
    }

    /// Notes that the collective is complete.
    pub fn end(&self) {
        self.presence.leave_collective();
    }

    /// Looks for late ranks if a look is due. Returns an error if this rank has waited long enough.
    pub fn look(&self, wait: &mut Wait) -> Option<Error> {
        let now_ms = now_ms();
        if now_ms < wait.looked_ms + self.limits.look_every_ms() {
            return None;
        }
        wait.leave_out(self.limits.not_running_ms(wait.looked_ms, now_ms));
        wait.looked_ms = now_ms;
        self.presence.beat();
        let silence_ms = self.limits.silence_ms();
        let view = NodeView::of(&self.presence.look(), wait.number, now_ms, silence_ms);
        wait.progress_ms = wait.progress_ms.max(view.progress_ms);
        self.read_mail(wait, now_ms);
        if now_ms >= wait.next_words_ms {
            wait.next_words_ms = now_ms + self.limits.warning_ms;
            self.speak(wait, &view, now_ms);
        }
        self.judge(wait, &view, now_ms)
    }

    fn mail(&self) -> MutexGuard<'_, Mail> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn host(&self, rank: Rank) -> Option<&str> {
        self.presence.topology().host(rank)
    }

    /// Warns, or sends a notice to the rank that warns.
    fn speak(&self, wait: &mut Wait, view: &NodeView, now_ms: u64) {
        let is_speaker = view.speaker() == Some(self.rank.0);
        if self.rank == HUB {
            self.warn(wait, view, "", now_ms);
        } else if is_speaker && self.presence.sees(HUB) {
            // The hub is late itself: were it waiting, it would be the speaker.
            self.warn(wait, view, "", now_ms);
        } else if is_speaker {
            if wait.is_unanswered {
                // The hub is late or out of reach. Every node without the hub warns then, since
                // none knows of the others.
                let host = self.host(HUB).unwrap_or_default();
                let silent = format!("{HUB} on {host} has not answered, so it may be late; ");
                self.warn(wait, view, &silent, now_ms);
            }
            self.send_notice(wait, view);
        }
    }

    fn warn(&self, wait: &Wait, view: &NodeView, first: &str, now_ms: u64) {
        tracing::warn!(
            target: STALL_TARGET,
            "waiting for {} in {} for other ranks: {first}{}",
            seconds(now_ms - wait.begin_ms),
            wait.collective.name(),
            self.describe_late(wait, view, now_ms).unwrap_or("no late rank on this host".to_owned())
        );
    }

    fn send_notice(&self, wait: &mut Wait, view: &NodeView) {
        let waiting = view.waiting.iter().copied().take(NOTICE_WAITING_MAX).collect();
        let late = view.late.iter().copied().take(NOTICE_LATE_MAX).collect();
        self.send(HUB.0, &Message::Notice { number: wait.number, waiting, late });
        wait.is_unanswered = true;
    }

    fn send(&self, to: u32, message: &Message) {
        if let Ok(bytes) = wire::encode(message) {
            self.mail().send(to, bytes);
        }
    }

    /// Takes the messages that have come. Those about earlier collectives came too late, with one
    /// exception: a rank that hangs inside of the collective before may have let this rank pass,
    /// but not others. Messages that came before this rank had waited for a while do not count as
    /// such.
    fn read_mail(&self, wait: &mut Wait, now_ms: u64) {
        let mut speakers = Vec::new();
        let is_long = now_ms - wait.begin_ms >= self.limits.warning_ms;
        loop {
            let Some((from, bytes)) = self.mail().receive() else { break };
            match wire::decode(&bytes) {
                Ok(Message::Notice { number, waiting, late })
                    if number == wait.number || (number + 1 == wait.number && is_long) =>
                {
                    self.take_notice(wait, &waiting, &late, now_ms);
                    speakers.push((from, number));
                }
                Ok(Message::Answer { number, progress_ms_ago }) if number == wait.number => {
                    wait.is_unanswered = false;
                    self.learn_progress(wait, progress_ms_ago, now_ms);
                }
                _ => {}
            }
        }
        let has_progress = wait.progress_ms > wait.begin_ms;
        let progress_ms_ago = has_progress.then(|| now_ms.saturating_sub(wait.progress_ms));
        for (speaker, number) in speakers {
            self.send(speaker, &Message::Answer { number, progress_ms_ago });
        }
    }

    fn take_notice(&self, wait: &mut Wait, waiting: &[u32], late: &[LateRank], now_ms: u64) {
        for rank in waiting {
            wait.reported.insert(*rank, Reported::Waiting);
        }
        for rank in late {
            wait.reported.insert(rank.rank, Reported::Late(*rank, now_ms));
        }
        self.learn_progress(wait, late.iter().map(|late| late.unchanged_ms).min(), now_ms);
    }

    /// Takes over that a late rank on another host has made progress, and publishes it on the page
    /// of this node.
    fn learn_progress(&self, wait: &mut Wait, ms_ago: Option<u64>, now_ms: u64) {
        let Some(ms_ago) = ms_ago else { return };
        let progress_ms = now_ms.saturating_sub(ms_ago);
        if progress_ms > wait.progress_ms {
            wait.progress_ms = progress_ms;
            self.presence.publish_progress_elsewhere(progress_ms);
        }
    }

    /// Who is late, in words, as far as this rank knows.
    fn describe_late(&self, wait: &Wait, view: &NodeView, now_ms: u64) -> Option<String> {
        let mut late = view.late.clone();
        let mut unknown = Vec::new();
        if self.rank == HUB {
            let others = (0..self.presence.topology().size()).map(Rank::from_index);
            for rank in others.filter(|rank| !self.presence.sees(*rank)) {
                match wait.reported.get(&rank.0) {
                    Some(Reported::Waiting) => {}
                    Some(Reported::Late(rank, reported_ms)) => {
                        late.push(rank.aged(now_ms - reported_ms, self.limits));
                    }
                    None => unknown.push(rank.0),
                }
            }
        }
        let silence_ms = self.limits.silence_ms();
        let said = describe(&late, &unknown, |rank| self.host(rank), silence_ms);
        (!said.is_empty()).then_some(said)
    }

    fn judge(&self, wait: &Wait, view: &NodeView, now_ms: u64) -> Option<Error> {
        let still_ms = now_ms.saturating_sub(wait.progress_ms);
        if still_ms <= self.limits.peer_ms {
            return None;
        }
        let late = self.describe_late(wait, view, now_ms);
        if late.is_none() && still_ms <= self.limits.peer_ms + self.limits.patience_ms() {
            return None;
        }
        let waited_ms = now_ms - wait.begin_ms;
        let late = late.unwrap_or("none on this host".to_owned());
        Some(timed_out(wait.collective, waited_ms).with("late", late))
    }
}

/// The error of a rank that has waited too long.
pub(super) fn timed_out(collective: Collective, waited_ms: u64) -> Error {
    let (waited_s, name) = (waited_ms / 1000, collective.name());
    let waited = format!("waited {waited_s} s in {name} for other ranks");
    Error::new(ErrorKind::Peer, waited)
        .hint("a rank or the network between hosts hangs; see peer_timeout")
}
