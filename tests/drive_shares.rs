//! Drives whose shares change in mid-run, by hand or because one has become slow: chunks move when
//! they are written, the bits stay, and a durable job comes back from wherever they lie.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use std::os::unix::fs::FileExt;

use half::bf16;
use optswap::internals::checkpoint::verify_drives;
use optswap::internals::config::{EngineName, FaultConfig, FaultKind};
use optswap::{Config, Error, NO_PARAMETERS, Result, SwappedOptimizer};
use support::world::{all, config_for, durable_config_for, on_ranks, start, step_into, step_until};
use support::{Drives, alone, one_at_a_time, optswap};

/// 16 blocks: chunks of three stripe units.
const SIZES: [usize; 3] = [30_000, 17_000, 18_536];
const STEPS: u64 = 6;
/// When the third drive gets a fifth of its share, and when it gets all of it again.
const LESS: (u64, [f64; 3]) = (2, [1.0, 1.0, 0.2]);
const MORE: (u64, [f64; 3]) = (4, [1.0, 1.0, 1.0]);

/// The digest after so many steps of a job that nobody disturbs.
fn undisturbed(steps: u64) -> String {
    let drives = Drives::new(1);
    let config = config_for(&drives);
    let digests = all(on_ranks(1, |comm| {
        let mut optimizer = start(&config, &SIZES, comm)?;
        step_until(&mut optimizer, steps)?;
        optimizer.state_digest(NO_PARAMETERS)
    }));
    digests[0].clone()
}

/// Weights by hand alone, and room for them.
fn by_hand(mut config: Config) -> Config {
    config.drives.reweight = false;
    config.drives.stripe_headroom = 0.5;
    config
}

/// Steps until so many have been attempted, with the weights that belong to each.
fn step_with_weights(optimizer: &mut SwappedOptimizer, attempts: u64) -> Result<()> {
    let mut params = vec![bf16::ZERO; optimizer.partition().elems() as usize];
    while optimizer.attempts() < attempts {
        for (step, weights) in [LESS, MORE] {
            if optimizer.attempts() == step {
                optimizer.set_drive_weights(&weights)?;
            }
        }
        step_into(optimizer, &mut params)?;
    }
    Ok(())
}

/// What part of the bytes that have moved since the last time went to, and came from, a drive.
fn part_of(optimizer: &mut SwappedOptimizer, drive: usize) -> Result<[f64; 2]> {
    let records = optimizer.gather_records()?;
    optimizer.reset_records();
    let mut moved = [[0.0; 2]; 2];
    for (at, totals) in
        records.iter().flat_map(|it| it.drives.iter().map(|it| it.totals.clone()).enumerate())
    {
        for (way, bytes) in [totals.written_bytes, totals.read_bytes].into_iter().enumerate() {
            moved[way][0] += bytes as f64;
            moved[way][1] += if at == drive { bytes as f64 } else { 0.0 };
        }
    }
    Ok(moved.map(|[all, own]| own / all))
}

#[test]
fn writes_follow_new_weights_at_once_and_reads_follow_the_writes() {
    for ranks in [1, 2] {
        let drives = Drives::new(3);
        let mut config = by_hand(config_for(&drives));
        // Every step has bytes of its own.
        (config.swap.prefetch, config.swap.write_behind) = (false, false);
        let parts = all(on_ranks(ranks, |comm| {
            let mut optimizer = start(&config, &SIZES, comm)?;
            let mut parts = Vec::new();
            for step in 1..=STEPS {
                optimizer.reset_records();
                step_with_weights(&mut optimizer, step)?;
                parts.push(part_of(&mut optimizer, 2)?);
            }
            optimizer.close();
            Ok(parts)
        }));
        for (step, [written, read]) in parts[0].iter().enumerate() {
            let is_less = |step: usize| (2..4).contains(&step);
            for (part, is_less) in [(written, is_less(step)), (read, step > 0 && is_less(step - 1))]
            {
                let expected = if is_less { 0.2 / 2.2 } else { 1.0 / 3.0 };
                assert!((part - expected).abs() < 0.06, "{ranks} ranks: {parts:?}");
            }
        }
    }
}

