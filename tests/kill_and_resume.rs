//! Ranks that are killed, or stopped and continued, drives that fail or are full for a moment, and
//! a rank with a stale configuration, at random moments of random steps; and the same command
//! again, until the job ends: with the state of a job that nobody disturbed. In every third job the
//! second drive is slow, now and then, so that chunks move to the first one and back.
//!
//! `OPTSWAP_KILLS` says how many disturbances (default 15), `OPTSWAP_SEED` which; `launch/soak`
//! asks for 200.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]
#![cfg(feature = "mpi")]

mod support;

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use support::{Drives, Run, TINY, one_at_a_time, rank_pids, ranks, train_lm};

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// splitmix64, so that a seed says everything.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (bits ^ (bits >> 31)) % end
    }
}

struct Job<'a> {
    drives: &'a Drives,
    ranks: usize,
    durability: &'a str,
    steps: u64,
    has_slow_drive: bool,
}

/// Every operation takes a millisecond; on the second drive, for a while, eight.
fn slow_drive(ranks: usize) -> String {
    let of_rank = |rank: usize| {
        let slow = format!("[[faults]]\nrank = {rank}\nkind = \"slow\"\n");
        format!(
            "{slow}op = 100\nuntil = 2000\ndrive = 1\ndelay_ms = 8\n{slow}op = 0\ndelay_ms = 1\n"
        )
    };
    let faults: String = (0..ranks).map(of_rank).collect();
    format!("[drives]\nweights = [1.0, 1.0]\nstripe_unit = \"16KiB\"\n{faults}")
}

/// What happens to one life of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    KillAll,
    KillOne,
    /// All ranks are stopped for a while, or one, and go on.
    StopAll,
    StopOne,
    /// An operation of a rank meets a drive that is cut off, or full.
    CutDrive,
    FillDrive,
    /// The last rank starts with a stale configuration.
    StaleConfiguration,
}

impl Event {
    fn draw(dice: &mut Dice, ranks: usize) -> Self {
        match dice.below(10) {
            0..=2 => Self::KillAll,
            3 | 4 => Self::KillOne,
            5 => Self::StopAll,
            6 => Self::StopOne,
            7 => Self::CutDrive,
            8 => Self::FillDrive,
            _ if ranks > 1 => Self::StaleConfiguration,
            _ => Self::KillAll,
        }
    }

    /// What such a life ends with, if it does not reach the job's end.
    fn codes(self) -> &'static [i32] {
        match self {
            // What the launcher makes of a killed rank, and what the other ranks may see first.
            Self::KillAll | Self::KillOne => &[],
            Self::StopAll | Self::StopOne => &[0],
            Self::CutDrive | Self::FillDrive => &[0, 74],
            Self::StaleConfiguration => &[64],
        }
    }
}

