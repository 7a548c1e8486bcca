//! Bytes of checkpoints and safetensors files that somebody has changed: never a panic, never wrong
//! state taken for right.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use optswap::internals::checkpoint::{CheckpointReader, export_safetensors, import_safetensors};
use optswap::{Checkpoints, Config, NO_PARAMETERS};
use proptest::prelude::*;
use support::Drives;
use support::world::{config_for, on_ranks, start, step_until};

const SIZES: [usize; 2] = [5000, 3000];

/// A checkpoint of two ranks, and its export.
fn saved(drives: &Drives) -> (PathBuf, PathBuf) {
    let config = Config {
        checkpoint: optswap::internals::config::CheckpointConfig {
            dir: Some(drives.path().join("checkpoints")),
            ..Default::default()
        },
        ..config_for(drives)
    };
    let saved = on_ranks(2, |comm| {
        let mut optimizer = start(&config, &SIZES, Arc::clone(&comm))?;
        step_until(&mut optimizer, 2)?;
        Checkpoints::open(&config, comm).unwrap().unwrap().save(
            &mut optimizer,
            None,
            b"blob",
            NO_PARAMETERS,
        )
    });
    let directory = saved.into_iter().next().unwrap().unwrap().directory;
    let export = drives.path().join("export");
    export_safetensors(&directory, &export, &mut |_, _| ()).unwrap();
    (directory, export)
}

/// What a checkpoint says.
#[derive(Debug, PartialEq)]
struct Content {
    attempts: u64,
    update_counts: Vec<u64>,
    blobs: Vec<Vec<u8>>,
    bits: Vec<Vec<u32>>,
}

/// Everything that a checkpoint says, if it says anything.
fn read(directory: &Path) -> Option<Content> {
    let mut reader = CheckpointReader::open(directory).ok()?;
    let manifest = reader.manifest().clone();
    let total = manifest.inventory().unwrap().total_elems() as usize;
    // A manifest that was believed is the one that was written.
    let mut values = [(); 3].map(|()| vec![0.0f32; total]);
    reader.read_flat(0, &mut values.each_mut().map(Vec::as_mut_slice)).ok()?;
    let bits = values.iter().map(|values| values.iter().map(|value| value.to_bits()).collect());
    Some(Content {
        attempts: manifest.attempts,
        blobs: Checkpoints::user_blobs(directory).ok()?,
        bits: bits.collect(),
        update_counts: manifest.update_counts,
    })
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[derive(Clone, Debug)]
enum Change {
    Flip,
    Cut,
    Replace(u8),
    Remove,
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        5 => Just(Change::Flip),
        1 => Just(Change::Cut),
        2 => any::<u8>().prop_map(Change::Replace),
        1 => Just(Change::Remove),
    ]
}

/// Changes a file, runs `look`, and puts the file back.
fn with_change<T>(
    path: &Path,
    change: &Change,
    at: prop::sample::Index,
    look: impl FnOnce() -> T,
) -> T {
    let whole = std::fs::read(path).unwrap();
    let mut bytes = whole.clone();
    let bit = at.index(8 * bytes.len());
    match change {
        Change::Flip => bytes[bit / 8] ^= 1 << (bit % 8),
        Change::Cut => bytes.truncate(bit / 8),
        Change::Replace(byte) => bytes[bit / 8] = *byte,
        Change::Remove => {}
    }
    match change {
        Change::Remove => std::fs::remove_file(path).unwrap(),
        _ => std::fs::write(path, bytes).unwrap(),
    }
    let seen = look();
    std::fs::write(path, whole).unwrap();
    seen
}

#[test]
fn a_changed_checkpoint_is_an_error_or_what_was_saved() {
    let drives = Drives::new(1);
    let (directory, _) = saved(&drives);
    let expected = read(&directory).unwrap();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(1500));
    let cases = (any::<prop::sample::Index>(), any::<prop::sample::Index>(), change());
    let result = runner.run(&cases, |(file, at, change)| {
        let files = files(&directory);
        let path = &files[file.index(files.len())];
        let seen = with_change(path, &change, at, || read(&directory));
        prop_assert!(seen.is_none_or(|seen| seen == expected), "{}", path.display());
        Ok(())
    });
    result.unwrap();
}

#[test]
fn a_changed_safetensors_file_is_an_error_or_some_tensors() {
    let drives = Drives::new(1);
    let (_, export) = saved(&drives);
    let out = drives.path().join("imported");
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(1500));
    // Mostly in the header: data has no checksum in this format.
    let cases = (0usize..3, 0usize..3, any::<prop::sample::Index>(), any::<u64>(), change());
    let result = runner.run(&cases, |(file, place, at, number, change)| {
        let path = &files(&export)[file];
        let whole = std::fs::read(path).unwrap();
        let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
        let seen = match place {
            0 => {
                let mut bytes = whole.clone();
                bytes[..8].copy_from_slice(&number.to_le_bytes());
                std::fs::write(path, bytes).unwrap();
                let seen = import_safetensors(&export, "job", &out, &mut |_, _| ());
                std::fs::write(path, &whole).unwrap();
                seen
            }
            _ => {
                // The header alone, with the data behind it as it is.
                let beginning = drives.path().join("beginning");
                std::fs::write(&beginning, &whole[..header]).unwrap();
                with_change(&beginning, &change, at, || {
                    let mut bytes = std::fs::read(&beginning).unwrap_or_default();
                    bytes.extend_from_slice(&whole[header..]);
                    std::fs::write(path, bytes).unwrap();
                    let seen = import_safetensors(&export, "job", &out, &mut |_, _| ());
                    std::fs::write(path, &whole).unwrap();
                    seen
                })
            }
        };
        if let Err(error) = seen {
            let is_said = [64, 73, 74].contains(&error.exit_code());
            prop_assert!(is_said, "{error}");
        }
        let _ = std::fs::remove_dir_all(&out);
        Ok(())
    });
    result.unwrap();
}
