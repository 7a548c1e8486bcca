//! `optswap plan`: models, sites, and what it says of them. The figures themselves are tested where
//! they are computed.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use optswap::storage::DriveProfile;
use serde_json::Value;
use support::{Drives, Run, alone, optswap};

fn plan(arguments: &[&str]) -> Run {
    alone(&optswap(), &[&["plan"], arguments].concat())
}

fn json(run: &Run) -> Value {
    assert_eq!(run.code, 0, "{}\n{}", run.stdout, run.stderr);
    serde_json::from_str(&run.stdout).unwrap()
}

#[test]
fn ten_thousand_ranks() {
    let site = ["--drive-mbps", "6800:4000:5000,6800:4000:5000", "--drive-size", "3.5TB"];
    let ranks = ["--nodes", "1250", "--ranks-per-node", "8", "--memory", "1TiB"];
    let model = ["--model", "llama3-405b", "--codecs", "bf16+remainder16", "--seed", "3"];
    let more = ["--endurance-tbw", "7000", "--compute-seconds", "10", "--steps", "5"];
    let all = [&site[..], &ranks, &model, &more].concat();
    let run = plan(&all);
    run.expect(0, &[]);
    for words in [
        "405853388800 parameters in 1137 tensors on 1250 nodes of 8 ranks with 2 drives each",
        "6.00 B read and 6.00 B written",
        "bound by mixed",
        "waiting for the slowest, % of step",
        "10000 ranks and 5 steps, seed 3",
        "it fits",
    ] {
        assert!(run.stdout.contains(words), "{words}: {}", run.stdout);
    }
    let [first, again] = [&all, &all].map(|all| json(&plan(&[&all[..], &["--json"]].concat())));
    assert_eq!(first, again, "the same question has the same answer");
    assert_eq!(first["simulation"]["ranks"], 10_000);
    assert!(first["node"]["drives"][0]["endurance_days"].as_f64().unwrap() > 0.0);
}

#[test]
fn what_does_not_fit_is_said() {
    let small = ["--model", "llama3-70b", "--drive-mbps", "3000", "--update-ns", "1"];
    let run = plan(&[&small[..], &["--drive-size", "100GB"]].concat());
    assert!(run.stdout.contains("it does not fit: a drive needs"), "{}", run.stdout);
    let run = plan(&[&small[..], &["--drive-size", "1TB", "--memory", "64GiB"]].concat());
    assert!(run.stdout.contains("do not all fit a node's memory"), "{}", run.stdout);
    let run = plan(&[&small[..], &["--drive-size", "1TB", "--memory", "128MiB"]].concat());
    assert!(run.stdout.contains("I/O buffers take"), "{}", run.stdout);
    assert!(plan(&small).stdout.contains("tell --drive-size"));
    // Two slots need twice the space.
    let space = |more: &[&str]| {
        let value = json(&plan(&[&small[..], more, &["--json"]].concat()));
        value["node"]["drives"][0]["space_bytes"].as_u64().unwrap()
    };
    assert_eq!(space(&["--durability", "step"]), 2 * space(&[]));
}

#[test]
fn probed_drives_are_taken() {
    let drives = Drives::new(2);
    let list = drives.list(2);
    let named = ["--model", "1G", "--drives", &list, "--json"];
    plan(&named).expect(64, &["never probed", "optswap probe"]);
    for (root, mbps) in drives.paths().iter().zip([300.0, 100.0]) {
        let profile = DriveProfile {
            read_bytes_per_s: mbps * 1e6,
            write_bytes_per_s: mbps * 1e6,
            mixed_bytes_per_s: 2.0 * mbps * 1e6,
            ..DriveProfile::default()
        };
        profile.write(root).unwrap();
    }
    let value = json(&plan(&named));
    assert_eq!(value["node"]["drives"][0]["share"], 0.75);
    assert_eq!(value["drive_paths"], serde_json::json!(drives.paths()));
    // 12 GB at 400 MB/s each way.
    let seconds = value["node"]["step_seconds"].as_f64().unwrap();
    assert!(seconds > 30.0, "{seconds}");
    assert!(value["site"]["update_ns_per_param"].as_f64().unwrap() > 0.0, "it was not measured");
}

#[test]
fn wrong_usage() {
    for (arguments, words) in [
        (&["--model", "gpt5", "--drive-mbps", "300"][..], "this names no model"),
        (&["--model", "gpt2"], "no drive is named"),
        (&["--model", "gpt2", "--drive-mbps", "0"], "neither MB/s nor"),
        (&["--model", "gpt2", "--drive-mbps", "1:2"], "neither MB/s nor"),
        (&["--model", "gpt2", "--drive-mbps", "300", "--nodes", "0"], "at least 1"),
        (&["--model", "gpt2", "--drive-mbps", "300", "--spread", "inf"], "--spread"),
        (&["--model", "gpt2", "--drive-mbps", "300", "--memory-budget", "1MiB"], "minimum"),
    ] {
        plan(arguments).expect(64, &[words]);
    }
}
