//! DeepSpeed's configuration on the command line: explained, and used.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use serde_json::Value;
use support::{Drives, Run, alone, optswap};

fn explain(arguments: &[&str]) -> Run {
    alone(&optswap(), &[&["config", "explain"], arguments].concat())
}

/// A configuration of DeepSpeed that swaps to these drives.
fn deepspeed_config(drives: &Drives) -> String {
    let text = serde_json::json!({
        "train_batch_size": 8,
        "gradient_clipping": 0.5,
        "bf16": {"enabled": true},
        "optimizer": {"type": "AdamW", "params": {"lr": 0.25, "betas": [0.9, 0.95]}},
        "zero_optimization": {
            "stage": 3,
            "sub_group_size": 100_000,
            "offload_optimizer": {
                "device": "nvme", "nvme_path": drives.paths(), "pipeline_read": true
            }
        },
        "aio": {"block_size": 16_384, "queue_depth": 8, "thread_count": 4, "single_submit": false}
    });
    drives.write("ds_config.json", &text.to_string())
}

/// The cells of the line of a key.
#[track_caller]
fn row(run: &Run, key: &str) -> [String; 2] {
    assert_eq!(run.code, 0, "{}", run.stderr);
    let mut lines = run.stdout.lines().map(|line| line.split('|').map(str::trim));
    let cells = lines.find(|cells| cells.clone().nth(1) == Some(key));
    let cells: Vec<&str> = cells.unwrap_or_else(|| panic!("no {key}:\n{}", run.stdout)).collect();
    [cells[2].to_owned(), cells[3].to_owned()]
}

#[test]
fn both_formats_are_explained() {
    let drives = Drives::new(2);
    let run = explain(&[&deepspeed_config(&drives)]);
    let file = "ds_config.json: ";
    let depth = format!("{file}aio.queue_depth x aio.thread_count");
    assert_eq!(row(&run, "io.depth"), ["32", &depth]);
    assert_eq!(row(&run, "drives.stripe_unit"), ["\"16KiB\"", &format!("{file}aio.block_size")]);
    let group = format!("{file}zero_optimization.sub_group_size");
    assert_eq!(row(&run, "swap.sub_group_elements"), ["\"100Ki\"", &group]);
    let default = format!("{file}DeepSpeed's default");
    assert_eq!(row(&run, "optimizer.weight_decay"), ["0.0", &default]);
    assert_eq!(row(&run, "checkpoint.dir"), ["none", "default"]);
    let pipeline = format!("{file}zero_optimization.offload_optimizer.pipeline_read");
    assert_eq!(row(&run, "swap.pipeline_read"), ["true", &pipeline]);
    let submit = "aio.single_submit: not needed";
    for words in [submit, "aio.thread_count: read as", "train_batch_size", "not for optswap"] {
        assert!(run.stdout.contains(words), "{words}:\n{}", run.stdout);
    }

    let ours = drives.write("optswap.toml", "[swap]\nmemory_budget = \"64MiB\"");
    let run = explain(&[&ours]);
    let origin = "optswap.toml: swap.memory_budget";
    assert_eq!(row(&run, "swap.memory_budget"), ["\"64MiB\"", origin]);
    assert_eq!(row(&run, "io.engine"), ["\"auto\"", "default"]);
}

