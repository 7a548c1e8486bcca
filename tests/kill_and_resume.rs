//! Ranks killed at random moments of random steps, and started again with the same command, until
//! the job ends: with the state of a job that nobody disturbed. In every third job the second drive
//! is slow, now and then, so that chunks move to the first one and back.
//!
//! `OPTSWAP_KILLS` says how many kills (default 15), `OPTSWAP_SEED` which; `launch/soak` asks for
//! 200.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]
#![cfg(feature = "mpi")]

mod support;

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

impl Job<'_> {
    fn command(&self, durability: &str) -> Command {
        let mut config = "[swap]\nchunk_elements = 4096\n".to_owned();
        if self.has_slow_drive && durability != "scratch" {
            config += &slow_drive(self.ranks);
        }
        let config = self.drives.write("small.toml", &config);
        let steps = self.steps.to_string();
        let mut command = ranks(self.ranks, &train_lm());
        command.args(["--drives", &self.drives.list(2), "--config", &config, "--steps", &steps]);
        command.args(["--durability", durability, "--validate-every", "100000"]).args(TINY);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts the job and kills one rank or all after a while; gives what it said, and whether it
    /// was killed before its end.
    fn disturbed(&self, dice: &mut Dice) -> (Run, bool) {
        let mut child = self.command(self.durability).spawn().unwrap();
        let tag = self.drives.path().display().to_string();
        let begin = Instant::now();
        while rank_pids(&tag).len() < self.ranks && begin.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(5));
        }
        // From the middle of the start to the middle of the steps.
        std::thread::sleep(Duration::from_millis(dice.below(600)));
        let pids = rank_pids(&tag);
        let all = dice.below(2) == 0;
        let only = dice.below(pids.len().max(1) as u64) as usize;
        let is_chosen = |at: usize| all || at == only;
        let chosen = pids.iter().enumerate().filter(|(at, _)| is_chosen(*at));
        let chosen: Vec<String> = chosen.map(|(_, pid)| pid.to_string()).collect();
        let is_running = child.try_wait().unwrap().is_none() && !chosen.is_empty();
        if is_running {
            // One that has just ended by itself is no failure of the test.
            let _ = Command::new("kill").arg("-9").args(&chosen).stderr(Stdio::null()).status();
        }
        (Run::of(&child.wait_with_output().unwrap()), is_running)
    }
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
    let (mut kills, mut resumes, mut moves, mut jobs) = (0, 0, 0, 0u64);
    while kills < kills_wanted {
        let drives = Drives::new(2);
        let ranks = 1 + (jobs % 4) as usize;
        let durability = if (jobs / 4 + jobs).is_multiple_of(2) { "step" } else { "3" };
        let has_slow_drive = jobs % 3 == 1;
        let steps = [300, 200, 150, 100][ranks - 1] / if has_slow_drive { 4 } else { 1 };
        let job = Job { drives: &drives, ranks, durability, steps, has_slow_drive };
        jobs += 1;
        let undisturbed = Run::of(&job.command("scratch").output().unwrap());
        let expected = digest(&undisturbed);
        let mut reached = 0;
        let has_left_all;
        // On a busy machine most lives end before their first step.
        let mut in_vain = 0;
        loop {
            in_vain += 1;
            assert!(in_vain < 100, "{ranks} ranks do not get on: step {reached}");
            let (run, was_killed) = job.disturbed(&mut dice);
            let said = format!("{ranks} ranks, durability {durability}, seed {seed}\n{run:?}");
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
            assert!(was_killed, "it ended by itself: {said}");
            kills += 1;
        }
        assert!(drives.are_empty() || !has_left_all, "nothing is left after a clean end");
        println!("{ranks} ranks, durability {durability}: {kills} kills so far");
    }
    println!(
        "{kills} kills, {resumes} resumes, {moves} moves, {jobs} jobs: every digest that of its \
         undisturbed run"
    );
}
