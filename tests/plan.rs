//! `optswap plan`: models, sites, and what it says of them. The figures themselves are tested where
//! they are computed.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use std::path::Path;

use optswap::internals::storage::DriveProfile;
use serde_json::Value;
use support::tensors::{f32s, tensor, write, write_index};
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
        "scratch",
        "bound by mixed",
        "of tables; ",
        "waiting for the slowest, % of step",
        "10000 ranks and 5 steps, seed 3",
        "it fits",
    ] {
        assert!(run.stdout.contains(words), "{words}: {}", run.stdout);
    }
    let [first, again] = [&all, &all].map(|all| json(&plan(&[&all[..], &["--json"]].concat())));
    assert_eq!(first, again, "the same question has the same answer");
    assert_eq!(first["simulation"]["ranks"], 10_000);
    assert!(first["forecast"]["kinds"][0]["drives"][0]["endurance_days"].as_f64().unwrap() > 0.0);
}

#[test]
fn what_does_not_fit_is_said() {
    let small = ["--model", "llama3-70b", "--drive-mbps", "3000", "--update-ns", "1"];
    let run = plan(&[&small[..], &["--drive-size", "100GB"]].concat());
    assert!(run.stdout.contains("it does not fit: a drive needs"), "{}", run.stdout);
    let run = plan(&[&small[..], &["--drive-size", "2TB", "--memory", "64GiB"]].concat());
    assert!(run.stdout.contains("does not all fit a node's memory"), "{}", run.stdout);
    let run = plan(&[&small[..], &["--drive-size", "2TB", "--memory", "128MiB"]].concat());
    assert!(run.stdout.contains("I/O buffers and tables take"), "{}", run.stdout);
    assert!(plan(&small).stdout.contains("tell --drive-size"));
    // Two slots need twice the space, headroom a quarter more.
    let folder = tempfile::tempdir().unwrap();
    let tight = folder.path().join("tight.toml");
    std::fs::write(&tight, "[drives]\nstripe_headroom = 0.0\n").unwrap();
    let space = |more: &[&str]| {
        let value = json(&plan(&[&small[..], more, &["--json"]].concat()));
        value["forecast"]["kinds"][0]["drives"][0]["space_bytes"].as_f64().unwrap()
    };
    let is_times = |more: &[&str], factor: f64| (space(more) / space(&[]) / factor - 1.0).abs();
    assert!(is_times(&["--durability", "step"], 2.0) < 1e-4);
    assert!(is_times(&["--config", tight.to_str().unwrap()], 0.8) < 1e-4);
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
    assert_eq!(value["forecast"]["kinds"][0]["drives"][0]["share"], 0.75);
    let cluster = &value["cluster"];
    let paths = cluster["kinds"][0]["drives"].as_array().unwrap().iter();
    let paths: Vec<Value> = paths.map(|drive| drive["path"].clone()).collect();
    assert_eq!(Value::from(paths), serde_json::json!(drives.paths()));
    // 12 GB at 400 MB/s each way.
    let seconds = value["forecast"]["step_seconds"].as_f64().unwrap();
    assert!((29.9..33.0).contains(&seconds), "{seconds}");
    assert!(cluster["update_ns_per_param"].as_f64().unwrap() > 0.0, "it was not measured");
}

