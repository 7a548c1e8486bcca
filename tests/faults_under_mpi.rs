//! A seeded sample of faults on real ranks: each ends as documented, on all ranks, in time.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]
#![cfg(feature = "mpi")]

mod support;

use std::time::{Duration, Instant};

use support::{Drives, Run, TINY, one_at_a_time, rank_pids, ranks, train_lm};

/// Kinds, and what the job ends with. A torn write is found when it is read, a stall after
/// `io_timeout`.
const KINDS: [(&str, i32, &str); 9] = [
    ("eio", 74, "Input/output error"),
    ("enospc", 74, "No space left on device"),
    ("eintr", 0, ""),
    ("eagain", 0, ""),
    ("short", 0, ""),
    ("stall", 74, "io_timeout"),
    ("torn", 74, "corrupt"),
    ("bitflip", 74, "corrupt"),
    ("panic", 70, "injected at operation"),
];

fn draw(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

/// Runs a short job; gives what it said and the digest, if it got there.
fn run(count: usize, faults: &str) -> (Run, Duration) {
    let drives = Drives::new(1);
    let timeouts = "[timeouts]\nio_timeout = 3.0\npeer_timeout = 3.0\n";
    let text = format!("{timeouts}[swap]\nchunk_elements = 4096\n{faults}");
    let config = drives.write("job.toml", &text);
    let mut command = ranks(count, &train_lm());
    command.args(["--drives", &drives.list(1), "--config", &config, "--steps", "8"]).args(TINY);
    command.args(["--validate-every", "1000", "--durability", "step"]);
    let start = Instant::now();
    let run = Run::of(&command.output().unwrap());
    let took = start.elapsed();
    let tag = drives.path().display().to_string();
    let deadline = Instant::now() + Duration::from_secs(10);
    while !rank_pids(&tag).is_empty() {
        assert!(Instant::now() < deadline, "a rank is left: {run:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    (run, took)
}

#[test]
fn twenty_faults_end_as_documented() {
    let _turn = one_at_a_time();
    let seed = std::env::var("OPTSWAP_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    println!("OPTSWAP_SEED={seed}");
    let mut dice: u64 = seed;
    let digests: Vec<_> =
        (1..=3).map(|count| run(count, "").0.json()["state_digest"].clone()).collect();
    for case in 0..20 {
        let count = 1 + draw(&mut dice) as usize % 3;
        let rank = draw(&mut dice) as usize % count;
        let (kind, code, words) = KINDS[(case + draw(&mut dice) as usize % 2) % KINDS.len()];
        // In the steps: after the first write, and the read that emits the parameters.
        let chunks = [8, 4, 3][count - 1];
        let op = 2 * chunks + draw(&mut dice) % (10 * chunks);
        let fault = format!("[[faults]]\nrank = {rank}\nop = {op}\nkind = \"{kind}\"\n");
        let (run, took) = run(count, &fault);
        let case = format!("{count} ranks, {fault}{run:?}");
        assert!(took < Duration::from_secs(20), "{took:?}: {case}");
        match run.code {
            // A torn read or a flipped write is nothing; so is what the rank survives.
            0 => {
                let harmless = code == 0 || ["torn", "bitflip"].contains(&kind);
                assert!(harmless, "it went unnoticed: {case}");
                assert_eq!(run.json()["state_digest"], digests[count - 1], "{case}");
            }
            found => {
                assert_eq!(found, code, "{case}");
                assert!(run.stderr.contains(words), "{case}");
                let first = run.stderr.find("error: ").unwrap();
                let blamed = run.stderr[first.saturating_sub(40)..]
                    .contains(&format!("rank {rank}"))
                    || run.stderr.contains(&format!(" {rank}/{count}] error"))
                    || count == 1;
                assert!(blamed, "the failing rank is not named: {case}");
            }
        }
    }
}