#[test]
fn a_durable_job_comes_back_from_wherever_its_chunks_lie() {
    let expected = undisturbed(STEPS);
    for (ranks, every) in [(1, 1), (2, 1), (1, 3), (3, 2)] {
        for left_after in 2..STEPS {
            let case = format!("{ranks} ranks, commits every {every}, left after {left_after}");
            let drives = Drives::new(3);
            let config = by_hand(durable_config_for(&drives, every));
            all(on_ranks(ranks, |comm| {
                let mut optimizer = start(&config, &SIZES, comm)?;
                step_with_weights(&mut optimizer, left_after)
            }));
            let report = verify_drives(&drives.paths(), None).unwrap();
            assert!(report.findings.is_empty() && report.chunks == 16, "{case}: {report:?}");
            let digests = all(on_ranks(ranks, |comm| {
                let mut optimizer = start(&config, &SIZES, comm)?;
                let resumed = optimizer.resumed().expect("it comes back");
                assert_eq!(resumed.attempt, left_after / every * every, "{case}");
                step_with_weights(&mut optimizer, STEPS)?;
                let digest = optimizer.state_digest(NO_PARAMETERS)?;
                optimizer.close();
                Ok(digest)
            }));
            assert_eq!(digests[0], expected, "{case}");
        }
    }
}

/// Any operation of the step in which everything moves fails; the job goes back, in the same
/// process and in another one.
#[test]
fn a_step_that_fails_while_chunks_move_is_done_again() {
    let expected = undisturbed(STEPS);
    // Initialisation, two whole steps, and the third: 48 units, and most reads are of one.
    let ops = (48 + 4 * 48..48 + 6 * 48).step_by(13);
    for (case, op) in ops.enumerate() {
        let drives = Drives::new(3);
        let mut config = by_hand(durable_config_for(&drives, 1));
        config.faults.push(FaultConfig::at(0, op, FaultKind::Eio));
        let digests = on_ranks(1, |comm| {
            let mut optimizer = start(&config, &SIZES, comm)?;
            let failed = step_with_weights(&mut optimizer, STEPS).is_err();
            if failed && case % 2 == 0 {
                let mut params = vec![bf16::ZERO; optimizer.partition().elems() as usize];
                optimizer.recover(&mut params)?;
                step_with_weights(&mut optimizer, STEPS)?;
            }
            if failed && case % 2 == 1 {
                return Ok(None);
            }
            optimizer.state_digest(NO_PARAMETERS).map(Some)
        });
        let digest = all(digests).remove(0).unwrap_or_else(|| {
            config.faults.clear();
            let digests = on_ranks(1, |comm| {
                let mut optimizer = start(&config, &SIZES, comm)?;
                assert!(optimizer.resumed().is_some(), "operation {op}");
                step_with_weights(&mut optimizer, STEPS)?;
                optimizer.state_digest(NO_PARAMETERS)
            });
            all(digests).remove(0)
        });
        assert_eq!(digest, expected, "operation {op}");
    }
}

#[test]
fn damage_is_reported_where_a_chunk_has_moved_to() {
    let drives = Drives::new(3);
    let config = by_hand(durable_config_for(&drives, 1));
    all(on_ranks(1, |comm| {
        let mut optimizer = start(&config, &SIZES, comm)?;
        optimizer.set_drive_weights(&[0.0, 1.0, 1.0])?;
        // Both slots have moved then.
        step_until(&mut optimizer, 2)
    }));
    let state = |drive: usize| drives.paths()[drive].join("optswap/default/shard-00000/state");
    let ruin = |drive: usize| {
        let file = std::fs::OpenOptions::new().write(true).open(state(drive)).unwrap();
        file.write_all_at(&vec![0x5a; file.metadata().unwrap().len() as usize], 0).unwrap();
        verify_drives(&drives.paths(), None).unwrap().findings
    };
    // With room for a half more, two drives take everything: 16 units each, and 8 more.
    assert_eq!(ruin(0).len(), 0, "nothing lies there any more");
    let findings = ruin(2);
    assert!(!findings.is_empty());
    for finding in findings {
        let message = finding.error.to_string();
        assert!(message.contains("drive2/"), "{message}");
        assert!(!message.contains("drive0/"), "{message}");
    }
}

