//! The rules of the house, held by a test: see docs/ARCHITECTURE.md.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

#[path = "tidy/circles.rs"]
mod circles;
#[path = "tidy/functions.rs"]
mod functions;
#[path = "tidy/imports.rs"]
mod imports;
#[path = "tidy/source.rs"]
mod source;

use std::collections::BTreeSet;

use circles::circles;
use functions::function_lines;
use imports::public_names;
use source::{Source, sources};

/// The rooms in order: each may use those before it.
const ROOMS: [&str; 18] = [
    "units",
    "error",
    "timers",
    "wire",
    "state",
    "config",
    "partition",
    "storage",
    "io",
    "optim",
    "plan",
    "swap",
    "coord",
    "gradients",
    "telemetry",
    "step",
    "checkpoint",
    "job",
];

/// The rooms of the flags that programs share, below which is the whole library.
const ARGS_ROOMS: [&str; 4] = ["out", "progress", "args", "start"];

/// The rooms of the program, below which are those flags and the library.
const PROGRAM_ROOMS: [&str; 4] = ["measure", "forecast", "report", "cli"];

/// Where Rust code is that ends up in a program.
const PACKAGES: [&str; 3] = ["src", "args/src", "program/src"];

/// Where Rust code is at all.
const FOLDERS: [&str; 8] =
    ["src", "args", "program", "examples", "tests", "benches", "fuzz/src", "fuzz/targets"];

/// Where unsafe code may be.
const UNSAFE: [&str; 11] = [
    "src/io/buffer.rs",
    "src/io/engine.rs",
    "src/io/fault.rs",
    "src/io/threads.rs",
    "src/io/transfer.rs",
    "src/io/uring.rs",
    "src/optim/width.rs",
    "src/coord/mpi/mail.rs",
    "src/coord/mpi/mod.rs",
    "src/coord/mpi/thread.rs",
    "tests/support/allocations.rs",
];

const FILE_LINES_MAX: usize = 450;
const LINE_CHARS_MAX: usize = 100;
const FUNCTION_LINES_MAX: usize = 70;
/// Names at the root of the library: what its users read first.
const PUBLIC_NAMES_MAX: usize = 75;
const CIRCLE_FILES_MAX: usize = 3;

/// Functions that are still too long. This list must shrink: an entry that is not needed any more
/// fails the test.
const LONG_FUNCTIONS: [(&str, &str); 0] = [];

/// Circles that are still too large, by their files. This list must shrink, as the one above.
const LARGE_CIRCLES: [&[&str]; 0] = [];

