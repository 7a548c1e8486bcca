//! The rules of the house, held by a test: see docs/ARCHITECTURE.md.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

use std::fs;
use std::path::{Path, PathBuf};

/// The rooms in order: each may use those before it.
const ROOMS: [&str; 16] = [
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
    "swap",
    "coord",
    "telemetry",
    "step",
    "checkpoint",
    "job",
];

/// The rooms of the program, above which is the whole library.
const PROGRAM_ROOMS: [&str; 4] = ["measure", "forecast", "report", "cli"];

/// Where Rust code is that ends up in a program.
const PACKAGES: [&str; 3] = ["src", "args/src", "program/src"];

/// Where unsafe code may be.
const UNSAFE: [&str; 10] = [
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
];

const FILE_LINES_MAX: usize = 450;
const LINE_CHARS_MAX: usize = 100;

struct Source {
    path: String,
    text: String,
}

impl Source {
    /// Lines of code: without comments and string contents that only talk about code.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.text.lines().enumerate();
        lines.map(|(number, line)| (number + 1, line.split("//").next().unwrap_or("")))
    }

    fn room(&self) -> Option<&str> {
        let inside = self.path.split_once("src/")?.1;
        let name = inside.split('/').next()?;
        Some(name.strip_suffix(".rs").unwrap_or(name))
    }
}

fn sources(root: &str) -> Vec<Source> {
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut open: Vec<PathBuf> = vec![home.join(root)];
    let mut found = Vec::new();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let path = path.strip_prefix(home).unwrap().to_string_lossy().into_owned();
            found.push(Source { path, text });
        }
    }
    assert!(!found.is_empty(), "{root} has no sources");
    found
}

fn refuse(problems: Vec<String>) {
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn values_flow_one_way() {
    let mut problems = Vec::new();
    for (package, rooms) in [("src", &ROOMS[..]), ("program/src", &PROGRAM_ROOMS)] {
        problems.extend(backward_uses(package, rooms));
    }
    refuse(problems);
}

fn backward_uses(package: &str, rooms: &[&str]) -> Vec<String> {
    let rank = |room: &str| rooms.iter().position(|known| *known == room);
    let mut problems = Vec::new();
    for source in sources(package) {
        let Some(room) = source.room().filter(|room| !["lib", "main"].contains(room)) else {
            continue;
        };
        let own = rank(room).unwrap_or_else(|| panic!("{} is in no known room", source.path));
        for (number, line) in source.code() {
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

#[test]
fn unsafe_code_has_an_address() {
    let mut problems = Vec::new();
    let mut used = Vec::new();
    for source in ["src", "args", "program", "examples", "tests"].into_iter().flat_map(sources) {
        let is_unsafe = |(_, line): &(usize, &str)| {
            line.contains(concat!("unsafe", " {"))
                || line.contains(concat!("unsafe", " fn"))
                || line.contains(concat!("unsafe", " impl"))
        };
        if let Some((number, _)) = source.code().find(is_unsafe) {
            match UNSAFE.contains(&source.path.as_str()) {
                true => used.push(source.path.clone()),
                false => problems.push(format!("{}:{number}: unsafe code", source.path)),
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
        for (number, line) in source.code() {
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
            forbid("rayon::prelude", &["src/optim/", "src/step/", "program/src/measure/"]);
            // They panic when nobody reads: `optswap_args::say`, and `complain` in job.
            forbid(concat!("print", "ln!("), &[]);
            forbid(concat!("print", "!("), &[]);
            forbid("process::exit", &["src/job/"]);
            forbid("std::env::var", &["src/job/", "args/src/", "program/src/cli/"]);
        }
    }
    refuse(problems);
}

#[test]
fn files_do_one_job_and_lines_fit() {
    let mut problems = Vec::new();
    for source in
        ["src", "args", "program", "examples", "tests", "benches"].into_iter().flat_map(sources)
    {
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
