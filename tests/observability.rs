//! What a run tells: tables, metrics, traces and results have the same bytes; formats, logs and the
//! dashboard.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use support::{Drives, Run, one_at_a_time, optswap, ranks, train_lm};

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn json(path: impl AsRef<Path>) -> Value {
    serde_json::from_str(&read(path)).unwrap()
}

/// A run of the example with everything that can be asked for.
struct Told {
    drives: Drives,
    run: Run,
}

impl Told {
    fn dir(&self) -> PathBuf {
        self.drives.path().join("report")
    }

    fn of(steps: u64) -> Self {
        let drives = Drives::new(2);
        let path = |name: &str| drives.path().join(name);
        let config = drives.write("small.toml", "[swap]\nchunk_elements = 65536\n");
        let mut command = ranks(2, &train_lm());
        command.args(["--drives", &drives.list(2), "--config", &config, "--layers", "1"]);
        command.args(["--steps", &steps.to_string(), "--trace-steps", &format!("1-{steps}")]);
        command.args(["--drive-endurance", "600TB", "--batch", "4"]);
        command.arg("--report-dir").arg(path("report")).arg("--json").arg(path("run.json"));
        command.arg("--log-dir").arg(path("logs"));
        let run = Run::of(&command.output().unwrap());
        assert_eq!(run.code, 0, "{}\n{}", run.stdout, run.stderr);
        Self { drives, run }
    }
}

/// Bytes read and written.
type Moved = [u64; 2];

/// The number before these words.
fn number_before(text: &str, words: &str) -> u64 {
    let before = text.split(words).next().unwrap();
    let digits = before.rsplit(|c: char| !c.is_ascii_digit()).next().unwrap();
    digits.parse().unwrap_or_else(|_| panic!("no number before `{words}` in {text}"))
}

fn in_table(text: &str) -> Moved {
    let line = text.lines().find(|line| line.contains(" B read, ")).unwrap();
    [number_before(line, " B read"), number_before(line, " B written")]
}

fn in_records(result: &Value) -> Moved {
    ["read_bytes", "written_bytes"].map(|key| {
        let records = result["rank_records"].as_array().unwrap().iter();
        let drives = records.flat_map(|record| record["drives"].as_array().unwrap());
        drives.map(|drive| drive["totals"][key].as_u64().unwrap()).sum()
    })
}

fn in_kernel(result: &Value) -> Moved {
    ["kernel_read_bytes", "kernel_written_bytes"].map(|key| {
        let records = result["rank_records"].as_array().unwrap().iter();
        records.map(|record| record[key].as_u64().unwrap()).sum()
    })
}

fn in_csv(text: &str) -> Moved {
    let mut lines = text.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let header = lines.next().unwrap();
    let lines: Vec<_> = lines.collect();
    ["read_bytes", "written_bytes"].map(|key| {
        let column = header.iter().position(|name| *name == key).unwrap();
        lines.iter().map(|cells| cells[column].parse::<u64>().unwrap()).sum()
    })
}

fn in_lines(dir: &Path) -> Moved {
    ["read_bytes", "written_bytes"].map(|key| {
        let texts = (0..2).map(|rank| read(dir.join(format!("metrics-rank{rank:05}.jsonl"))));
        let of = |text: String| -> u64 {
            let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
            lines.filter_map(|line| line[key].as_u64()).sum()
        };
        texts.map(of).sum()
    })
}

fn prometheus_text(dir: &Path, rank: usize) -> String {
    read(dir.join(format!("optswap-default-rank{rank:05}.prom")))
}

fn in_prometheus(dir: &Path) -> Moved {
    ["optswap_read_bytes_total", "optswap_written_bytes_total"].map(|name| {
        let samples = (0..2).flat_map(|rank| samples_of(&prometheus_text(dir, rank)));
        samples.filter(|(found, ..)| found == name).map(|(.., value)| value as u64).sum()
    })
}

fn in_trace(trace: &Value) -> Moved {
    ["read", "write"].map(|category| {
        let events = trace["traceEvents"].as_array().unwrap().iter();
        let of = events.filter(|event| event["cat"] == category);
        of.map(|event| event["args"]["bytes"].as_u64().unwrap()).sum()
    })
}

fn in_page(page: &str) -> Moved {
    ["bytes read", "bytes written"].map(|name| {
        let after = page.split(&format!("<dt>{name}</dt><dd>")).nth(1).unwrap();
        after.split('<').next().unwrap().parse().unwrap()
    })
}

fn assert_near(name: &str, found: Moved, expected: Moved, tolerance: f64) {
    for (found, expected) in found.into_iter().zip(expected) {
        let off = (found as f64 - expected as f64).abs() / expected as f64;
        assert!(off <= tolerance, "{name}: {found} bytes, expected {expected}");
    }
}

