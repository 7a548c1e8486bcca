//! Importing what an export wrote, whole or in part: a moment never comes without its update
//! counts, counts never without their moments, and no value lands in another tensor.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use optswap::internals::checkpoint::{
    CheckpointReader, ExportSummary, Manifest, export_safetensors, import_safetensors,
};
use optswap::{Checkpoints, NO_PARAMETERS, OptimizerKind, OptimizerSpec, Result, StateTensorSpec};
use serde_json::{Value, json};
use support::tensors::{f32s, parts, write, write_parts};
use support::world::{all, config_for, inventory, on_ranks, start, step_until};
use support::{Drives, alone, copy_tree, optswap};

const SIZES: [usize; 3] = [3000, 700, 2000];

/// The export of two steps of an optimizer.
fn exported(drives: &Drives, kind: OptimizerKind) -> PathBuf {
    let mut config = config_for(drives);
    config.checkpoint.dir = Some(drives.path().join("checkpoints"));
    config.optimizer.kind = kind;
    config.job = kind.name().to_owned();
    let saved = all(on_ranks(1, |comm| {
        let mut optimizer = start(&config, &SIZES, Arc::clone(&comm))?;
        step_until(&mut optimizer, 2)?;
        let mut checkpoints = Checkpoints::open(&config, comm)?.unwrap();
        let saved = checkpoints.save(&mut optimizer, None, b"here", NO_PARAMETERS)?;
        optimizer.close();
        Ok(saved)
    }));
    let export = drives.path().join(kind.name());
    export_safetensors(&saved[0].directory, &export, &mut |_, _| ()).unwrap();
    export
}

/// A copy of an export, to be changed.
fn copy(export: &Path, name: &str) -> PathBuf {
    let copy = export.with_file_name(name);
    copy_tree(export, &copy);
    copy
}

fn import(from: &Path) -> (PathBuf, Result<ExportSummary>) {
    let to = PathBuf::from(format!("{}.imported", from.display()));
    let result = import_safetensors(from, "default", &to, &mut |_, _| ());
    (to, result)
}

fn refused(from: &Path, words: &[&str]) {
    let (to, result) = import(from);
    let error = result.unwrap_err();
    assert_eq!(error.exit_code(), 64, "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "`{word}` is not in: {error}");
    }
    assert!(!to.exists(), "nothing is left of what could not be imported");
}

/// All state tensors of a checkpoint.
fn values(checkpoint: &Path, tensors: usize) -> Vec<Vec<f32>> {
    let mut reader = CheckpointReader::open(checkpoint).unwrap();
    let total = SIZES.iter().sum();
    let mut values = vec![vec![0.0; total]; tensors];
    let mut slices: Vec<&mut [f32]> = values.iter_mut().map(Vec::as_mut_slice).collect();
    reader.read_flat(0, &mut slices).unwrap();
    values
}

fn change_header(path: &Path, change: impl FnOnce(&mut Value)) {
    let (mut header, data) = parts(path);
    change(&mut header);
    write_parts(path, &header, &data);
}

#[test]
fn weights_alone_begin_anew_and_it_is_said() {
    let drives = Drives::new(1);
    let export = exported(&drives, OptimizerKind::AdamW);
    let whole = import(&export);
    assert_eq!(whole.1.unwrap().notes, [""; 0]);
    assert_eq!(Manifest::read(&whole.0).unwrap().update_counts, [2; 3]);
    let alone_in_a_folder = copy(&export, "alone");
    for moment in ["exp_avg", "exp_avg_sq"] {
        std::fs::remove_file(alone_in_a_folder.join(format!("{moment}.safetensors"))).unwrap();
    }
    for from in [alone_in_a_folder, export.join("model.safetensors")] {
        let (to, summary) = import(&from);
        let summary = summary.unwrap();
        assert_eq!(summary.notes, ["weights alone: at step 0, exp_avg and exp_avg_sq of zero"]);
        let manifest = Manifest::read(&to).unwrap();
        assert_eq!((manifest.attempts, &manifest.update_counts[..]), (0, &[0; 3][..]));
        assert!(manifest.user_blob.is_none_or(|blob| blob.is_empty()) && summary.attempts == 0);
        let (found, expected) = (values(&to, 3), values(&whole.0, 3));
        assert!(found[0] == expected[0] && expected[1].iter().any(|value| *value != 0.0));
        assert!(found[1..].iter().flatten().all(|value| *value == 0.0));
    }
}

#[test]
fn some_of_the_moments_are_refused() {
    let drives = Drives::new(1);
    let export = exported(&drives, OptimizerKind::AdamW);
    for (missing, there) in [("exp_avg", "exp_avg_sq"), ("exp_avg_sq", "exp_avg")] {
        let part = copy(&export, &format!("without-{missing}"));
        std::fs::remove_file(part.join(format!("{missing}.safetensors"))).unwrap();
        let there = format!("there {there}");
        refused(&part, &["some moments are missing", &there, "needed exp_avg, exp_avg_sq"]);
        // Files of older versions do not say which moments belong to them.
        for file in ["model", there.trim_start_matches("there ")] {
            change_header(&part.join(format!("{file}.safetensors")), |header| {
                let about = header["__metadata__"].as_object_mut().unwrap();
                about.remove("optswap.state_tensors").unwrap();
            });
        }
        if missing == "exp_avg" {
            refused(&part, &["some moments are missing"]);
        } else {
            // They are those of Lion.
            let (to, summary) = import(&part);
            summary.unwrap();
            assert_eq!(Manifest::read(&to).unwrap().tensors.len(), 2);
        }
    }
    let several = copy(&export, "several");
    let moment = several.join("exp_avg.safetensors");
    std::fs::copy(&moment, several.join("momentum_buffer.safetensors")).unwrap();
    refused(&several, &["several optimizers", "momentum_buffer"]);
}