/// One description for jobs and plans: how many nodes of which kind, with which drives.
#[test]
fn a_site_is_planned_for_as_it_is_described() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/cluster/example.toml");
    let all = ["--model", "llama3-70b", "--site", example, "--ranks-per-node", "8"];
    let with = |more: &[&str]| plan(&[&all[..], more].concat());
    let value = json(&with(&["--hosts", "node[001-004,070]", "--json"]));
    let kind = &value["cluster"]["kinds"][0];
    assert_eq!((&kind["nodes"], kind["drives"].as_array().unwrap().len()), (&5.into(), 4));
    let drive = &kind["drives"][0];
    assert_eq!(
        (&drive["bandwidth"]["read"], &drive["endurance_bytes"]),
        (&6.8e9.into(), &7e15.into())
    );
    assert_eq!(value["forecast"]["ranks"], 40);
    with(&["--hosts", "cpu001"]).expect(69, &["has no drives"]);
    with(&["--hosts", "login1"]).expect(64, &["does not name this host"]);
    let run = with(&[]);
    run.expect(0, &[]);
    for words in [
        "65 of node[001-064,070] with 4 drives, 8 of fat[01-08] with 3 drives",
        "drive of fat[01-08]",
        "all wait for nodes node[001-064,070]",
    ] {
        assert!(run.stdout.contains(words), "{words}: {}", run.stdout);
    }
    let value = json(&with(&["--nodes", "66", "--json"]));
    let nodes = |kind: usize| value["cluster"]["kinds"][kind]["nodes"].as_u64();
    assert_eq!((nodes(0), nodes(1)), (Some(65), Some(1)));
    let seconds = |kind: usize| value["forecast"]["kinds"][kind]["step_seconds"].as_f64();
    assert!(seconds(0) > seconds(1));
    assert_eq!(value["forecast"]["step_seconds"].as_f64(), seconds(0));
    with(&["--nodes", "74"]).expect(64, &["not so many nodes", "found 73"]);
    // Nobody can tell from elsewhere how many drives a `*` names.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("site.toml");
    let text =
        "[[nodes]]\nhosts = \"*\"\n[[nodes.drives]]\npath = \"/no/such*\"\nread_gb_per_s = 3.0";
    std::fs::write(&path, text).unwrap();
    let any = ["--model", "gpt2", "--site", path.to_str().unwrap()];
    plan(&any).expect(64, &["cannot be counted", "--nodes"]);
    let some = [&any[..], &["--nodes", "3"]].concat();
    plan(&some).expect(64, &["how many drives", "count = 4"]);
    std::fs::write(&path, format!("{text}\ncount = 2")).unwrap();
    plan(&some).expect(64, &["does not tell how fast", "write_gb_per_s"]);
    std::fs::write(&path, format!("{text}\ncount = 2\nwrite_gb_per_s = 1.5")).unwrap();
    plan(&some).expect(0, &[]);
}

/// What a job does beside swapping state is part of the plan.
#[test]
fn checkpoints_and_spilled_gradients_are_planned_for() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/cluster/example.toml");
    let site =
        ["--model", "llama3-70b", "--site", example, "--nodes", "8", "--ranks-per-node", "8"];
    let with = |more: &[&str]| plan(&[&site[..], more].concat());
    assert!(json(&with(&["--json"]))["checkpoints"].is_null());
    let value = json(&with(&["--checkpoint-every", "50", "--json"]));
    let checkpoints = &value["checkpoints"];
    let params = value["model"]["params"].as_f64().unwrap();
    assert_eq!(checkpoints["bytes"].as_f64(), Some(12.0 * params));
    // The example's file system takes 80 GB/s.
    let seconds = checkpoints["seconds"].as_f64().unwrap();
    assert!((seconds / (12.0 * params / 80e9) - 1.0).abs() < 1e-9, "{seconds}");
    let run = with(&["--checkpoint-every", "50", "--checkpoint-gbps", "8"]);
    run.expect(0, &[]);
    assert!(run.stdout.contains("checkpoint every 50 steps: "), "{}", run.stdout);
    let told = ["--model", "1G", "--drive-mbps", "3000", "--update-ns", "1"];
    let run = plan(&[&told[..], &["--checkpoint-every", "50"]].concat());
    assert!(run.stdout.contains("tell --checkpoint-gbps"), "{}", run.stdout);

    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("spill.toml");
    std::fs::write(&config, "[gradients]\nplace = \"drives\"\n").unwrap();
    let spilling = [&told[..], &["--config", config.to_str().unwrap()]].concat();
    let run = plan(&spilling);
    assert!(run.stdout.contains("gradients handed over: "), "{}", run.stdout);
    let [plain, spilled] =
        [&told[..], &spilling].map(|all| json(&plan(&[all, &["--json"]].concat())));
    let read =
        |value: &Value| value["forecast"]["kinds"][0]["drives"][0]["read_bytes"].as_f64().unwrap();
    assert!((read(&spilled) / read(&plain) - 16.0 / 12.0).abs() < 1e-6);
}

