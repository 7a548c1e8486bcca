//! Every operation outside of a step fails once, in every way: at a start, when a job comes back,
//! while a checkpoint is saved or loaded, and when the job ends. What comes out is right, or all
//! ranks get one error; and afterwards an undisturbed start gets the right bits, or is told that
//! what lies there is damaged. Never a wrong digest, never a hang. (Steps: `tests/every_fault.rs`.)

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use std::path::PathBuf;
use std::sync::Arc;

use optswap::internals::config::{Durability, EngineName, FaultConfig, FaultKind};
use optswap::{Checkpoints, Communicator, Config, NO_PARAMETERS, Result};
use support::tensors;
use support::world::{Job, STEPS, all, job_config_for, on_ranks_in_case, undisturbed_digests};
use support::{Drives, Run, copy_tree, one_at_a_time, optswap};

const RANKS: usize = 2;

/// More operations than any of these has: what strikes nothing shows that the end was reached.
const OPS: u64 = 40;

/// What a job is doing when the fault comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// A new job begins, and its state is read once.
    Start,
    /// A job comes back after two steps, and goes on to its end.
    Resume,
    /// A checkpoint is saved beside a step.
    Save,
    /// A job begins from a checkpoint on empty drives, and goes on to its end.
    Load,
    /// A job ends with writes and reads ahead under way.
    Shutdown,
}

const ALL: [When; 5] = [When::Start, When::Resume, When::Save, When::Load, When::Shutdown];

struct Place {
    drives: Drives,
    checkpoints: PathBuf,
}

impl Place {
    fn config(&self, engine: EngineName) -> Config {
        let mut config = job_config_for(&self.drives, Durability::Step, engine);
        config.checkpoint.dir = Some(self.checkpoints.clone());
        config
    }
}

fn steps_until(job: &mut Job, attempts: u64) -> Result<()> {
    while job.optimizer.attempts() < attempts {
        job.step()?;
    }
    Ok(())
}

/// Drives and checkpoints as they are before what is tested.
fn prepared(when: When) -> Place {
    let drives = Drives::new(2);
    let place = Place { checkpoints: drives.path().join("checkpoints"), drives };
    let config = place.config(EngineName::Threads);
    let before = match when {
        When::Start | When::Save | When::Shutdown => return place,
        When::Resume | When::Load => 2,
    };
    all(on_ranks_in_case("preparation", RANKS, |comm| {
        let mut job = Job::start(&config, Arc::clone(&comm))?;
        steps_until(&mut job, before)?;
        if when == When::Load {
            let mut checkpoints = Checkpoints::open(&config, comm)?.unwrap();
            checkpoints.save(&mut job.optimizer, None, b"blob", &job.params)?;
            job.optimizer.close();
        }
        Ok(())
    }));
    place
}

/// What is tested; gives the digest after [`STEPS`] steps, or of the start.
fn run(when: When, config: &Config, comm: Arc<dyn Communicator>) -> Result<String> {
    let mut checkpoints = Checkpoints::open(config, Arc::clone(&comm))?.unwrap();
    if when == When::Load {
        let newest = checkpoints.newest()?.unwrap();
        let sizes = support::world::inventory(&[20_000, 4000]);
        let options = optswap::CreateOptions::default();
        let mut optimizer = optswap::SwappedOptimizer::create(config, sizes, comm, options)?;
        let mut params = vec![0.0; optimizer.partition().elems() as usize];
        if optimizer.resumed().is_some() {
            optimizer.emit_parameters(&mut params)?;
        } else {
            checkpoints.load(&mut optimizer, &newest.1, &mut params)?;
        }
        return Job { optimizer, params }.finish();
    }
    let mut job = Job::start(config, Arc::clone(&comm))?;
    match when {
        When::Start => return job.optimizer.state_digest(NO_PARAMETERS),
        When::Save => {
            checkpoints.begin(&mut job.optimizer, None, b"blob", &job.params)?;
            job.step()?;
            checkpoints.finish(&mut job.optimizer, &job.params)?;
        }
        When::Resume | When::Shutdown | When::Load => {}
    }
    if when == When::Shutdown {
        steps_until(&mut job, STEPS)?;
        drop(job);
        // What counts is what a later start finds.
        return Ok(String::new());
    }
    job.finish()
}

fn agreed_error(name: &str, results: &[Result<String>]) -> Option<String> {
    let errors: Vec<String> = results
        .iter()
        .filter_map(|result| result.as_ref().err())
        .inspect(|error| {
            assert!(
                error.is_agreed() && [64, 69, 70, 73, 74].contains(&error.exit_code()),
                "{error}"
            );
        })
        .map(ToString::to_string)
        .collect();
    assert!(errors.is_empty() || errors.len() == RANKS, "{name}: ranks disagree: {errors:?}");
    errors.into_iter().next()
}