#[test]
fn moments_go_to_the_parameter_of_their_name() {
    let drives = Drives::new(1);
    let export = exported(&drives, OptimizerKind::AdamW);
    let shuffled = copy(&export, "shuffled");
    // The same tensors in another order.
    let path = shuffled.join("exp_avg.safetensors");
    let (header, data) = parts(&path);
    let (mut other, mut moved) = (json!({"__metadata__": header["__metadata__"]}), Vec::new());
    for parameter in inventory(&SIZES).parameters().iter().rev() {
        let tensor = &header[&parameter.name];
        let at = |side: usize| tensor["data_offsets"][side].as_u64().unwrap() as usize;
        let start = moved.len();
        moved.extend_from_slice(&data[at(0)..at(1)]);
        other[&parameter.name] = tensor.clone();
        other[&parameter.name]["data_offsets"] = json!([start, moved.len()]);
    }
    write_parts(&path, &other, &moved);
    let (to, summary) = import(&shuffled);
    summary.unwrap();
    assert!(values(&to, 3) == values(&import(&export).0, 3));
}

#[test]
fn files_that_do_not_belong_together_are_refused() {
    let drives = Drives::new(1);
    let export = exported(&drives, OptimizerKind::AdamW);
    let changed = |name: &str, file: &str, change: &dyn Fn(&mut Value)| {
        let copy = copy(&export, name);
        change_header(&copy.join(format!("{file}.safetensors")), change);
        copy
    };
    let of = |key: &'static str, value: &'static str| {
        move |header: &mut Value| header["__metadata__"][key] = json!(value)
    };
    let step = changed("step", "exp_avg", &of("optswap.attempts", "1"));
    refused(&step, &["another step than the weights", "exp_avg.safetensors"]);
    let counts = changed("counts", "exp_avg_sq", &of("optswap.update_counts", "2 2 1"));
    refused(&counts, &["another step than the weights", "optswap.update_counts"]);
    let renamed = changed("renamed", "exp_avg", &|header| {
        let tensors = header.as_object_mut().unwrap();
        let tensor = tensors.remove("layer1.bias").unwrap();
        tensors.insert("layer9.bias".to_owned(), tensor);
    });
    refused(&renamed, &["another model than the weights", "layer1.bias"]);
    let listed = changed("listed", "model", &of("optswap.state_tensors", "exp_avg exp_avg_sq"));
    refused(&listed, &["state tensors that no optimizer can have"]);
    let uncounted = copy(&export, "uncounted");
    for file in ["model", "exp_avg", "exp_avg_sq"] {
        change_header(&uncounted.join(format!("{file}.safetensors")), |header| {
            header["__metadata__"].as_object_mut().unwrap().remove("optswap.update_counts");
        });
    }
    refused(&uncounted, &["how many updates", "optswap.update_counts"]);
    let infinite = copy(&export, "infinite");
    let path = infinite.join("exp_avg_sq.safetensors");
    let (header, mut data) = parts(&path);
    data[4 * 3005..][..4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    write_parts(&path, &header, &data);
    refused(&infinite, &["state tensor exp_avg_sq", "layer1.bias", "element 5,", "value inf"]);
}

#[test]
fn moments_of_other_optimizers_come_back_too_and_foreign_files_are_told() {
    let drives = Drives::new(1);
    for (kind, tensors) in [(OptimizerKind::Sgd, 2), (OptimizerKind::Lion, 2)] {
        let export = exported(&drives, kind);
        write(&export.join("ema.safetensors"), &[("w", f32s(0, &[10]))]);
        let (to, summary) = import(&export);
        let notes = summary.unwrap().notes;
        assert!(notes.len() == 1 && notes[0].ends_with("not used: ema.safetensors"), "{notes:?}");
        let manifest = Manifest::read(&to).unwrap();
        assert_eq!((manifest.tensors.len(), &manifest.update_counts[..]), (tensors, &[2; 3][..]));
        assert!(values(&to, tensors)[1].iter().any(|value| *value != 0.0));
        let to = drives.path().join(format!("{}.again", kind.name())).display().to_string();
        let from = export.display().to_string();
        let run = alone(&optswap(), &["import", &from, "--checkpoint", &to]);
        run.expect(0, &[]);
        assert!(run.stdout.contains("beside it, not used: ema.safetensors"), "{}", run.stdout);
    }
}

/// A program's own moments are found by what the export lists, not by the names of built-in kinds.
#[test]
fn moments_of_an_own_optimizer_are_found_by_the_list() {
    let drives = Drives::new(1);
    let export = exported(&drives, OptimizerKind::AdamW);
    let own = copy(&export, "own");
    let spec = OptimizerSpec::own("own", [StateTensorSpec::new("square_avg", 1.0)]);
    assert_eq!(spec.problem(), None);
    std::fs::remove_file(own.join("exp_avg.safetensors")).unwrap();
    std::fs::rename(own.join("exp_avg_sq.safetensors"), own.join("square_avg.safetensors"))
        .unwrap();
    for file in ["model", "square_avg"] {
        change_header(&own.join(format!("{file}.safetensors")), |header| {
            header["__metadata__"]["optswap.state_tensors"] = json!("master square_avg");
        });
    }
    let (to, summary) = import(&own);
    summary.unwrap();
    let tensors = Manifest::read(&to).unwrap().tensors;
    let names: Vec<&str> = tensors.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["master", "square_avg"]);
    assert!(values(&to, 2)[1] == values(&import(&export).0, 3)[2]);
}
