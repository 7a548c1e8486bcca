//! Checkpoints: any number of ranks saves, any number goes on, with the same bits; a save is whole
//! or not there; what is damaged is found.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::bf16;
use optswap::internals::checkpoint::{
    CheckpointReader, Manifest, export_safetensors, import_safetensors, verify_checkpoint,
};
use optswap::{
    Checkpoints, Communicator, Config, CreateOptions, Elems, NO_PARAMETERS, NoParameters, Result,
    Saved, SwappedOptimizer,
};
use support::Drives;
use support::world::{all, config_for, inventory, on_ranks, start, step_into, step_until};

const SIZES: [usize; 4] = [9000, 5000, 12_000, 40_000];

fn checkpoints(config: &Config, comm: &Arc<dyn Communicator>) -> Checkpoints {
    Checkpoints::open(config, Arc::clone(comm)).unwrap().unwrap()
}

/// A configuration whose checkpoints lie beside the drives.
fn saving(drives: &Drives) -> Config {
    let mut config = config_for(drives);
    config.checkpoint.dir = Some(drives.path().join("checkpoints"));
    config
}

/// Two steps on `ranks` ranks, saved.
fn save_after_two(config: &Config, ranks: usize) -> Saved {
    let saved = all(on_ranks(ranks, |comm| {
        let mut optimizer = start(config, &SIZES, Arc::clone(&comm))?;
        step_until(&mut optimizer, 2)?;
        let saved =
            checkpoints(config, &comm).save(&mut optimizer, None, b"where I was", NO_PARAMETERS)?;
        optimizer.close();
        Ok(saved)
    }));
    saved.into_iter().next().unwrap()
}

fn load(
    config: &Config,
    directory: &Path,
    comm: Arc<dyn Communicator>,
) -> Result<SwappedOptimizer> {
    let mut optimizer = SwappedOptimizer::create(
        config,
        inventory(&SIZES),
        Arc::clone(&comm),
        CreateOptions::default(),
    )?;
    let blob = checkpoints(config, &comm).load(&mut optimizer, directory, &mut NoParameters)?;
    assert_eq!(blob, b"where I was");
    assert_eq!(optimizer.attempts(), 2);
    Ok(optimizer)
}

#[test]
fn any_number_of_ranks_goes_on_where_any_other_was() {
    const RANKS: [usize; 6] = [1, 2, 3, 4, 6, 8];
    let drives = Drives::new(2);
    let config = saving(&drives);
    let whole = all(on_ranks(1, |comm| {
        let mut optimizer = start(&config, &SIZES, comm)?;
        step_until(&mut optimizer, 4)?;
        optimizer.state_digest(NO_PARAMETERS)
    }));
    let mut exports: Vec<Vec<u8>> = Vec::new();
    for saving_ranks in RANKS {
        let saved = save_after_two(&config, saving_ranks);
        assert_eq!(Manifest::read(&saved.directory).unwrap().shards.len(), saving_ranks);
        for loading_ranks in RANKS {
            // Other drives, other chunks.
            let others = Drives::new(1 + loading_ranks % 3);
            let mut other = config_for(&others);
            other.checkpoint.dir.clone_from(&config.checkpoint.dir);
            other.swap.chunk_elements = Elems(4096 * (1 + loading_ranks as u64 % 2));
            let digests = all(on_ranks(loading_ranks, |comm| {
                let mut optimizer = load(&other, &saved.directory, comm)?;
                step_until(&mut optimizer, 4)?;
                optimizer.state_digest(NO_PARAMETERS)
            }));
            for digest in digests {
                assert_eq!(digest, whole[0], "{saving_ranks} -> {loading_ranks}");
            }
        }
        let out = drives.path().join(format!("export-{saving_ranks}"));
        let written = export_safetensors(&saved.directory, &out, &mut |_, _| ()).unwrap();
        assert_eq!((written.parameters, written.attempts), (SIZES.len(), 2));
        exports.push(written.paths.iter().flat_map(|path| tensor_data(path)).collect());
    }
    assert!(exports.iter().all(|export| *export == exports[0]), "exports differ");
    assert!(exports[0].iter().any(|byte| *byte != 0));
}

