//! `optswap bench`: what its results hold. Times themselves are not tested: they are whatever the
//! machine has.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use optswap::internals::storage::DriveProfile;
use serde_json::Value;
use support::{Drives, Run, alone, one_at_a_time, optswap, ranks};

const SMALL: [&str; 6] = ["bench", "--params", "1Mi", "--repetitions", "3", "--steps"];

fn bench(drives: &Drives, more: &[&str]) -> Run {
    let named = ["2", "--drives", &drives.list(2)];
    alone(&optswap(), &[&SMALL[..], &named, more].concat())
}

fn json(path: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn a_result_tells_how_to_get_it_again() {
    let drives = Drives::new(2);
    let path = drives.write("result.json", "");
    bench(&drives, &["--seed", "7", "--label", "a try", "--json", &path]).expect(0, &[]);
    let result = json(&path);
    assert_eq!(
        (&result["schema"], &result["label"]),
        (&optswap_cli::report::BENCH_SCHEMA.into(), &"a try".into())
    );
    let command: Vec<&str> =
        result["command"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
    assert_eq!(command[1..7], SMALL);
    assert!(result["commit"].as_str().is_some_and(|commit| !commit.is_empty()));
    assert_eq!(result["options"]["seed"], 7);
    assert_eq!(result["config"]["drives"]["paths"], serde_json::json!(drives.paths()));
    let node = &result["nodes"][0];
    assert!(node["memory_bytes"].as_u64() > Some(0) && node["cpus"].as_u64() > Some(0));
    let drive = &node["drives"][0];
    assert_eq!(drive["root"], drives.list(1));
    for key in ["filesystem", "mount_options", "device", "disk"] {
        assert!(drive[key].as_str().is_some_and(|text| !text.is_empty()), "{key}: {drive}");
    }
    let place = &result["places"][0];
    assert_eq!(place["host"], node["host"]);
    assert_eq!(place["drives"], serde_json::json!(drives.paths()));
    assert_eq!(
        (&place["drives_named_by"], &place["direct_io"]),
        (&"--drives".into(), &serde_json::json!([true, true]))
    );
    assert!(place["numa_nodes"].as_str().is_some_and(|text| !text.is_empty()));
    assert_eq!(result["dataset"][0]["host"], node["host"]);
    assert_eq!(result["dataset"][0]["state_bytes"], 12 << 20);
    assert_eq!(result["buffered_ranks"], serde_json::json!([]));
    // Raw samples: 3 repetitions of one rank with 2 steps.
    assert_eq!(result["step_seconds"].as_array().map(Vec::len), Some(3));
    let repetition = &result["repetitions"][2];
    assert_eq!(repetition["rank_step_seconds"][0].as_array().map(Vec::len), Some(2));
    let whole = repetition["rank_seconds"][0].as_f64().unwrap();
    assert!((result["step_seconds"][2].as_f64().unwrap() - whole / 2.0).abs() < 1e-9);
    let done = repetition["rank_done_seconds"][0].as_f64().unwrap();
    assert!(0.0 < done && done <= whole, "{done} s of {whole} s");
    assert_eq!(result["rank_records"][0]["steps"], 6, "warm-up was counted");
    assert_eq!(result["bytes_read_per_param"], 12.0);
    assert!(drives.are_empty());
}

/// The entries of a scope.
fn of_scope(result: &Value, scope: &str) -> Vec<Value> {
    let all = result["throughput"].as_array().unwrap().iter();
    all.filter(|it| it["scope"] == scope).cloned().collect()
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap()
}

/// Every scope has its own figures, and they agree with each other.
fn figures_agree(result: &Value) {
    for it in result["throughput"].as_array().unwrap() {
        let seconds = number(it, "median_seconds");
        let near = |found: f64, expected: f64| (found / expected - 1.0).abs() < 1e-9;
        let (gb, gib) = (number(it, "read_gb_per_s"), number(it, "read_gib_per_s"));
        assert!(near(gb, number(it, "read_bytes") / seconds / 1e9), "{it}");
        assert!(near(gib * f64::from(1 << 30), gb * 1e9), "{it}");
        assert!(near(number(it, "ns_per_param"), seconds * 1e9 / number(it, "params")), "{it}");
        let (done, ranks) = (&it["done_seconds"], number(it, "ranks"));
        let [first, mean, last] = ["min", "mean", "max"].map(|key| number(done, key));
        assert!(0.0 < first && first <= mean && mean <= last && last <= seconds, "{it}");
        assert!(ranks == 2.0 || first == last, "{it}");
        assert_eq!(it["done"].as_array().map(Vec::len), Some(3), "{it}");
        let limit = it["limit_percent"].as_f64();
        let expected = it["limit_seconds"].as_f64().map(|limit| limit / seconds * 100.0);
        assert!(limit.zip(expected).is_none_or(|(a, b)| near(a, b)), "{it}");
        assert_eq!(limit.is_some(), it["scope"] != "rank", "{it}");
    }
}

/// Latencies of all ranks together: operations add up, percentiles are in order.
fn latencies_agree(result: &Value) {
    let operations = |scope: &str, direction: &str| -> u64 {
        let of = of_scope(result, scope);
        of.iter().map(|it| it["latency"][direction]["operations"].as_u64().unwrap()).sum()
    };
    for direction in ["read", "write"] {
        let world = operations("world", direction);
        assert!(world > 0);
        for scope in ["node", "drive", "rank"] {
            assert_eq!(operations(scope, direction), world, "{scope} {direction}");
        }
        for it in of_scope(result, "drive").iter().chain(&of_scope(result, "world")) {
            let of = |key: &str| number(&it["latency"][direction], key);
            let [p50, p99] = [of("p50_seconds"), of("p99_seconds")];
            let [p999, max] = [of("p999_seconds"), of("max_seconds")];
            assert!(0.0 < p50 && p50 <= p99 && p99 <= p999 && p999 <= max, "{it}");
        }
    }
}

/// World, node, two drives and two ranks; bytes add up, and the limit is the bytes over the speed.
#[test]
fn bytes_add_up_and_are_held_against_the_limit() {
    let _turn = one_at_a_time();
    let drives = Drives::new(2);
    let [path, csv] = ["result.json", "result.csv"].map(|name| drives.write(name, ""));
    let mut command = ranks(2, &optswap());
    command.args(SMALL).args(["2", "--drives", &drives.list(2), "--limit-mbps", "100,50"]);
    command.env("OPTSWAP_TOLD", "yes");
    let run = Run::of(&command.args(["--json", &path, "--csv", &csv]).output().unwrap());
    run.expect(0, &[]);
    let result = json(&path);
    let of = |scope: &str| of_scope(&result, scope);
    let sum = |scope: &str, key: &str| of(scope).iter().map(|it| number(it, key)).sum::<f64>();
    for scope in ["world", "node", "drive", "rank"] {
        for key in ["read_bytes", "written_bytes"] {
            assert_eq!(sum(scope, key), 12.0 * f64::from(1 << 20), "{scope} {key}");
        }
    }
    assert_eq!((of("drive").len(), of("rank").len()), (2, 2));
    // 150 MB/s each way together; the slower drive has half of the bytes.
    let world = 12.0 * f64::from(1 << 20) / 150e6;
    assert!((number(&of("world")[0], "limit_seconds") - world).abs() < 1e-9);
    let slow = number(&of("drive")[1], "read_bytes") / 50e6;
    assert!((number(&of("drive")[1], "limit_seconds") - slow).abs() < 1e-9);
    let percent = world / result["step_seconds_median"].as_f64().unwrap() * 100.0;
    assert!((number(&result, "limit_percent") - percent).abs() < 1e-6);
    figures_agree(&result);
    latencies_agree(&result);
    // The table of ranks has the world's rate, here from the mean of the repetitions.
    let seconds = result["step_seconds"].as_array().unwrap();
    let mean = seconds.iter().filter_map(Value::as_f64).sum::<f64>() / seconds.len() as f64;
    let gb_per_s = number(&of("world")[0], "read_bytes") / mean / 1e9;
    let all = run.stdout.lines().find(|line| line.starts_with("| all ")).unwrap();
    let cells: Vec<&str> = all.split('|').map(str::trim).collect();
    let shown: f64 = cells[5].parse().unwrap();
    assert!((shown - gb_per_s).abs() < 0.001 + gb_per_s / 1e3, "{gb_per_s}: {all}");
    // Whoever sees the table can run it again.
    let launched = result["launcher_command"].as_array().unwrap();
    assert!(launched[0].as_str().is_some_and(|word| word.contains("mpirun")), "{launched:?}");
    assert_eq!(result["environment"]["OPTSWAP_TOLD"], "yes");
    for words in [
        "latency, ms",
        "99.9 %",
        "2 ranks on 1 node",
        "% of limit",
        "GiB/s",
        "repetition 3: ",
        "until its own last write: first rank",
        "\ncommand: ",
        "\nlaunched: mpirun",
        "state: master fp32, exp_avg fp32, exp_avg_sq fp32; gradients bf16; seed 0",
        "settings other than the defaults: none",
        "OPTSWAP_TOLD=yes",
        "last done s",
        "last done over 2 drives: ",
        "direct I/O: 4 of 4 files; verified on every rank",
        "dataset: on ",
    ] {
        assert!(run.stdout.contains(words), "{words}: {}", run.stdout);
    }
    let csv = std::fs::read_to_string(csv).unwrap();
    let fields: Vec<usize> = csv.lines().map(|line| line.split(',').count()).collect();
    assert_eq!(fields, [28; 19], "3 repetitions of world, node, 2 drives, 2 ranks\n{csv}");
}

/// A rank whose drives are slow is done late, though all leave the step together.
#[test]
fn the_last_rank_to_be_done_is_named() {
    let _turn = one_at_a_time();
    let drives = Drives::new(1);
    let path = drives.write("result.json", "");
    let slow = "[[faults]]\nrank = 1\nkind = \"slow\"\nop = 0\ndelay_ms = 20\n";
    let config = drives.write("slow.toml", slow);
    let mut command = ranks(2, &optswap());
    command.args(SMALL).args(["1", "--drives", &drives.list(1), "--config", &config]);
    let run = Run::of(&command.args(["--json", &path]).output().unwrap());
    assert!(run.stdout.contains("the last (rank 1)"), "{run:?}");
    let done = &json(&path)["done_seconds"];
    assert_eq!(done["max_rank"], 1);
    assert!(done["min"].as_f64().unwrap() + 0.015 < done["max"].as_f64().unwrap(), "{done}");
}

#[test]
fn profiles_give_the_limit() {
    let drives = Drives::new(2);
    let path = drives.write("result.json", "");
    let profile = DriveProfile {
        read_bytes_per_s: 1e9,
        write_bytes_per_s: 1e8,
        mixed_bytes_per_s: 1e9,
        ..DriveProfile::default()
    };
    let roots = drives.paths();
    profile.write(&roots[0]).unwrap();
    bench(&drives, &["--json", &path]).expect(0, &[]);
    assert!(json(&path)["limit_percent"].is_null(), "one drive was never probed");
    profile.write(&roots[1]).unwrap();
    bench(&drives, &["--json", &path]).expect(0, &[]);
    let world = json(&path)["throughput"][0].clone();
    assert_eq!(world["bound_by"], "write");
    let expected = 12.0 * f64::from(1 << 20) / 2e8;
    assert!((world["limit_seconds"].as_f64().unwrap() - expected).abs() < 1e-9);
}

#[test]
fn a_site_gives_the_limit_of_drives_that_were_never_probed() {
    let drives = Drives::new(2);
    let path = drives.write("result.json", "");
    let text = format!(
        "name = 'here'\n[[nodes]]\nhosts = '*'\n[[nodes.drives]]\npath = '{}/drive*'\n\
         read_gb_per_s = 1.0\nwrite_gb_per_s = 0.1\nmixed_gb_per_s = 1.0\n",
        drives.path().display()
    );
    let site = drives.write("site.toml", &text);
    let run = alone(&optswap(), &[&SMALL[..], &["2", "--site", &site, "--json", &path]].concat());
    run.expect(0, &[]);
    let result = json(&path);
    let expected = serde_json::json!([1.0, 0.1, 1.0]);
    assert_eq!(result["nodes"][0]["drives"][1]["expected_gb_per_s"], expected);
    let world = &result["throughput"][0];
    assert_eq!(world["bound_by"], "write");
    let limit = 12.0 * f64::from(1 << 20) / 2e8;
    assert!((world["limit_seconds"].as_f64().unwrap() - limit).abs() < 1e-9);
    assert!(run.stdout.contains("(named by site here, *)"), "{}", run.stdout);
}

#[test]
fn results_are_compared() {
    let _turn = one_at_a_time();
    let drives = Drives::new(1);
    let [one, two, weak] = ["one.json", "two.json", "weak.json"].map(|name| drives.write(name, ""));
    for (count, params, path) in [(1, "1Mi", &one), (2, "1Mi", &two), (2, "2Mi", &weak)] {
        let mut command = ranks(count, &optswap());
        command.args(["bench", "--params", params, "--repetitions", "2", "--steps", "1"]);
        command.args(["--drives", &drives.list(1), "--job", path.rsplit('/').next().unwrap()]);
        Run::of(&command.args(["--json", path]).output().unwrap()).expect(0, &[]);
    }
    let compare = |files: &[&String]| {
        let files = files.iter().map(|file| file.as_str());
        alone(&optswap(), &["compare"].into_iter().chain(files).collect::<Vec<_>>())
    };
    for (other, title) in [(&two, "strong scaling"), (&weak, "weak scaling")] {
        // The order in which they are named does not matter.
        let run = compare(&[other, &one]);
        run.expect(0, &[]);
        assert!(run.stdout.starts_with(title), "{}", run.stdout);
        let rows: Vec<&str> = run.stdout.lines().filter(|line| line.starts_with("| /")).collect();
        assert!(rows[0].contains("one.json") && rows[0].contains("100.0 %"), "{rows:?}");
        assert_eq!(rows.len(), 2, "{rows:?}");
        assert!(!run.stdout.contains("differs: job"), "{}", run.stdout);
        // Speed-ups are those of the medians in the files.
        let median = |path: &str| json(path)["step_seconds_median"].as_f64().unwrap();
        let work = if other == &weak { 2.0 } else { 1.0 };
        let speed_up = work * median(&one) / median(other);
        assert!(rows[1].contains(&format!("{speed_up:.3}")), "{speed_up}: {}", rows[1]);
    }
    let run = alone(&optswap(), &["compare", "--json", &one, &two]);
    let whole: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(whole["scaling"], "strong");
    compare(&[&one, &two, &weak]).expect(64, &["neither weak nor strong", "2097152 parameters"]);
    compare(&[&one, &drives.write("x.json", "{}")]).expect(64, &["x.json"]);
}

#[test]
fn doubtful_results_are_flagged() {
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let root = memory.path().to_str().unwrap();
    let json_path = memory.path().join("result.json").display().to_string();
    let run = alone(
        &optswap(),
        &[
            &SMALL[..],
            &["1", "--drives", root, "--allow-fs", "tmpfs", "--verify", "--json", &json_path],
        ]
        .concat(),
    );
    run.expect(0, &[]);
    assert_eq!(json(&json_path)["flags"], serde_json::json!(["short", "buffered"]));
    assert_eq!(json(&json_path)["buffered_ranks"], serde_json::json!([0]));
    let state = "which could hold it";
    for words in ["short: ", "buffered: on rank 0", state, "verified: comparisons", ", verified"] {
        assert!(run.stdout.contains(words), "{words}: {}", run.stdout);
    }
}

#[test]
fn wrong_usage() {
    let drives = Drives::new(2);
    bench(&drives, &["--repetitions", "0"]).expect(64, &[]);
    let run = alone(&optswap(), &["bench", "--drives", &drives.list(1), "--steps", "0"]);
    run.expect(64, &["--repetitions and --steps must be at least 1"]);
    bench(&drives, &["--limit-mbps", "0"]).expect(64, &["--limit-mbps must be above 0"]);
    assert!(drives.are_empty());
}
