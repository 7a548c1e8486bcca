//! DeepSpeed's configuration beside DeepSpeed itself: its own classes, with the Python packages
//! hjson and pydantic, say which keys there are, what a text is, and what is refused.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use optswap::internals::config::{parse_deepspeed, parse_hjson};
use serde_json::{Map, Value, json};

const TABLE: &str = include_str!("../src/config/deepspeed/keys.tsv");

/// What `tests/data/deepspeed_keys.py` answers.
fn ask(what: &str, texts: &[String]) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut child = Command::new(root.join("target/python/bin/python"))
        .arg(root.join("tests/data/deepspeed_keys.py"))
        .arg(what)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(json!(texts).to_string().as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

fn answers(what: &str, texts: &[String]) -> Vec<Value> {
    let answers: Vec<Value> = serde_json::from_str(&ask(what, texts)).unwrap();
    assert_eq!(answers.len(), texts.len());
    answers
}

/// Texts of pieces in any order, most of them wrong in some way.
fn random_texts(count: usize) -> Vec<String> {
    const PIECES: [&str; 40] = [
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\n",
        " ",
        "\t",
        "\r\n",
        "a",
        "b: ",
        "\"c\": ",
        "'d': ",
        "1",
        "-2",
        "1.50",
        "1e6",
        "2E+16",
        "01",
        "-",
        "1.",
        ".5",
        "true",
        "false",
        "null",
        "nvme",
        "auto",
        "# x\n",
        "// y\n",
        "/* z */",
        "/*",
        "\n'''\n  two\n",
        "'''",
        "\"e\\n\\\"\"",
        "'f\"'",
        "{g: 1}",
        "[1, 2]",
        "h: i j\n",
        "\u{a0}é",
    ];
    let mut state = 1_u64;
    let mut next = |below: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut text = || {
        // Every text begins with a line, by whose end the package counts an indentation.
        let pieces = (0..1 + next(9)).map(|_| PIECES[next(PIECES.len())]).collect::<String>();
        match next(3) {
            0 => format!("\n{pieces}"),
            1 => format!("\n{{{pieces}}}"),
            _ => format!("\n{{a: {pieces}\n}}"),
        }
    };
    (0..count).map(|_| text()).collect()
}

/// The text of a file in which the key of this path has this value.
fn file_with(path: &str, value: &str) -> String {
    let nest = |inner: String, name: &str| format!("{{\"{name}\": {inner}}}");
    let text = path.rsplit('.').fold(value.to_owned(), nest);
    // A ratio is for stage 3 alone, and some keys of bf16 for the others.
    text.replacen(
        "{\"zero_optimization\": {\"offload",
        "{\"zero_optimization\": {\"stage\": 3, \"offload",
        1,
    )
}

const VALUES: [&str; 48] = [
    "true",
    "false",
    "null",
    "\"auto\"",
    "0",
    "1",
    "2",
    "-1",
    "3",
    "0.5",
    "1.0",
    "1.5",
    "1e9",
    "1e16",
    "99999999999999999999",
    "\"1\"",
    "\" 5 \"",
    "\"+5\"",
    "\"5.0\"",
    "\"5.\"",
    "\"1_000\"",
    "\"1__0\"",
    "\"1e3\"",
    "\"-5\"",
    "\".5\"",
    "\"0.25\"",
    "\"inf\"",
    "\"nan\"",
    "\"0x10\"",
    "\"\"",
    "\"yes\"",
    "\"True\"",
    "\"on\"",
    "\"F\"",
    "\" true\"",
    "\"2\"",
    "\"none\"",
    "\"cpu\"",
    "\"nvme\"",
    "\"NVMe\"",
    "\"/d\"",
    "\"3\"",
    "\"3.0\"",
    "[]",
    "{}",
    "[1]",
    "{\"a_key\": 1}",
    "{\"a_key\": \"auto\"}",
];

/// Files that say more than one thing at once.
const FILES: [&str; 29] = [
    r#"{"bf16": {"enabled": true}, "fp16": {"enabled": true}}"#,
    r#"{"bf16": {"enabled": 1}, "fp16": {"enabled": "auto"}}"#,
    r#"{"bf16": {}, "bfloat16": {"enabled": true}, "fp16": {"enabled": true}}"#,
    r#"{"bf16": null, "bfloat16": {"enabled": true}, "fp16": {"enabled": true}}"#,
    r#"{"fp16": {"enabled": true, "loss_scale_window": 0}}"#,
    r#"{"fp16": {"enabled": "on", "loss_scale_window": "5", "hysteresis": 3.0}}"#,
    r#"{"fp16": {"enabled": true, "loss_scale": "0", "min_loss_scale": " 2 "}}"#,
    r#"{"zero_optimization": {"offload_optimizer": {"pipeline_read": 1, "pipeline_write": "no"}}}"#,
    r#"{"fp16": {"enabled": true, "loss_scale": 4, "loss_scale_window": 0}}"#,
    r#"{"fp16": {"enabled": true, "min_loss_scale": -1}}"#,
    r#"{"fp16": {"inital_scale_power": 8}}"#,
    r#"{"fp16": {"fp16_master_weights_and_grads": true}}"#,
    r#"{"zero_optimization": {"stage": 1}, "fp16": {"fp16_master_weights_and_grads": true}}"#,
    r#"{"zero_optimization": {"stage": 1}, "bf16": {"bf16_optimizer_states": true}}"#,
    r#"{"zero_optimization": true, "bf16": {"bf16_master_weights_and_grads": true}}"#,
    r#"{"zero_optimization": {"cpu_offload": true}}"#,
    r#"{"zero_optimization": {"cpu_offload": true, "offload_optimizer": {"device": "cpu"}}}"#,
    r#"{"zero_optimization": {"cpu_offload": null, "offload_optimizer": {"device": "cpu"}}}"#,
    r#"{"zero_optimization": {"cpu_offload_param": true, "offload_param": {"device": "cpu"}}}"#,
    r#"{"zero_optimization": {"cpu_offload_use_pin_memory": true, "offload_optimizer": {}}}"#,
    r#"{"zero_optimization": {"stage3_prefetch_bucket_size": 1, "prefetch_bucket_size": 2}}"#,
    r#"{"zero_optimization": {"stage": 2, "offload_optimizer": {"ratio": 0.5}}}"#,
    r#"{"zero_optimization": {"stage": 3, "offload_optimizer": {"ratio": 0.5}}}"#,
    r#"{"zero_optimization": {"aio": {}}}"#,
    r#"{"zero_optimization": {"aio": "auto"}}"#,
    r#"{"zero_optimization": {"leaf_module": {"classes": "a.B"}}}"#,
    r#"{"optimizer": {"params": {"a_key": 1}}}"#,
    r#"{"timers": {"throughput": {"a_key": 1}}}"#,
    r#"{"aio": {"a_key": 1}, "a_key": 1, "train_batch_size": 4}"#,
];

/// What DeepSpeed takes and optswap has not, or the other way round: these keys are left out.
fn is_compared(path: &str) -> bool {
    // An own limit, a refusal of our own, and a list of drives.
    let ours = ["fp16.initial_scale_power", "fp16.hysteresis", "nvme_path"];
    !path.contains("zenflow") && !ours.iter().any(|key| path.ends_with(key))
}

/// Our values where DeepSpeed has the same, both as DeepSpeed names them.
fn ours_as_deepspeed(text: &str) -> Result<Map<String, Value>, String> {
    let sourced = parse_deepspeed(text).map_err(|error| error.to_string())?;
    let taken = |ours: &str| sourced.origins.contains_key(ours);
    let config = &sourced.config;
    let mut values = Map::new();
    let mut add = |ours: &str, path: &str, value: Value| {
        if taken(ours) {
            values.insert(path.to_owned(), value);
        }
    };
    let offload = "/zero_optimization/offload_optimizer";
    let swap = &config.swap;
    add("swap.pipeline_read", &format!("{offload}/pipeline_read"), swap.pipeline_read.into());
    add("swap.pipeline_write", &format!("{offload}/pipeline_write"), swap.pipeline_write.into());
    let scale = &config.loss_scale;
    add("loss_scale.growth_interval", "/fp16/loss_scale_window", scale.growth_interval.into());
    add("loss_scale.hysteresis", "/fp16/hysteresis", scale.hysteresis.into());
    add("loss_scale.minimum", "/fp16/min_loss_scale", (scale.minimum as u64).into());
    add("optimizer.clip_norm", "/gradient_clipping", config.optimizer.clip_norm.into());
    Ok(values)
}

#[track_caller]
fn compare(texts: &[String]) {
    let mut problems = Vec::new();
    for (text, theirs) in texts.iter().zip(answers("verdicts", texts)) {
        match (ours_as_deepspeed(text), theirs["refused"].as_str()) {
            (Ok(ours), None) => {
                let differs = |(path, ours): &(String, Value)| {
                    theirs.pointer(path).is_none_or(|it| {
                        it.as_f64() != ours.as_f64() || { it.as_bool() != ours.as_bool() }
                    })
                };
                let other = ours.into_iter().find(differs);
                problems.extend(other.map(|other| format!("{text}: {other:?}, not {theirs}")));
            }
            (Err(_), Some(_)) => {}
            (Ok(_), Some(refused)) => problems.push(format!("{text}: DeepSpeed: {refused}")),
            (Err(error), None) => problems.push(format!("{text}: only here: {error}")),
        }
    }
    assert!(problems.is_empty(), "{} differ:\n{}", problems.len(), problems.join("\n"));
}

#[test]
fn no_text_ends_otherwise_than_in_a_configuration_or_a_usage_error() {
    let values = TABLE.lines().skip(2).filter_map(|line| line.split('\t').next());
    let files = values.flat_map(|path| VALUES.map(|value| file_with(path, value)));
    let (mut taken, mut refused) = (0, 0);
    for text in random_texts(5000).into_iter().chain(files.step_by(7)) {
        match parse_deepspeed(&text) {
            Ok(_) => taken += 1,
            Err(error) => {
                assert_eq!(error.exit_code(), 64, "{text}");
                refused += 1;
            }
        }
    }
    assert!(taken > 500 && refused > 500, "{taken} are taken, {refused} refused");
}

mod needs_python {
    use super::*;

    #[test]
    #[ignore = "needs the packages deepspeed, hjson and pydantic: launch/test"]
    fn the_table_of_keys_is_deepspeeds() {
        let table = ask("table", &[]);
        assert!(table.lines().count() > 300);
        let both = table.lines().zip(TABLE.lines());
        let other = both.into_iter().find(|(theirs, ours)| theirs != ours);
        assert_eq!(other, None, "DeepSpeed's, ours");
        assert_eq!(table, TABLE);
    }

    #[test]
    #[ignore = "needs the packages deepspeed, hjson and pydantic: launch/test"]
    fn texts_are_read_as_the_python_package_reads_them() {
        let texts = random_texts(20_000);
        let mut read = 0;
        for (text, theirs) in texts.iter().zip(answers("values", &texts)) {
            let ours = parse_hjson(text);
            match theirs.get("value") {
                // A single value is no configuration.
                Some(value) if value.is_object() || value.is_array() => {
                    read += 1;
                    let ours = ours.unwrap_or_else(|error| panic!("{text:?}: {error}\n{value}"));
                    assert_eq!(ours, *value, "{text:?}");
                }
                _ => assert!(ours.is_err(), "{text:?}: {ours:?}, {theirs}"),
            }
        }
        assert!(read > 2000, "{read} of the texts say something");
    }

    #[test]
    #[ignore = "needs the packages deepspeed, hjson and pydantic: launch/test"]
    fn every_spelling_of_every_value_is_taken_or_refused_as_by_deepspeed() {
        let rows = TABLE.lines().filter(|line| !line.starts_with('#'));
        let rows = rows.map(|line| line.split('\t').collect::<Vec<_>>());
        let of_classes = rows.filter(|row| !["plain", "argument", "any"].contains(&row[1]));
        // Sections without a class are read by hand, and only those that concern state here.
        let ours = ["aio", "data_types"];
        let paths = of_classes.filter(|row| row[1] != "open" || ours.contains(&row[0]));
        let paths: Vec<&str> = paths.map(|row| row[0]).filter(|path| is_compared(path)).collect();
        assert!(paths.len() > 150, "{}", paths.len());
        let files = |path: &&str| VALUES.map(|value| file_with(path, value));
        compare(&paths.iter().flat_map(files).collect::<Vec<_>>());
    }

    #[test]
    #[ignore = "needs the packages deepspeed, hjson and pydantic: launch/test"]
    fn what_several_keys_say_together_is_taken_or_refused_as_by_deepspeed() {
        compare(&FILES.map(str::to_owned));
    }
}