#[test]
fn the_bytes_agree_everywhere() {
    let _turn = one_at_a_time();
    let told = Told::of(5);
    let dir = told.dir();
    let result = json(told.drives.path().join("run.json"));
    let page = told.drives.path().join("report.html");
    let made = Command::new(optswap())
        .args(["report".as_ref(), dir.join("result.json").as_os_str(), "--output".as_ref()])
        .arg(&page)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));

    let expected = in_records(&result);
    assert!(expected.iter().all(|bytes| *bytes > 5 * 10_000_000), "{expected:?}");
    for (name, found) in [
        ("table on the terminal", in_table(&told.run.stdout)),
        ("table.txt", in_table(&read(dir.join("table.txt")))),
        ("result.json", in_records(&json(dir.join("result.json")))),
        ("ranks.csv", in_csv(&read(dir.join("ranks.csv")))),
        ("lines", in_lines(&dir)),
        ("Prometheus", in_prometheus(&dir)),
        ("trace", in_trace(&json(dir.join("trace.json")))),
        ("page", in_page(&read(&page))),
    ] {
        assert_near(name, found, expected, 0.001);
    }
    assert_near("/proc/self/io", in_kernel(&result), expected, 0.01);
    check_prometheus(&dir);
    check_trace(&json(dir.join("trace.json")));
    check_dashboard(&dir);
    check_logs(&told.drives.path().join("logs"));
    assert!(read(dir.join("table.txt")).contains("wear: "), "endurance was given");
    assert!(told.run.stdout.contains("verdict: bound by "), "{}", told.run.stdout);
}

/// Name, labels and value of every sample; ends the test at what the format does not allow.
fn samples_of(text: &str) -> Vec<(String, BTreeMap<String, String>, f64)> {
    let mut samples = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, rest) = line.split_once('{').unwrap_or_else(|| panic!("no labels: {line}"));
        let (labels, value) = rest.rsplit_once("} ").unwrap_or_else(|| panic!("no value: {line}"));
        let mut found = BTreeMap::new();
        let mut rest = labels;
        while !rest.is_empty() {
            let (label, after) = rest.split_once("=\"").unwrap();
            let end = after.find('"').unwrap();
            assert!(!after[..end].contains('\\'), "these labels need no escapes: {line}");
            assert!(found.insert(label.to_owned(), after[..end].to_owned()).is_none(), "{line}");
            rest = after[end + 1..].trim_start_matches(',');
        }
        let value = if value == "+Inf" { f64::INFINITY } else { value.parse().unwrap() };
        samples.push((name.to_owned(), found, value));
    }
    samples
}

fn check_prometheus(dir: &Path) {
    for rank in 0..2 {
        let text = prometheus_text(dir, rank);
        assert!(text.ends_with('\n'));
        let mut types = BTreeMap::new();
        for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let (name, kind) = line.split_once(' ').unwrap();
            assert!(types.insert(name, kind).is_none(), "{name} is there twice");
            assert!(text.contains(&format!("# HELP {name} ")), "{name} has no help");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
        }
        let mut seen = BTreeSet::new();
        for (name, labels, value) in samples_of(&text) {
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| {
                let base = name.strip_suffix(end)?;
                (types.get(base) == Some(&"histogram")).then_some(base)
            });
            assert!(types.contains_key(base.unwrap_or(&name)), "{name} has no type");
            assert!(value >= 0.0 && !value.is_nan(), "{name} {value}");
            assert_eq!(labels["rank"], rank.to_string());
            assert!(seen.insert(format!("{name}{labels:?}")), "{name} {labels:?} is there twice");
        }
    }
}

mod needs_promtool {
    use super::*;

    /// promtool comes with Debian's package prometheus, which would also start a server.
    #[test]
    #[ignore = "needs promtool, of Debian's package prometheus"]
    fn promtool_has_nothing_to_say() {
        let _turn = one_at_a_time();
        let told = Told::of(5);
        for rank in 0..2 {
            let mut command = Command::new("promtool");
            command.args(["check", "metrics"]).stdin(Stdio::piped());
            let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            let text = prometheus_text(&told.dir(), rank);
            child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
            let run = Run::of(&child.wait_with_output().unwrap());
            run.expect(0, &[]);
            assert_eq!(run.stdout.trim(), "");
        }
    }
}