impl Job<'_> {
    fn config(&self, name: &str, durability: &str, more: &str) -> String {
        let mut config = "[swap]\nchunk_elements = 4096\n".to_owned();
        if self.has_slow_drive && durability != "scratch" {
            config += &slow_drive(self.ranks);
        }
        self.drives.write(name, &(config + more))
    }

    fn command(&self, durability: &str, more: &str) -> Command {
        let config = self.config("small.toml", durability, more);
        let steps = self.steps.to_string();
        let mut command = ranks(self.ranks, &train_lm());
        command.args(["--drives", &self.drives.list(2), "--config", &config, "--steps", &steps]);
        command.args(["--durability", durability, "--validate-every", "100000"]).args(TINY);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// The same command, but for another rate on the last rank.
    fn command_with_stale_file(&self) -> Command {
        self.config("stale.toml", self.durability, "[optimizer]\nlr = 0.25\n");
        let plain = self.command(self.durability, "");
        let arguments: Vec<String> =
            plain.get_args().map(|it| it.to_string_lossy().into_owned()).collect();
        let at = arguments.iter().position(|it| it.ends_with("train_lm")).unwrap();
        let mut command = Command::new(plain.get_program());
        command.args(&arguments[..at]).args(["sh", "-c"]);
        command.arg(format!(
            "[ \"$OMPI_COMM_WORLD_RANK\" != {} ] || set -- $(printf '%s\\n' \"$@\" | \
             sed s/small.toml/stale.toml/); exec \"$@\"",
            self.ranks - 1
        ));
        command.arg("sh").args(&arguments[at..]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts the job and disturbs it; gives what it said, and whether it was killed before its
    /// end.
    fn disturbed(&self, event: Event, dice: &mut Dice) -> (Run, bool) {
        let fault = |kind: &str, dice: &mut Dice| {
            let (rank, op) = (dice.below(self.ranks as u64), dice.below(2000));
            format!("[[faults]]\nrank = {rank}\nop = {op}\nkind = \"{kind}\"\n")
        };
        let mut command = match event {
            Event::CutDrive => self.command(self.durability, &fault("eio", dice)),
            Event::FillDrive => self.command(self.durability, &fault("enospc", dice)),
            Event::StaleConfiguration => self.command_with_stale_file(),
            _ => self.command(self.durability, ""),
        };
        let mut child = command.spawn().unwrap();
        let tag = self.drives.path().display().to_string();
        let begin = Instant::now();
        while rank_pids(&tag).len() < self.ranks && begin.elapsed() < Duration::from_secs(20) {
            if child.try_wait().unwrap().is_some() {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        // From the middle of the start to the middle of the steps.
        std::thread::sleep(Duration::from_millis(dice.below(600)));
        let pids = rank_pids(&tag);
        let only = dice.below(pids.len().max(1) as u64) as usize;
        let pause = Duration::from_millis(100 + dice.below(900));
        let all = [Event::KillAll, Event::StopAll].contains(&event);
        let is_chosen = |at: usize| all || at == only;
        let chosen = pids.iter().enumerate().filter(|(at, _)| is_chosen(*at));
        let chosen: Vec<String> = chosen.map(|(_, pid)| pid.to_string()).collect();
        let is_running = child.try_wait().unwrap().is_none() && !chosen.is_empty();
        let kills = [Event::KillAll, Event::KillOne].contains(&event);
        let stops = [Event::StopAll, Event::StopOne].contains(&event);
        if is_running && kills {
            send("-9", &chosen);
        } else if is_running && stops {
            send("-STOP", &chosen);
            std::thread::sleep(pause);
            send("-CONT", &chosen);
        }
        (Run::of(&child.wait_with_output().unwrap()), is_running && kills)
    }
}

/// One that has just ended by itself is no failure of the test.
fn send(signal: &str, pids: &[String]) {
    let _ = Command::new("kill").arg(signal).args(pids).stderr(Stdio::null()).status();
}

fn digest(run: &Run) -> String {
    run.json()["state_digest"].as_str().unwrap().to_owned()
}

#[test]
fn whatever_is_killed_whenever_no_step_is_lost() {
    let _turn = one_at_a_time();
    let (kills_wanted, seed) = (setting("OPTSWAP_KILLS", 15), setting("OPTSWAP_SEED", 1));
    println!("OPTSWAP_KILLS={kills_wanted} OPTSWAP_SEED={seed}");
    let mut dice = Dice(seed);
    let (mut events, mut resumes, mut moves, mut jobs) = (BTreeMap::new(), 0, 0, 0u64);
    let mut count = 0;
    while count < kills_wanted {
        let drives = Drives::new(2);
        let ranks = 1 + (jobs % 4) as usize;
        let durability = if (jobs / 4 + jobs).is_multiple_of(2) { "step" } else { "3" };
        let has_slow_drive = jobs % 3 == 1;
        let steps = [300, 200, 150, 100][ranks - 1] / if has_slow_drive { 4 } else { 1 };
        let job = Job { drives: &drives, ranks, durability, steps, has_slow_drive };
        jobs += 1;
        let undisturbed = Run::of(&job.command("scratch", "").output().unwrap());
        let expected = digest(&undisturbed);
        let mut reached = 0;
        let has_left_all;
        // On a busy machine most lives end before their first step.
        let mut in_vain = 0;
        loop {
            in_vain += 1;
            assert!(in_vain < 100, "{ranks} ranks do not get on: step {reached}");
            let event = Event::draw(&mut dice, ranks);
            let (run, was_killed) = job.disturbed(event, &mut dice);
            let said =
                format!("{event:?}: {ranks} ranks, durability {durability}, seed {seed}\n{run:?}");
            count += 1;
            *events.entry(event).or_insert(0) += 1;
            assert!(!run.stderr.contains("corrupt"), "a torn chunk: {said}");
            if let Some((_, rest)) = run.stderr.split_once("going on after step ") {
                let step: u64 = rest.split(' ').next().unwrap().parse().unwrap();
                assert!(step >= reached, "step {reached} was lost: {said}");
                in_vain = if step > reached { 0 } else { in_vain };
                reached = step;
                resumes += 1;
            }
            moves += run.stderr.matches("its share of what is written goes").count();
            // One that is killed after its last word, while it leaves, has ended as well.
            if let Some(result) = run.result() {
                assert_eq!(result["state_digest"], expected.as_str(), "{said}");
                has_left_all = run.code == 0;
                break;
            }
            let is_expected = was_killed || event.codes().contains(&run.code);
            assert!(is_expected, "it ended by itself: {said}");
            if event == Event::StaleConfiguration {
                run.expect(64, &["ranks have different configurations", "optimizer.lr"]);
            }
        }
        assert!(drives.are_empty() || !has_left_all, "nothing is left after a clean end");
        println!("{ranks} ranks, durability {durability}: {count} disturbances so far");
    }
    println!(
        "{count} disturbances {events:?}, {resumes} resumes, {moves} moves, {jobs} jobs: every \
         digest that of its undisturbed run"
    );
}