/// A safetensors file without its header, whose map of metadata has no order.
fn tensor_data(path: &Path) -> Vec<u8> {
    let bytes = std::fs::read(path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[8 + header..].to_vec()
}

#[test]
fn a_save_during_training_reads_nothing_twice_and_holds_the_state_before_the_step() {
    let drives = Drives::new(2);
    let mut config = saving(&drives);
    // Every step has bytes of its own.
    (config.swap.prefetch, config.swap.write_behind) = (false, false);
    let at_rest = save_after_two(&config, 2);
    let exported = drives.path().join("at-rest");
    export_safetensors(&at_rest.directory, &exported, &mut |_, _| ()).unwrap();
    let results = all(on_ranks(2, |comm| {
        let mut optimizer = start(&config, &SIZES, Arc::clone(&comm))?;
        step_until(&mut optimizer, 2)?;
        optimizer.reset_records();
        step_until(&mut optimizer, 3)?;
        let plain: u64 = optimizer.gather_records()?.iter().map(|rank| rank.read_bytes()).sum();
        optimizer.close();

        let mut optimizer = start(&config, &SIZES, Arc::clone(&comm))?;
        step_until(&mut optimizer, 2)?;
        let mut checkpoints = checkpoints(&config, &comm);
        checkpoints.begin(&mut optimizer, Some("during"), b"where I was", NO_PARAMETERS)?;
        assert_eq!(checkpoints.poll(&mut optimizer)?, None, "no step has handed it over yet");
        optimizer.reset_records();
        let mut params = vec![bf16::ZERO; optimizer.partition().elems() as usize];
        step_into(&mut optimizer, &mut params)?;
        // The step handed all over: nothing is left to be read, so that this ends.
        let saved = loop {
            if let Some(saved) = checkpoints.poll(&mut optimizer)? {
                break saved;
            }
        };
        let saving: u64 = optimizer.gather_records()?.iter().map(|rank| rank.read_bytes()).sum();
        assert_eq!(saving, plain, "bytes read by a step that saves and one that does not");
        Ok(saved)
    }));
    assert_eq!(results[0].attempts, 2);
    let during = drives.path().join("during");
    export_safetensors(&results[0].directory, &during, &mut |_, _| ()).unwrap();
    for name in ["model", "exp_avg", "exp_avg_sq"] {
        let file = format!("{name}.safetensors");
        assert!(tensor_data(&exported.join(&file)) == tensor_data(&during.join(&file)), "{name}");
    }
}

#[test]
fn saving_again_replaces_and_old_ones_go() {
    let drives = Drives::new(1);
    let mut config = saving(&drives);
    config.checkpoint.keep_last = 2;
    all(on_ranks(2, |comm| {
        let mut optimizer = start(&config, &SIZES, Arc::clone(&comm))?;
        let mut checkpoints = checkpoints(&config, &comm);
        let mut saved = Vec::new();
        for attempts in 1..=4 {
            step_until(&mut optimizer, attempts)?;
            saved.push(checkpoints.save(&mut optimizer, None, b"", NO_PARAMETERS)?);
        }
        let again = checkpoints.save(&mut optimizer, None, b"again", NO_PARAMETERS)?;
        assert_eq!(again.directory, saved[3].directory);
        assert_eq!(checkpoints.newest()?, Some((4, again.directory.clone())));
        comm.barrier()?;
        if comm.rank().0 == 0 {
            let is_there = |saved: &Saved| saved.directory.exists();
            assert_eq!(saved.iter().map(is_there).collect::<Vec<_>>(), [false, false, true, true]);
            let files = std::fs::read_dir(&again.directory).unwrap().count();
            assert_eq!(files, 5, "one manifest, and data and index of two shards");
            assert_eq!(Checkpoints::user_blobs(&again.directory)?, [b"again", b"again"]);
            assert!(verify_checkpoint(&again.directory).unwrap().findings.is_empty());
        }
        comm.barrier()?;
        let bad = checkpoints.save(&mut optimizer, Some("../up"), b"", NO_PARAMETERS).unwrap_err();
        assert_eq!(bad.exit_code(), 64);
        // An unfinished save is no checkpoint, and does not touch the one of its name.
        let name = again.directory.file_name().unwrap().to_str().unwrap().to_owned();
        checkpoints.begin(&mut optimizer, Some(&name), b"unfinished", NO_PARAMETERS)?;
        checkpoints.abandon(&mut optimizer);
        comm.barrier()?;
        assert_eq!(Checkpoints::user_blobs(&again.directory)?, [b"again", b"again"]);
        optimizer.state_digest(NO_PARAMETERS)
    }));
}

fn data_file(directory: &Path) -> PathBuf {
    directory.join(&Manifest::read(directory).unwrap().shards[0].file)
}

#[test]
fn damage_is_found_and_named() {
    let drives = Drives::new(1);
    let config = saving(&drives);
    let saved = save_after_two(&config, 2);
    let data = data_file(&saved.directory);
    let refuse = |words: &[&str], code: u8| {
        for result in on_ranks(3, |comm| load(&config, &saved.directory, comm).map(drop)) {
            let error = result.unwrap_err();
            assert!(error.is_agreed() && error.exit_code() == code, "{error}");
            for word in words {
                assert!(error.to_string().contains(word), "`{word}` is not in {error}");
            }
        }
        let report = verify_checkpoint(&saved.directory).unwrap();
        assert_eq!(report.findings.len(), 1, "{report:?}");
    };
    let file = OpenOptions::new().read(true).write(true).open(&data).unwrap();
    let mut byte = [0];
    // The second chunk's exp_avg.
    let at = 4096 * 12 + 4096 * 4 + 17;
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
    refuse(&["corrupt", "exp_avg", "elements 4096..8192", "older checkpoint"], 74);
    file.write_all_at(&byte, at).unwrap();
    let index = PathBuf::from(format!("{}.index", data.display()));
    let whole = std::fs::read(&index).unwrap();
    std::fs::write(&index, &whole[..whole.len() - 3]).unwrap();
    refuse(&["index", "ends before its length"], 74);
    std::fs::write(&index, &whole).unwrap();
    file.set_len(4096).unwrap();
    let report = verify_checkpoint(&saved.directory).unwrap();
    assert!(!report.findings.is_empty(), "a file that was cut");
}

#[test]
fn another_model_is_refused_by_its_first_difference() {
    let drives = Drives::new(1);
    let config = saving(&drives);
    let saved = save_after_two(&config, 1);
    let mut sizes = SIZES;
    sizes[2] += 1;
    let results = on_ranks(2, |comm| {
        let mut optimizer = SwappedOptimizer::create(
            &config,
            inventory(&sizes),
            Arc::clone(&comm),
            CreateOptions::default(),
        )?;
        checkpoints(&config, &comm).load(&mut optimizer, &saved.directory, &mut NoParameters)
    });
    for result in results {
        let error = result.unwrap_err();
        assert_eq!(error.exit_code(), 64);
        for word in ["another model", "parameter 2", "layer2.weight [12000]", "[12001]"] {
            assert!(error.to_string().contains(word), "{error}");
        }
    }
    assert!(drives.are_empty());
}

#[test]
fn safetensors_come_back_as_a_checkpoint() {
    let drives = Drives::new(1);
    let config = saving(&drives);
    let saved = save_after_two(&config, 3);
    let (out, imported) = (drives.path().join("out"), drives.path().join("imported"));
    export_safetensors(&saved.directory, &out, &mut |_, _| ()).unwrap();
    import_safetensors(&out, "default", &imported, &mut |_, _| ()).unwrap();
    let digest = |directory: &Path| {
        let digests = all(on_ranks(2, |comm| {
            let mut optimizer = load(&config, directory, comm)?;
            step_until(&mut optimizer, 3)?;
            optimizer.state_digest(NO_PARAMETERS)
        }));
        digests[0].clone()
    };
    assert_eq!(digest(&imported), digest(&saved.directory));
    let (mut a, mut b) = (
        CheckpointReader::open(&saved.directory).unwrap(),
        CheckpointReader::open(&imported).unwrap(),
    );
    let read = |reader: &mut CheckpointReader| {
        let mut values = [vec![0.0f32; 20_000], vec![0.0; 20_000], vec![0.0; 20_000]];
        reader.read_flat(7000, &mut values.each_mut().map(Vec::as_mut_slice)).unwrap();
        values
    };
    assert_eq!(read(&mut a), read(&mut b));
    let twice = import_safetensors(&out, "default", &imported, &mut |_, _| ()).unwrap_err();
    assert_eq!(twice.exit_code(), 73, "{twice}");
    let model = out.join("model.safetensors");
    let whole = std::fs::read(&model).unwrap();
    std::fs::write(&model, &whole[..whole.len() - 1]).unwrap();
    let other = drives.path().join("cut");
    let cut = import_safetensors(&model, "default", &other, &mut |_, _| ()).unwrap_err();
    assert!(cut.exit_code() == 64 && cut.to_string().contains("model.safetensors"), "{cut}");
    assert!(!other.exists(), "nothing is left of what could not be imported");
}

/// What Python's safetensors sees: shape, type and the sum of all bits, of every tensor.
const PYTHON: &str = "
import json, sys
from safetensors.numpy import load_file
seen = {}
for path in sys.argv[1:]:
    for name, tensor in load_file(path).items():
        bits = int(tensor.view('uint32').astype('uint64').sum())
        seen[path + ':' + name] = [list(tensor.shape), str(tensor.dtype), bits]
print(json.dumps(seen))
";

mod needs_python {
    use super::*;

    #[test]
    #[ignore = "needs Python's safetensors: launch/test"]
    fn python_opens_an_export() {
        let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/python/bin/python");
        let drives = Drives::new(1);
        let config = saving(&drives);
        let saved = save_after_two(&config, 2);
        let out = drives.path().join("out");
        let written = export_safetensors(&saved.directory, &out, &mut |_, _| ()).unwrap();
        let mut command = std::process::Command::new(python);
        let output = command.args(["-c", PYTHON]).args(&written.paths).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let seen: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(seen.as_object().unwrap().len(), 3 * SIZES.len());
        let mut reader = CheckpointReader::open(&saved.directory).unwrap();
        let mut flat = 0;
        for (parameter, size) in inventory(&SIZES).parameters().iter().zip(SIZES) {
            let mut values = [(); 3].map(|()| vec![0.0f32; size]);
            reader.read_flat(flat, &mut values.each_mut().map(Vec::as_mut_slice)).unwrap();
            for (path, values) in written.paths.iter().zip(&values) {
                let bits: u64 = values.iter().map(|value| u64::from(value.to_bits())).sum();
                let key = format!("{}:{}", path.display(), parameter.name);
                assert_eq!(seen[&key], serde_json::json!([[size], "float32", bits]), "{key}");
            }
            flat += size as u64;
        }
    }
}

/// An XFS of its own on a loop device, unmounted when dropped.
struct Xfs(PathBuf);

impl Xfs {
    fn mount(drives: &Drives) -> Self {
        let (image, path) = (drives.path().join("image"), drives.path().join("xfs"));
        std::fs::create_dir(&path).unwrap();
        std::fs::File::create(&image).unwrap().set_len(512 << 20).unwrap();
        let run = |program: &str, arguments: &[&str]| {
            let status = std::process::Command::new(program).args(arguments).status();
            assert!(status.unwrap().success(), "{program} {arguments:?}");
        };
        let (image, target) = (image.to_str().unwrap(), path.to_str().unwrap());
        run("mkfs.xfs", &["-q", "-m", "reflink=1", image]);
        run("mount", &["-o", "loop", image, target]);
        Self(path)
    }

    fn free_bytes(&self) -> u64 {
        let space = rustix::fs::statvfs(&self.0).unwrap();
        space.f_bfree * space.f_frsize
    }
}

impl Drop for Xfs {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

mod needs_root {
    use super::*;

    #[test]
    #[ignore = "needs root, loop devices and mkfs.xfs: launch/test"]
    fn a_reflinked_checkpoint_takes_no_room_and_keeps_its_bytes() {
        let drives = Drives::new(1);
        let xfs = Xfs::mount(&drives);
        let mut config = config_for(&drives);
        config.drives.paths = vec![xfs.0.join("drive")];
        config.swap.chunk_elements = Elems(1 << 20);
        config.checkpoint.dir = Some(xfs.0.join("checkpoints"));
        config.checkpoint.reflink = true;
        std::fs::create_dir(&config.drives.paths[0]).unwrap();
        let sizes = [3_000_000];
        let results = all(on_ranks(1, |comm| {
            let mut optimizer = start(&config, &sizes, Arc::clone(&comm))?;
            step_until(&mut optimizer, 1)?;
            let digest = optimizer.state_digest(NO_PARAMETERS)?;
            let free = xfs.free_bytes();
            let saved = checkpoints(&config, &comm).save(
                &mut optimizer,
                None,
                b"where I was",
                NO_PARAMETERS,
            )?;
            let taken = free.saturating_sub(xfs.free_bytes());
            // What the next step writes is written elsewhere.
            step_until(&mut optimizer, 2)?;
            optimizer.close();
            Ok((digest, saved, taken))
        }));
        let (digest, saved, taken) = &results[0];
        assert!(saved.bytes > 36_000_000 && *taken < 4 << 20, "{taken} of {} B", saved.bytes);
        let others = Drives::new(2);
        let loaded = all(on_ranks(2, |comm| {
            let mut other = config_for(&others);
            other.checkpoint.dir.clone_from(&config.checkpoint.dir);
            let mut optimizer = SwappedOptimizer::create(
                &other,
                inventory(&sizes),
                Arc::clone(&comm),
                CreateOptions::default(),
            )?;
            checkpoints(&other, &comm).load(&mut optimizer, &saved.directory, &mut NoParameters)?;
            optimizer.state_digest(NO_PARAMETERS)
        }));
        assert_eq!(loaded, [digest.as_str(), digest.as_str()]);
    }
}