#[test]
fn an_explanation_for_programs() {
    let drives = Drives::new(1);
    let run = explain(&[&deepspeed_config(&drives), "--json"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let result: Value = serde_json::from_str(&run.stdout).unwrap();
    let values = result["values"].as_array().unwrap();
    let value = |key: &str| values.iter().find(|value| value["key"] == key).unwrap();
    assert_eq!(value("optimizer.lr")["value"], 0.25);
    assert_eq!(value("optimizer.lr")["origin"], "optimizer.params.lr");
    assert_eq!(value("job")["origin"], Value::Null);
    assert!(result["notes"].as_array().unwrap().iter().any(|note| note["keys"][0] == "bf16"));
}

#[test]
fn what_is_wrong_is_a_usage_error_that_names_file_and_key() {
    let drives = Drives::new(1);
    for (name, text, words) in [
        ("a.json", "{\"aio\": {\"queue_depth\": \"8\"}}", "`aio.queue_depth` must be"),
        ("b.json", "{\n \"aio\": {},\n ]}", "line 3, column 2"),
        ("c.json", "", "no configuration of DeepSpeed"),
        ("d.toml", "[swap]\nmemory_bugdet = 1", "did you mean `swap.memory_budget`?"),
        ("e.json", "{\"optimizer\": {\"type\": \"Lamb\"}}", "optswap has AdamW"),
    ] {
        explain(&[&drives.write(name, text)]).expect(64, &[words, name]);
    }
    explain(&["/no/such.json"]).expect(64, &["/no/such.json", "cannot be read"]);
    let json = deepspeed_config(&drives);
    let both = ["bench", "--config", &json, "--deepspeed-config", &json];
    alone(&optswap(), &both).expect(64, &["--deepspeed-config"]);
}

#[test]
fn comments_and_commas_are_read_as_deepspeed_reads_them() {
    let drives = Drives::new(1);
    let text = r#"// ours
        {
            "gradient_clipping": 0.5, # of the norm
            /* quotes are not needed */
            aio: {queue_depth: 16, block_size: "auto"},
            'zero_optimization': {"sub_group_size": 5e7,},
            optimizer: {
                type: AdamW
                params: {"lr": 2e-4, betas: [0.9, 0.97,]}
            },
        }"#;
    for name in ["ds_config.json", "ds_config.hjson", "ds_config"] {
        let run = explain(&[&drives.write(name, text)]);
        let file = format!("{name}: ");
        assert_eq!(row(&run, "io.depth"), ["16", &format!("{file}aio.queue_depth")]);
        let betas = format!("{file}optimizer.params.betas");
        assert_eq!(row(&run, "optimizer.betas"), ["[0.9,0.97]", &betas]);
        assert_eq!(row(&run, "optimizer.clip_norm")[0], "0.5");
        assert!(run.stdout.contains("kept here: drives.stripe_unit = \"1MiB\""), "{}", run.stdout);
    }
    let twice = r#"{"aio": {"queue_depth": 8, "queue_depth": 9}}"#;
    explain(&[&drives.write("twice.json", twice)]).expect(64, &["`queue_depth` is there a second"]);
}

#[test]
fn keys_at_the_wrong_level_are_refused_with_their_place() {
    let drives = Drives::new(1);
    let text = r#"{"zero_optimization": {"gradient_clipping": 0.7, "aio": {"queue_depth": 32},
        "offload_optimizer": {"device": "nvme", "sub_group_size": 2e8}}}"#;
    explain(&[&drives.write("ds.json", text)]).expect(
        64,
        &[
            "zero_optimization.aio (it belongs at the top level: `aio`)",
            "zero_optimization.gradient_clipping (it belongs at the top level",
            "offload_optimizer.sub_group_size (it belongs into `zero_optimization`)",
        ],
    );
}

#[test]
fn files_of_other_programs_name_the_file_that_is_wanted() {
    let drives = Drives::new(1);
    for (name, text, words) in [
        (
            "accelerate.yaml",
            "compute_environment: LOCAL_MACHINE\ndeepspeed_config:\n  \
             deepspeed_config_file: conf/zero3.json\n  zero3_init_flag: true\n",
            "give `conf/zero3.json`, which it names",
        ),
        (
            "axolotl.yml",
            "base_model: x/y\nload_in_8bit: false\ndeepspeed: deepspeed_configs/zero3.json # all\n",
            "give `deepspeed_configs/zero3.json`",
        ),
        (
            "fsdp.yaml",
            "deepspeed_config:\n  zero_stage: 3\n  offload_optimizer_device: nvme\n",
            "behind `deepspeed_config_file` or `deepspeed`",
        ),
        ("args.json", r#"{"output_dir": "o", "deepspeed": "ds.json"}"#, "give `ds.json`"),
        ("config.json", r#"{"model_type": "llama", "hidden_size": 8}"#, "it has none of its keys"),
    ] {
        let file = drives.write(name, text);
        explain(&[&file]).expect(64, &[words, name]);
        let bench = ["bench", "--deepspeed-config", &file, "--params", "4Ki"];
        alone(&optswap(), &bench).expect(64, &[words, name]);
    }
}

#[test]
fn a_benchmark_runs_with_it() {
    let drives = Drives::new(2);
    let (config, result) = (deepspeed_config(&drives), drives.path().join("result.json"));
    let run = alone(
        &optswap(),
        &[
            &["bench", "--deepspeed-config", &config, "--params", "256Ki", "--steps", "2"],
            &["--verify", "--job", "mine", "--json", result.to_str().unwrap()][..],
        ]
        .concat(),
    );
    run.expect(0, &["DeepSpeed's configuration: bf16: master and moments are fp32"]);
    for said_once in ["aio.thread_count: read as", "zero_optimization.stage"] {
        assert_eq!(run.stderr.matches(said_once).count(), 1, "{}", run.stderr);
    }
    let result: Value = serde_json::from_slice(&std::fs::read(result).unwrap()).unwrap();
    let used = &result["config"];
    assert_eq!(used["job"], "mine");
    assert_eq!(used["drives"]["paths"], serde_json::json!(drives.paths()));
    assert_eq!((&used["io"]["depth"], &used["optimizer"]["clip_norm"]), (&32.into(), &0.5.into()));
    assert!(drives.are_empty());
}
