//! `optswap probe`: what it finds, keeps and leaves behind. Bandwidths themselves are not tested:
//! they are whatever the machine has.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use optswap::internals::storage::DriveProfile;
use serde_json::Value;
use support::{Drives, Run, alone, one_at_a_time, optswap, ranks, signal};

const QUICK: [&str; 6] = ["--seconds", "0.05", "--size", "4MiB", "--depth", "4"];

fn nodes(run: &Run) -> Vec<Value> {
    assert_eq!(run.code, 0, "{}\n{}", run.stdout, run.stderr);
    let value: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(value["schema"], 1);
    value["nodes"].as_array().unwrap().clone()
}

fn probe(drives: &str, more: &[&str]) -> Run {
    let named = ["probe", "--drives", drives];
    alone(&optswap(), &[&named[..], &QUICK, more].concat())
}

#[test]
fn profiles_lie_beside_the_data() {
    let drives = Drives::new(2);
    let run = probe(&drives.list(2), &["--json"]);
    let node = nodes(&run).remove(0);
    for (index, root) in drives.paths().iter().enumerate() {
        let found = &node["drives"][index];
        assert_eq!(found["root"], root.display().to_string());
        let profile: DriveProfile = serde_json::from_value(found["profile"].clone()).unwrap();
        assert_eq!(DriveProfile::read(root).unwrap(), Some(profile.clone()));
        assert!(profile.weight() > 0.0 && profile.mixed_together_bytes_per_s > 0.0);
        // The file that was measured is gone.
        assert_eq!(std::fs::read_dir(root).unwrap().count(), 1);
        assert_eq!(std::fs::read_dir(root.join("optswap")).unwrap().count(), 1);
    }
    assert_eq!(node["drives"][0]["shares_device_with"], Value::Null);
    assert_eq!(node["drives"][1]["shares_device_with"], drives.list(1));
    // A profile is no job.
    let list = alone(&optswap(), &["clean", &drives.list(1)]);
    list.expect(0, &[]);
}

#[test]
fn for_people() {
    let drives = Drives::new(2);
    let run = probe(&drives.list(2), &["--no-save"]);
    run.expect(0, &[]);
    for words in ["both, all at once", "sum of 2", "lie on one device"] {
        assert!(run.stdout.contains(words), "{}", run.stdout);
    }
    assert!(drives.are_empty(), "--no-save kept something");
}

#[test]
fn ranks_of_a_node_measure_once() {
    let _turn = one_at_a_time();
    let drives = Drives::new(2);
    let mut command = ranks(3, &optswap());
    command.args(["probe", "--drives", &drives.list(2), "--json", "--log-ranks", "all"]);
    let run = Run::of(&command.args(QUICK).output().unwrap());
    let nodes = nodes(&run);
    assert_eq!((nodes.len(), nodes[0]["drives"].as_array().map(Vec::len)), (1, Some(2)));
    assert_eq!(run.stderr.matches("measuring ").count(), 2, "{}", run.stderr);
}

#[test]
fn stopped_half_way_nothing_stays() {
    let drives = Drives::new(1);
    for name in ["-INT", "-KILL"] {
        let mut command = Command::new(optswap());
        command.args(["probe", "--drives", &drives.list(1), "--seconds", "60", "--size", "8MiB"]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let pid = child.id().to_string();
        let measures = || {
            let files = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
            let targets = files.flatten().filter_map(|file| std::fs::read_link(file.path()).ok());
            targets.into_iter().any(|path| path.to_string_lossy().contains("optswap-measure"))
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        while !measures() {
            assert!(Instant::now() < deadline, "it does not begin");
            std::thread::sleep(Duration::from_millis(10));
        }
        signal(&pid, name);
        let run = Run::of(&child.wait_with_output().unwrap());
        if name == "-INT" {
            run.expect(130, &["SIGINT: stopped, nothing is kept"]);
        }
        assert!(drives.are_empty(), "{name}");
    }
}

#[test]
fn wrong_usage() {
    let drives = Drives::new(1);
    for (arguments, words) in [
        (["--seconds", "0"], "--seconds must be"),
        (["--depth", "0"], "--depth must be"),
        (["--size", "1MiB"], "--size must be"),
    ] {
        let run =
            alone(&optswap(), &[&["probe", "--drives", &drives.list(1)][..], &arguments].concat());
        run.expect(64, &[words]);
    }
    let run = alone(&optswap(), &["probe", "--drives", &drives.list(1), "--size", "1000TiB"]);
    run.expect(73, &["cannot be created", "free space"]);
    probe("/no/such/drive", &[]).expect(69, &["cannot be found"]);
    assert!(drives.are_empty());
}