#[test]
fn weights_out_of_range_change_nothing() {
    let drives = Drives::new(2);
    let config = by_hand(config_for(&drives));
    all(on_ranks(1, |comm| {
        let mut optimizer = start(&config, &SIZES, comm)?;
        let before = optimizer.drive_shares();
        for wrong in [&[1.0][..], &[0.0, 0.0], &[1.0, -1.0], &[1.0, f64::NAN]] {
            let error: Error = optimizer.set_drive_weights(wrong).unwrap_err();
            assert_eq!(error.exit_code(), 64);
        }
        assert_eq!(optimizer.drive_shares(), before);
        optimizer.close();
        Ok(())
    }));
}

/// Two drives that take a millisecond for everything; the second one, for a while, six.
fn slow_for_a_while(drives: &Drives, engine: EngineName, ranks: u32, is_on: bool) -> Config {
    let mut config = durable_config_for(drives, 1);
    // Faults count operations: none from reading ahead.
    (config.swap.prefetch, config.swap.write_behind) = (false, false);
    config.io.engine = engine;
    // One operation at a time on each drive and way: what is slow then has a rate, not only a
    // delay.
    config.io.depth = 4;
    config.drives.weights = vec![1.0, 1.0];
    config.drives.reweight = is_on;
    config.drives.stripe_headroom = 1.0;
    for rank in 0..ranks {
        let ops_of_a_step = 2 * 48 / u64::from(ranks);
        let slow = FaultConfig::at(rank, 4 * ops_of_a_step, FaultKind::Slow);
        config.faults.extend([
            FaultConfig { drive: Some(1), until: Some(20 * ops_of_a_step), delay_ms: 6, ..slow },
            FaultConfig { op: Some(0), delay_ms: 1, ..slow },
        ]);
    }
    config
}

#[test]
fn a_drive_that_becomes_slow_gets_less_and_when_it_recovers_as_much_as_before() {
    let _turn = one_at_a_time();
    const SOON: u64 = 18;
    const LATE: u64 = 60;
    let expected = undisturbed(LATE);
    for (engine, ranks, is_on) in
        [(EngineName::Auto, 2, true), (EngineName::Auto, 1, false), (EngineName::Threads, 1, true)]
    {
        let drives = Drives::new(2);
        let config = slow_for_a_while(&drives, engine, ranks, is_on);
        let seen = all(on_ranks(ranks as usize, |comm| {
            let mut optimizer = start(&config, &SIZES, comm)?;
            step_until(&mut optimizer, SOON)?;
            let soon = optimizer.drive_shares()[1];
            step_until(&mut optimizer, LATE)?;
            let late = optimizer.drive_shares()[1];
            let digest = optimizer.state_digest(NO_PARAMETERS)?;
            optimizer.close();
            Ok((soon, late, digest))
        }));
        let shares: Vec<_> = seen.iter().map(|(soon, late, _)| (soon, late)).collect();
        for (soon, late, digest) in &seen {
            assert_eq!(*digest, expected);
            let is_less = *soon < 0.3;
            assert!(is_less == is_on, "{engine:?}, {ranks} ranks: {shares:?}");
            assert!((0.35..0.65).contains(late), "{engine:?}, {ranks} ranks: {shares:?}");
        }
    }
}

/// The log names the drive, in the words of its user, before a fourth step is slow.
#[test]
fn a_drive_that_becomes_slow_is_named_within_three_steps() {
    let _turn = one_at_a_time();
    let drives = Drives::new(2);
    // Initialisation, and four whole steps with the warm-up.
    let onset = 48 + 4 * 96;
    let slow = |rest: &str| format!("[[faults]]\nrank = 0\nkind = \"slow\"\n{rest}\n");
    let config = format!(
        "[drives]\nstripe_unit = \"16KiB\"\nweights = [1.0, 1.0]\nstripe_headroom = 1.0\n\
         [io]\ndepth = 4\n\
         [swap]\nchunk_elements = 4096\nprefetch = false\nwrite_behind = false\n{}{}",
        slow(&format!("op = {onset}\ndrive = 1\ndelay_ms = 8")),
        slow("op = 0\ndelay_ms = 1"),
    );
    let config = drives.write("slow.toml", &config);
    let (paths, steps) = (drives.list(2), "7");
    let job = ["bench", "--params", "65536", "--repetitions", "1", "--steps", steps, "--verify"];
    let run = alone(&optswap(), &[&job[..], &["--drives", &paths, "--config", &config]].concat());
    let drive = drives.paths()[1].display().to_string();
    run.expect(0, &[&format!("the drive {drive} on "), "has become slower"]);
}
