//! A rank that was stopped is named by everything that is told; and a table is printed on demand.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]
#![cfg(feature = "mpi")]

mod support;

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Drives, Run, TINY, one_at_a_time, optswap, ranks, signal, train_lm};

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn json(path: impl AsRef<Path>) -> Value {
    serde_json::from_str(&read(path)).unwrap()
}

/// Waits until a rank has told of so many steps.
fn wait_for_steps(dir: &Path, rank: usize, steps: usize) {
    let path = dir.join(format!("metrics-rank{rank:05}.jsonl"));
    let deadline = Instant::now() + Duration::from_secs(40);
    let told = || std::fs::read_to_string(&path).map_or(0, |text| text.lines().count());
    while told() <= steps {
        assert!(Instant::now() < deadline, "rank {rank} tells of {} steps", told());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The process of a rank, as its metrics tell.
fn pid_of(dir: &Path, rank: usize) -> String {
    let text = read(dir.join(format!("metrics-rank{rank:05}.jsonl")));
    let start: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    start["pid"].to_string()
}

#[test]
fn a_rank_that_was_stopped_is_named_by_everything() {
    let _turn = one_at_a_time();
    let drives = Drives::new(1);
    let dir = drives.path().join("report");
    let config = drives
        .write("job.toml", "[swap]\nchunk_elements = 4096\n[timeouts]\nstall_warning = 0.5\n");
    let mut command = ranks(3, &train_lm());
    command.args(["--drives", &drives.list(1), "--config", &config, "--steps", "60"]);
    command.args(TINY).args(["--validate-every", "1000", "--trace-steps", "1-60"]);
    command.arg("--report-dir").arg(&dir).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    wait_for_steps(&dir, 1, 3);
    let pid = pid_of(&dir, 1);
    signal(&pid, "-STOP");
    std::thread::sleep(Duration::from_millis(2500));
    signal(&pid, "-CONT");
    let run = Run::of(&child.wait_with_output().unwrap());
    assert_eq!(run.code, 0, "{}\n{}", run.stdout, run.stderr);

    let waits_for = |text: &str| {
        let line = text.lines().find(|line| line.contains("verdict: ")).unwrap().to_owned();
        assert!(line.contains(" % for rank 1 on "), "{line}");
    };
    let table = read(dir.join("table.txt"));
    waits_for(&table);
    waits_for(&run.stdout);
    let warned =
        run.stderr.lines().any(|it| it.contains("waiting for ") && it.contains("rank 1 on"));
    assert!(warned, "the stall inspector names it: {}", run.stderr);

    let late = &json(dir.join("result.json"))["verdict"]["late"];
    assert_eq!(late["rank"], 1, "{late}");
    assert!(late["worst_step_late_s"].as_f64().unwrap() > 1.0, "{late}");

    // In the trace, the others wait for it.
    let trace = json(dir.join("trace.json"));
    let waited = |rank: u64| -> f64 {
        let events = trace["traceEvents"].as_array().unwrap().iter();
        let of_rank = events.filter(|event| event["ph"] == "X" && event["pid"] == rank);
        let seconds = of_rank.map(|event| {
            let s = event["dur"].as_f64().unwrap() / 1e6;
            match event["name"].as_str().unwrap() {
                "gradient_norm" | "agreement" | "collectives_between" => s,
                "not_running" => -s,
                _ => 0.0,
            }
        });
        seconds.sum()
    };
    for other in [0, 2] {
        let (waited, by_late) = (waited(other), waited(1));
        assert!(waited > by_late + 1.0, "rank {other} {waited} s, rank 1 {by_late} s");
    }
    let page = drives.path().join("report.html");
    let result = dir.join("result.json");
    let made = Command::new(optswap()).arg("report").arg(&result).arg("-o").arg(&page).output();
    assert!(made.unwrap().status.success());
    let page = read(page);
    let verdict = page.split("class=\"verdict\">").nth(1).unwrap().split('<').next().unwrap();
    assert!(verdict.contains(" % for rank 1 on "), "{verdict}");
}

#[test]
fn a_table_is_printed_when_any_rank_is_asked_for_it() {
    let _turn = one_at_a_time();
    let drives = Drives::new(1);
    let dir = drives.path().join("report");
    let config = drives.write("job.toml", "[swap]\nchunk_elements = 4096\n");
    let mut command = ranks(2, &train_lm());
    command.args(["--drives", &drives.list(1), "--config", &config, "--steps", "100000"]);
    command.args(TINY).arg("--report-dir").arg(&dir);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_steps(&dir, 1, 2);
    let pids = [pid_of(&dir, 0), pid_of(&dir, 1)];
    signal(&pids[1], "-USR2");
    let mut stderr = child.stderr.take().unwrap();
    let mut text = Vec::new();
    let mut piece = [0; 4096];
    while !String::from_utf8_lossy(&text).contains("verdict: ") {
        let len = stderr.read(&mut piece).unwrap();
        assert!(len > 0, "ended without a table: {}", String::from_utf8_lossy(&text));
        text.extend_from_slice(&piece[..len]);
    }
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains("after step ") && text.contains("| step_own "), "{text}");
    let once = Command::new(optswap()).args(["top", "--once"]).arg(&dir).output().unwrap();
    let top = Run::of(&once);
    assert_eq!(top.code, 0, "{}", top.stderr);
    for words in ["job default: step", "2 of 2 ranks seen", "drives, the busiest first (1)"] {
        assert!(top.stdout.contains(words), "`{words}` is not in:\n{}", top.stdout);
    }
    signal(&pids[0], "-USR1");
    std::io::copy(&mut stderr, &mut std::io::sink()).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143), "stopped, nothing saved");
    // A job that was stopped has told everything too.
    assert!(read(dir.join("table.txt")).contains("verdict: "));
    let last = read(dir.join("metrics-rank00000.jsonl"));
    assert!(last.lines().last().unwrap().contains("\"event\":\"end\""));
}