/// The rules of the trace-event format, as far as this trace uses it.
fn check_trace(trace: &Value) {
    let events = trace["traceEvents"].as_array().unwrap();
    let us = |event: &Value, key: &str| event[key].as_f64().unwrap();
    let track = |event: &Value| (event["pid"].as_u64().unwrap(), event["tid"].as_u64().unwrap());
    let mut tracks: BTreeMap<(u64, u64), Vec<(f64, f64)>> = BTreeMap::new();
    let mut named = BTreeSet::new();
    for event in events {
        match event["ph"].as_str().unwrap() {
            "X" => {
                assert!(us(event, "dur") >= 0.0, "{event}");
                let from = us(event, "ts");
                let slices = tracks.entry(track(event)).or_default();
                assert!(slices.last().is_none_or(|(before, _)| *before <= from), "{event}");
                slices.push((from, from + us(event, "dur")));
            }
            "M" => {
                assert!(event["args"].is_object(), "{event}");
                if event["name"] == "thread_name" {
                    assert!(named.insert(track(event)), "named twice: {event}");
                }
            }
            "s" | "t" | "f" => {}
            other => panic!("an event of kind {other}"),
        }
    }
    for (track, slices) in &tracks {
        assert!(named.contains(track), "track {track:?} has no name");
        // Slices of a track are one after the other, or one within the other.
        let mut around: Vec<f64> = Vec::new();
        for (from, to) in slices {
            around.retain(|end| end > from);
            assert!(around.last().is_none_or(|end| to <= end), "{track:?}: {from} to {to}");
            around.push(*to);
        }
    }
    let processes: BTreeSet<u64> = tracks.keys().map(|(rank, _)| *rank).collect();
    assert_eq!(processes, BTreeSet::from([0, 1]));
    let names: Vec<&str> = events.iter().filter_map(|it| it["args"]["name"].as_str()).collect();
    for name in ["step", "compute", "collectives"] {
        assert_eq!(names.iter().filter(|known| **known == name).count(), 2, "{name}");
    }
    for direction in ["reads ", "writes "] {
        assert!(names.iter().filter(|name| name.starts_with(direction)).count() >= 4, "{names:?}");
    }
    check_flows(events, &tracks);
}

fn check_flows(events: &[Value], tracks: &BTreeMap<(u64, u64), Vec<(f64, f64)>>) {
    let mut flows: BTreeMap<u64, Vec<&Value>> = BTreeMap::new();
    for event in events.iter().filter(|event| event["cat"] == "chunk") {
        // Perfetto takes numbers only.
        flows.entry(event["id"].as_u64().unwrap()).or_default().push(event);
    }
    assert!(flows.len() >= 2 * 5, "{} chunks have arrows", flows.len());
    for (id, flow) in flows {
        let phases: Vec<&str> = flow.iter().map(|event| event["ph"].as_str().unwrap()).collect();
        // The last write may have come after the trace.
        assert!(
            [&["s", "t", "f"][..], &["s", "f"]].contains(&phases.as_slice()),
            "{id} {phases:?}"
        );
        let times: Vec<f64> = flow.iter().map(|event| event["ts"].as_f64().unwrap()).collect();
        assert!(times.is_sorted(), "{id} goes back in time: {times:?}");
        for event in flow {
            let track = (event["pid"].as_u64().unwrap(), event["tid"].as_u64().unwrap());
            let at = event["ts"].as_f64().unwrap();
            let is_bound = tracks[&track].iter().any(|(from, to)| (*from..=*to).contains(&at));
            assert!(is_bound, "{event} is in no slice");
        }
    }
}

