//! `optswap tune`: what it writes. What it finds is whatever the machine has.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use optswap::Config;
use support::{Drives, Run, alone, one_at_a_time, optswap, ranks};

#[test]
fn the_configuration_loads_as_it_is() {
    let _turn = one_at_a_time();
    let drives = Drives::new(2);
    let [output, json] = ["tuned.toml", "tuned.json"].map(|name| drives.write(name, ""));
    let base = drives.write("base.toml", "job = \"mine\"\n[optimizer]\nlr = 0.5\n");
    let mut command = ranks(2, &optswap());
    command.args(["tune", "--drives", &drives.list(2), "--config", &base, "--seconds", "3"]);
    command.args(["--memory-budget", "64MiB", "--output", &output, "--json", &json]);
    let run = Run::of(&command.output().unwrap());
    run.expect(0, &[]);
    for words in ["stripe unit", "as before", "weights: ", "gain: ", "written: "] {
        assert!(run.stdout.contains(words), "{words}: {}", run.stdout);
    }
    let config = Config::read(output.as_ref()).unwrap();
    assert_eq!((config.job.as_str(), config.optimizer.lr), ("mine", 0.5));
    assert_eq!(config.drives.paths, drives.paths());
    let told: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap();
    assert!(told["trials"].as_array().is_some_and(|trials| !trials.is_empty()));
    let (depth, is_gain) = (&told["config"]["io"]["depth"], &told["is_gain"]);
    assert_eq!(depth, config.io.depth);
    assert!(is_gain == true || config.io.depth == Config::default().io.depth);
    assert!(drives.are_empty());
    let used = alone(
        &optswap(),
        &["bench", "--config", &output, "--params", "1Mi", "--repetitions", "1", "--steps", "1"],
    );
    used.expect(0, &[]);
}

/// Every node goes on looking for its own drives; patterns stay patterns.
#[test]
fn only_drives_that_were_named_are_written() {
    let drives = Drives::new(2);
    let output = drives.write("tuned.toml", "");
    let tune = ["tune", "--seconds", "1", "--memory-budget", "64MiB", "--output", &output];
    let site = format!(
        "[[nodes]]\nhosts = '*'\n[[nodes.drives]]\npath = '{}/drive*'\n",
        drives.path().display()
    );
    let site = drives.write("site.toml", &site);
    alone(&optswap(), &[&tune[..], &["--site", &site]].concat()).expect(0, &[]);
    let config = Config::read(output.as_ref()).unwrap();
    assert!(config.drives.paths.is_empty(), "{:?}", config.drives.paths);
    let bench = ["bench", "--config", &output, "--params", "100k", "--steps", "1"];
    alone(&optswap(), &[&bench[..], &["--site", &site]].concat()).expect(0, &["site"]);

    let pattern = format!("{}/drive*", drives.path().display());
    alone(&optswap(), &[&tune[..], &["--drives", &pattern]].concat()).expect(0, &[]);
    assert_eq!(
        Config::read(output.as_ref()).unwrap().drives.paths,
        [std::path::PathBuf::from(pattern)]
    );
    assert!(drives.are_empty());
}

#[test]
fn wrong_usage() {
    let drives = Drives::new(1);
    let list = drives.list(1);
    alone(&optswap(), &["tune", "--drives", &list, "--seconds", "0"]).expect(64, &["--seconds"]);
    alone(&optswap(), &["tune", "--drives", "/no/such/drive"]).expect(69, &["cannot be found"]);
    assert!(drives.are_empty());
}