#[test]
fn a_model_is_known_by_its_index_where_its_files_are_missing() {
    let drives = Drives::new(1);
    let folder = drives.path();
    let named = |path: &Path| {
        let path = path.display().to_string();
        plan(&["--model", &path, "--drive-mbps", "300", "--json"])
    };
    let files = [("a", "model-1.safetensors"), ("b.weight_scale_inv", "model-2.safetensors")];
    for (metadata, files, params, words) in [
        (serde_json::json!({"total_size": 14483464192.0}), &files[..1], 7_241_732_096u64, "16-bit"),
        (serde_json::json!({"total_size": 1000}), &files[..], 1000, "taken for fp8"),
        (
            serde_json::json!({"total_parameters": 70_553_706_496u64, "total_size": 7}),
            &files[..],
            70_553_706_496,
            "metadata.total_parameters",
        ),
    ] {
        let index = write_index(folder, metadata, files);
        for path in [&index, folder] {
            let model = json(&named(path))["model"].clone();
            assert_eq!(model["params"], params, "{model}");
            let note = model["notes"][0].as_str().unwrap();
            let missing = format!("{0} of {0} files that the index names are missing", files.len());
            assert!(note.contains(words) && note.contains(&missing), "{note}");
        }
    }
    // Pointers of git-lfs are no files, and people see what was assumed.
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4976698672\n";
    std::fs::write(folder.join("model-1.safetensors"), pointer).unwrap();
    let index = write_index(folder, serde_json::json!({"total_size": 2000}), &files[..1]);
    let run = plan(&["--model", &index.display().to_string(), "--drive-mbps", "300"]);
    run.expect(0, &[]);
    assert!(run.stdout.contains("1 of 1 files that the index names are missing"), "{}", run.stdout);
    named(&folder.join("model-1.safetensors")).expect(64, &["git-lfs pointer", "git lfs pull"]);
    // What an index cannot tell.
    write_index(folder, serde_json::json!({}), &files);
    named(&index).expect(64, &["does not tell how large", "model-1.safetensors", "such as 7G"]);
    let packed = [("a.qweight", "model-1.safetensors")];
    write_index(folder, serde_json::json!({"total_size": 2000}), &packed);
    named(&index).expect(64, &["packed", "such as 7G"]);
    // With their files, tensors count as a job would take them.
    let scale = ("b.weight_scale_inv", f32s(0, &[1, 1]));
    let weights = ("b.weight", tensor("F8_E4M3", &[64, 64], [0; 4096]));
    let more = ("ids", tensor("I64", &[4], [0; 32]));
    write(&folder.join("model.safetensors"), &[weights, scale, more]);
    std::fs::remove_file(&index).unwrap();
    let model = json(&named(folder))["model"].clone();
    assert_eq!((&model["params"], &model["tensors"]), (&4096.into(), &1.into()), "{model}");
}

#[test]
fn wrong_usage() {
    for (arguments, words) in [
        (&["--model", "gpt5", "--drive-mbps", "300"][..], "this names no model"),
        (&["--model", "gpt2"], "no drive is named"),
        (&["--model", "gpt2", "--drive-mbps", "0"], "neither MB/s nor"),
        (&["--model", "gpt2", "--drive-mbps", "1:2"], "neither MB/s nor"),
        (&["--model", "gpt2", "--drive-mbps", "300", "--hosts", "a"], "--hosts names hosts"),
        (&["--model", "gpt2", "--drive-mbps", "300", "--nodes", "0"], "at least 1"),
        (&["--model", "gpt2", "--drive-mbps", "300", "--spread", "inf"], "--spread"),
        (&["--model", "gpt2", "--drive-mbps", "300", "--checkpoint-gbps", "0"], "above 0"),
        (&["--model", "gpt2", "--drive-mbps", "300", "--memory-budget", "1MiB"], "minimum"),
    ] {
        plan(arguments).expect(64, &[words]);
    }
}