/// The dashboard asks for metrics that there are, by labels that they have.
fn check_dashboard(dir: &Path) {
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dashboard = json(home.join("cluster/grafana/optswap.json"));
    let samples = samples_of(&prometheus_text(dir, 0));
    let mut asked = 0;
    for target in dashboard["panels"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap().iter())
    {
        let query = target["expr"].as_str().unwrap();
        let mut known = BTreeSet::new();
        for (at, _) in query.match_indices("optswap_") {
            let name: String =
                query[at..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let sample = samples.iter().find(|(known, ..)| *known == name);
            let (_, labels, _) = sample.unwrap_or_else(|| panic!("{name} is no metric: {query}"));
            known.extend(labels.keys().cloned());
            asked += 1;
        }
        let by = query.split("by (").skip(1).filter_map(|it| it.split(')').next());
        for label in by.flat_map(|it| it.split(", ")) {
            assert!(known.contains(label), "no metric has the label {label}: {query}");
        }
    }
    assert!(asked >= 15, "{asked} metrics");
}

fn check_logs(dir: &Path) {
    for rank in 0..2 {
        let text = read(dir.join(format!("log-rank{rank:05}.jsonl")));
        let lines: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(!lines.is_empty());
        for line in &lines {
            assert_eq!(line["rank"], rank);
            for key in ["ts", "level", "host", "target", "message"] {
                assert!(line[key].is_string(), "{key} in {line}");
            }
        }
        assert!(lines.iter().any(|line| line["message"].as_str().unwrap().contains("a new job")));
    }
}

#[test]
fn places_and_steps_that_make_no_sense_are_refused() {
    let drives = Drives::new(1);
    let refuse = |arguments: &[&str], code: i32, words: &[&str]| {
        let list = drives.list(1);
        let mut all = vec!["bench", "--params", "4096", "--steps", "1", "--drives", &list];
        all.extend_from_slice(arguments);
        support::alone(&optswap(), &all).expect(code, words);
        assert!(drives.are_empty());
    };
    let file = drives.write("file", "");
    refuse(&["--trace-steps", "5-3"], 64, &["neither a step nor some in a row"]);
    refuse(&["--trace-steps", "3"], 64, &["report.trace_steps = 3", "unless report.dir is set"]);
    refuse(&["--report-dir", &format!("{file}/x")], 73, &["a place for reports cannot be made"]);
    refuse(&["--log-dir", &format!("{file}/x")], 73, &["the log cannot be written", "--log-dir"]);
    let missing = drives.path().display().to_string();
    support::alone(&optswap(), &["top", "--once", &missing]).expect(64, &["no metrics of a job"]);
    support::alone(&optswap(), &["report", &file]).expect(64, &["no result", "bench --json"]);
}

#[test]
fn files_that_are_full_do_not_stop_training_and_each_is_told_once() {
    let _turn = one_at_a_time();
    let drives = Drives::new(1);
    let dir = |name: &str| drives.path().join(name);
    let full = |name: &str, files: &[&str]| {
        std::fs::create_dir(dir(name)).unwrap();
        let link = |file: &&str| std::os::unix::fs::symlink("/dev/full", dir(name).join(file));
        files.iter().for_each(|file| link(file).unwrap());
    };
    full("logs", &["log-rank00000.jsonl", "log-rank00001.jsonl"]);
    let new = ["trace.json.new", "table.new", "ranks.new", "result.new"];
    let metrics = ["metrics-rank00000.jsonl", "metrics-rank00001.jsonl"];
    full("report", &[&new[..], &metrics].concat());
    full("textfiles", &["optswap-default-rank00000.new", "optswap-default-rank00001.new"]);
    let mut command = ranks(2, &train_lm());
    command.args(support::TINY).args([
        "--steps",
        "4",
        "--trace-steps",
        "2-3",
        "--log-ranks",
        "all",
    ]);
    command.args(["--drives", &drives.list(1)]).arg("--log-dir").arg(dir("logs"));
    command.arg("--report-dir").arg(dir("report")).arg("--prometheus-dir").arg(dir("textfiles"));
    let run = Run::of(&command.output().unwrap());
    run.expect(0, &[]);
    for (what, ranks) in [
        ("the log", 2),
        ("metrics", 2),
        ("the Prometheus file", 2),
        ("the trace", 1),
        ("the result", 1),
    ] {
        let said = format!("warn: {what} cannot be written, the job goes on without: ");
        let lines: Vec<&str> = run.stderr.lines().filter(|line| line.contains(&said)).collect();
        assert_eq!(lines.len(), ranks, "{what}: {}", run.stderr);
        assert!(lines.iter().all(|line| line.contains("No space left")), "{lines:?}");
    }
    // By default, one rank of each node tells.
    let mut command = ranks(2, &train_lm());
    command.args(support::TINY).args(["--steps", "1", "--drives", &drives.list(1)]);
    let run = Run::of(&command.arg("--log-dir").arg(dir("logs")).output().unwrap());
    run.expect(0, &[]);
    assert_eq!(run.stderr.matches("the log cannot be written").count(), 1, "{}", run.stderr);
}

#[test]
fn a_line_that_was_cut_off_does_not_spoil_the_next_one() {
    let drives = Drives::new(1);
    let logs = drives.path().join("logs");
    std::fs::create_dir(&logs).unwrap();
    let file = logs.join("log-rank00000.jsonl");
    std::fs::write(&file, "{\"ts\":\"2026").unwrap();
    let bench = ["bench", "--params", "4096", "--steps", "1", "--drives", &drives.list(1)];
    let logged = ["--log-dir", logs.to_str().unwrap()];
    support::alone(&optswap(), &[&bench[..], &logged].concat()).expect(0, &[]);
    let text = read(&file);
    assert!(text.lines().skip(1).all(|line| serde_json::from_str::<Value>(line).is_ok()), "{text}");
    assert!(text.lines().count() > 2, "{text}");
}