fn refuse(problems: Vec<String>) {
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn values_flow_one_way() {
    let mut problems = Vec::new();
    let [library, args, program] = PACKAGES;
    for (package, rooms) in [(library, &ROOMS[..]), (args, &ARGS_ROOMS), (program, &PROGRAM_ROOMS)]
    {
        problems.extend(backward_uses(&sources(package), rooms));
    }
    refuse(problems);
}

fn backward_uses(sources: &[Source], rooms: &[&str]) -> Vec<String> {
    let rank = |room: &str| rooms.iter().position(|known| *known == room);
    let mut problems = Vec::new();
    for source in sources {
        let Some(room) = source.room().filter(|room| !["lib", "main"].contains(room)) else {
            continue;
        };
        let own = rank(room).unwrap_or_else(|| panic!("{} is in no known room", source.path));
        for (number, line) in source.lines() {
            for (at, _) in line.match_indices("crate::") {
                let used: String = line[at + 7..]
                    .chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect();
                if rank(&used).is_some_and(|used| used > own) {
                    problems.push(format!("{}:{number}: {room} uses {used}", source.path));
                }
            }
        }
    }
    problems
}

/// Whether a line of code has unsafe code, or promises what only unsafe code needs.
fn is_unsafe(line: &str) -> bool {
    ["unsafe {", "unsafe fn", "unsafe impl", "unsafe trait", "unsafe extern"]
        .iter()
        .any(|words| line.contains(words))
}

#[test]
fn unsafe_code_has_an_address() {
    let mut problems = Vec::new();
    let mut used = Vec::new();
    for source in FOLDERS.into_iter().flat_map(sources) {
        if let Some((number, _)) = source.lines().find(|(_, line)| is_unsafe(line)) {
            if UNSAFE.contains(&source.path.as_str()) {
                used.push(source.path.clone());
            } else {
                problems.push(format!("{}:{number}: unsafe code", source.path));
            }
        }
    }
    refuse(problems);
    assert_eq!(used.len(), UNSAFE.len(), "an address is no longer needed: {used:?}");
}

#[test]
fn libraries_stay_in_their_rooms() {
    let mut problems = Vec::new();
    for source in PACKAGES.into_iter().flat_map(sources) {
        for (number, line) in source.lines() {
            let mut forbid = |word: &str, allowed: &[&str]| {
                if line.contains(word) && !allowed.iter().any(|path| source.path.starts_with(path))
                {
                    problems.push(format!("{}:{number}: {word}", source.path));
                }
            };
            forbid("io_uring::", &["src/io/uring.rs"]);
            forbid("mpi::ffi", &["src/coord/mpi/"]);
            forbid("bincode::", &["src/wire.rs"]);
            forbid("crc_fast::", &["src/wire.rs"]);
            forbid("safetensors::Dtype", &["src/checkpoint/safetensors/"]);
            forbid("signal_hook::", &["src/job/"]);
            forbid("indicatif::", &["args/src/progress.rs"]);
            forbid(
                "rayon::prelude",
                &["src/optim/", "src/gradients/", "src/step/", "program/src/measure/"],
            );
            // They panic when nobody reads: `optswap_args::say`, and `complain` in job.
            forbid("println!(", &[]);
            forbid("print!(", &[]);
            forbid("process::exit", &["src/job/"]);
            forbid("std::env::var", &["src/job/", "args/src/", "program/src/cli/"]);
        }
    }
    refuse(problems);
}

#[test]
fn files_do_one_job_and_lines_fit() {
    let mut problems = Vec::new();
    for source in FOLDERS.into_iter().flat_map(sources) {
        let lines = source.text.lines().count();
        if lines > FILE_LINES_MAX {
            problems.push(format!("{}: {lines} lines", source.path));
        }
        for (number, line) in source.text.lines().enumerate() {
            if line.chars().count() > LINE_CHARS_MAX {
                problems.push(format!("{}:{}: line too long", source.path, number + 1));
            }
            for word in [concat!("dbg", "!("), concat!("FIX", "ME"), concat!("todo", "!(")] {
                if line.contains(word) {
                    problems.push(format!("{}:{}: {word}", source.path, number + 1));
                }
            }
        }
        if !source.text.starts_with("//!") {
            problems.push(format!("{}: does not say what it is for", source.path));
        }
    }
    refuse(problems);
}

#[test]
fn the_library_has_few_names() {
    let library = sources("src").into_iter().find(|source| source.path == "src/lib.rs").unwrap();
    let names = public_names(&library);
    assert!(!names.contains(&"*".to_owned()), "the root names what it passes on");
    assert!(names.len() <= PUBLIC_NAMES_MAX, "{} names: {names:?}", names.len());
}

/// What breaks a rule and is not listed, and what is listed and does not break it any more.
fn differences(found: &BTreeSet<String>, listed: &BTreeSet<String>) -> Vec<String> {
    let new = found.difference(listed).cloned();
    let gone = listed.difference(found).map(|it| format!("{it}: take it off the list"));
    new.chain(gone).collect()
}

#[test]
fn functions_are_short() {
    let mut found = BTreeSet::new();
    for source in FOLDERS.into_iter().flat_map(sources) {
        let long = function_lines(&source).into_iter();
        let long = long.filter(|(_, lines)| *lines > FUNCTION_LINES_MAX);
        found.extend(long.map(|(name, _)| format!("{}: {name} is too long", source.path)));
    }
    let listed = LONG_FUNCTIONS.map(|(path, name)| format!("{path}: {name} is too long"));
    refuse(differences(&found, &BTreeSet::from(listed)));
}

#[test]
fn no_circle_has_many_files() {
    let mut found = BTreeSet::new();
    for package in PACKAGES {
        let circles = circles(&sources(package), package, CIRCLE_FILES_MAX + 1);
        found.extend(circles.iter().map(|files| format!("a circle of {files:?}")));
    }
    let listed = LARGE_CIRCLES.iter().map(|files| format!("a circle of {files:?}")).collect();
    refuse(differences(&found, &listed));
}

#[test]
fn every_rule_can_be_broken() {
    let line = |line: &str| is_unsafe(&Source::new("made-up.rs", line).code);
    assert!(line("pub unsafe trait T {}") && line("let x = unsafe { y };"));
    assert!(line("unsafe impl Send for X {}") && line("unsafe fn f() {}"));
    assert!(!line("// unsafe { }") && !line("\"unsafe fn\"") && !line("unsafe_op()"));
    let rooms = [("src/a/x.rs", "use crate::b::B;"), ("src/b.rs", "fn b() { crate::a::a() }")];
    let rooms = rooms.map(|(path, text)| Source::new(path, text));
    assert_eq!(backward_uses(&rooms, &["a", "b"]), ["src/a/x.rs:1: a uses b"]);
    let [found, listed] = [["a", "b"], ["b", "c"]].map(|it| it.map(str::to_owned).into());
    assert_eq!(differences(&found, &listed), ["a", "c: take it off the list"]);
}
