//! The fuzzer's corpus and thousands of mutations of it: whatever the bytes are, each reader of
//! bytes from outside gives a value or an error, without a panic and within little memory.
//!
//! `OPTSWAP_SEED` says which mutations (default 1), `OPTSWAP_MUTATIONS` how many for each target
//! (default 2000). `launch/soak fuzz` looks for other bytes.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

#[path = "../fuzz/src/lib.rs"]
mod fuzz;
#[path = "fuzz_corpus/mutations.rs"]
mod mutations;
#[path = "fuzz_corpus/seeds.rs"]
mod seeds;
mod support;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;

use fuzz::{TARGETS, Target};
use mutations::{Dice, mutated};

fn folder(target: &Target) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/fuzz").join(target.name)
}

/// The stored inputs, by the names of their files.
fn corpus(target: &Target) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder(target)).unwrap().map(|entry| entry.unwrap());
    let file = |entry: std::fs::DirEntry| {
        (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())
    };
    entries.map(file).collect()
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Reads the bytes, and tells which they were if that panics.
fn check(target: &Target, bytes: &[u8], which: &str) -> bool {
    catch_unwind(AssertUnwindSafe(|| target.check(bytes))).unwrap_or_else(|panic| {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{}", target.name));
        std::fs::write(&path, bytes).unwrap();
        eprintln!("{}: {which}; its bytes are in {}", target.name, path.display());
        resume_unwind(panic)
    })
}

#[test]
fn stored_inputs_are_read_and_those_from_real_files_are_taken() {
    for target in &TARGETS {
        let mut seeds = 0;
        for (name, bytes) in corpus(target) {
            let is_taken = check(target, &bytes, &name);
            if name.starts_with("seed-") {
                seeds += 1;
                let hint = "if the format has a new version, change fuzz/src/lib.rs and write the \
                            seeds anew: cargo test --test fuzz_corpus -- --ignored";
                assert!(is_taken, "{}: {name} is refused; {hint}", target.name);
            }
        }
        assert!(seeds > 0, "{} has no seeds", target.name);
    }
}

#[test]
fn mutated_inputs_are_read_without_a_panic_and_within_little_memory() {
    let (seed, count) = (setting("OPTSWAP_SEED", 1), setting("OPTSWAP_MUTATIONS", 2000));
    println!("OPTSWAP_SEED={seed} OPTSWAP_MUTATIONS={count}");
    std::thread::scope(|scope| {
        for (number, target) in TARGETS.iter().enumerate() {
            scope.spawn(move || {
                let corpus: Vec<Vec<u8>> = corpus(target).into_values().collect();
                let mut dice = Dice::new(seed, number as u64);
                let (mut taken, mut refused) = (0, 0);
                for case in 0..count {
                    let bytes = mutated(&corpus, &mut dice);
                    let which = format!("mutation {case} of OPTSWAP_SEED={seed}");
                    *(if check(target, &bytes, &which) { &mut taken } else { &mut refused }) += 1;
                }
                // They are near enough to what is right to be taken at times, and mostly wrong.
                let (name, all) = (target.name, taken + refused);
                assert!(taken > 0 && refused > 0, "{name}: {taken} of {all} were taken");
            });
        }
    });
}

#[test]
#[ignore = "writes the seeds in tests/data/fuzz anew, after a format has changed"]
fn seeds_are_written() {
    for target in &TARGETS {
        std::fs::create_dir_all(folder(target)).unwrap();
        for (number, bytes) in seeds::seeds(target.name).into_iter().enumerate() {
            std::fs::write(folder(target).join(format!("seed-{number}")), bytes).unwrap();
        }
    }
}