/// One fault: `None` if it was survived, or the error.
fn disturbed(
    when: When,
    (engine, op, kind): (EngineName, u64, FaultKind),
    expected: &[String],
) -> Option<String> {
    let name = format!("{when:?}: {kind:?} at operation {op}, {engine:?}");
    let place = prepared(when);
    let mut config = place.config(engine);
    if when == When::Shutdown {
        (config.swap.write_behind, config.swap.prefetch) = (true, true);
    }
    let undisturbed = config.clone();
    config.faults.push(FaultConfig::at(1, op, kind));
    config.timeouts.io_timeout = if kind == FaultKind::Stall { 0.2 } else { 60.0 };
    let results = on_ranks_in_case(&name, RANKS, |comm| run(when, &config, comm));
    let error = agreed_error(&name, &results);
    let right = if when == When::Start { &expected[0] } else { expected.last().unwrap() };
    for digest in results.iter().flatten() {
        assert!(digest.is_empty() || digest == right, "{name}: {digest}");
    }
    if kind == FaultKind::Stall {
        // The kernel may still write for this process, so it keeps its locks until it ends.
        let later = Drives::new(2);
        copy_tree(place.drives.path(), later.path());
        go_on(
            when,
            &name,
            kind,
            Place { checkpoints: later.path().join("checkpoints"), drives: later },
            undisturbed,
            right,
        );
    } else {
        go_on(when, &name, kind, place, undisturbed, right);
    }
    error
}

/// A later start without faults gets the right bits, or finds that a drive has lied.
fn go_on(when: When, name: &str, kind: FaultKind, place: Place, config: Config, right: &str) {
    let mut config = config;
    config.drives.paths = place.drives.paths();
    config.checkpoint.dir = Some(place.checkpoints.clone());
    let again = match when {
        When::Save | When::Shutdown => When::Resume,
        when => when,
    };
    let results = on_ranks_in_case(name, RANKS, |comm| run(again, &config, comm));
    match agreed_error(name, &results) {
        None => {
            assert!(results.iter().flatten().all(|digest| digest == right), "{name}: {results:?}")
        }
        Some(error) => {
            assert!(kind == FaultKind::Torn && error.contains("corrupt"), "{name}: {error}");
        }
    }
}

fn sweep(kinds: &[FaultKind], ops: impl Iterator<Item = u64> + Clone) -> [usize; 2] {
    let _turn = one_at_a_time();
    let expected = undisturbed_digests(RANKS);
    let mut counts = [0; 2];
    for when in ALL {
        let mut errors = 0;
        for op in ops.clone() {
            let engine = if op / 2 % 2 == 0 { EngineName::Threads } else { EngineName::Uring };
            for kind in kinds {
                let error = disturbed(when, (engine, op, *kind), &expected);
                errors += usize::from(error.is_some());
                counts[usize::from(error.is_some())] += 1;
            }
        }
        println!("{when:?}: {errors} errors");
    }
    println!("{kinds:?}: survived {}, told {}", counts[0], counts[1]);
    counts
}

#[test]
fn what_a_moment_takes_away_is_done_again() {
    let kinds = [FaultKind::Eintr, FaultKind::Eagain, FaultKind::Short];
    assert_eq!(sweep(&kinds, (0..OPS).step_by(2))[1], 0, "nothing of this is an error");
}

#[test]
fn a_refused_operation_is_one_error_or_harmless() {
    let counts = sweep(&[FaultKind::Eio, FaultKind::Enospc], 0..OPS);
    assert!(counts[1] > counts[0], "{counts:?}");
}

#[test]
fn a_lie_of_a_drive_is_found_or_harmless() {
    let counts = sweep(&[FaultKind::Torn, FaultKind::Bitflip], 0..OPS);
    assert!(counts[1] > 0, "{counts:?}");
}

#[test]
fn a_lost_operation_is_one_error_or_left_behind() {
    // Waiting takes real time, so not every operation.
    let counts = sweep(&[FaultKind::Stall], (0..OPS).step_by(7));
    assert!(counts[1] > 0, "{counts:?}");
}

#[test]
fn a_model_is_put_onto_drives_whole_or_not_at_all() {
    let (mut done, mut told) = (0, 0);
    for op in 0..12 {
        for kind in ["eio", "enospc", "eagain", "short", "torn", "stall"] {
            let drives = Drives::new(1);
            let model = drives.path().join("m.safetensors");
            let model = tensors::write(&model, &[("w", tensors::f32s(1, &[5 * 4096]))]);
            let model = model.display().to_string();
            let faults = format!("[[faults]]\nrank = 0\nop = {op}\nkind = \"{kind}\"\n");
            let text =
                format!("[timeouts]\nio_timeout = 0.2\n[swap]\nchunk_elements = 4096\n{faults}");
            let config = drives.write("c.toml", &text);
            let list = drives.list(1);
            let init = ["init", "--from", &model, "--config", &config, "--drives", &list];
            let run: Run = support::alone(&optswap(), &init);
            let verified = support::alone(&optswap(), &["verify", &list]);
            match run.code {
                0 => {
                    done += 1;
                    // A drive that has lied is found by the checksums.
                    let is_torn = kind == "torn" && verified.code == 74;
                    assert!(verified.code == 0 || is_torn, "{faults}{run:?}{verified:?}");
                }
                code => {
                    told += 1;
                    assert_eq!(code, 74, "{faults}{run:?}");
                    assert!(run.stderr.contains("error: "), "{faults}{run:?}");
                    assert_eq!(verified.code, 69, "{faults}nothing is there: {verified:?}");
                }
            }
        }
    }
    println!("whole {done}, told {told}");
    assert!(told > 10 && done > 10);
}
