//! A directory of checkpoints that several see: living jobs of one name, starts after a crash,
//! other users, names of the caller's own, and ranks that share the work of comparing one.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use optswap::internals::checkpoint::{Manifest, export_safetensors, import_safetensors};
use optswap::internals::coord::Group;
use optswap::{
    Checkpoints, Communicator, Config, CreateOptions, NO_PARAMETERS, NoParameters, Result, Saved,
    StepOptions, SwappedOptimizer,
};
use support::world::{all, config_for, inventory, on_ranks, start, step_until};
use support::{Drives, copy_tree};

const SIZES: [usize; 2] = [9000, 5000];

fn saving(drives: &Drives, shared: &Path) -> Config {
    let mut config = config_for(drives);
    config.checkpoint.dir = Some(shared.to_owned());
    config
}

fn open(config: &Config, comm: &Arc<dyn Communicator>) -> Result<Checkpoints> {
    Ok(Checkpoints::open(config, Arc::clone(comm))?.unwrap())
}

/// A job that saves one step after another, under names or without.
fn save(config: &Config, ranks: usize, names: &[Option<&str>]) -> Vec<Saved> {
    let saved = all(on_ranks(ranks, |comm| {
        let mut optimizer = start(config, &SIZES, Arc::clone(&comm))?;
        let mut checkpoints = open(config, &comm)?;
        let mut saved = Vec::new();
        for (before, name) in names.iter().enumerate() {
            step_until(&mut optimizer, before as u64 + 1)?;
            let blob = format!("rank {} step {}", comm.rank().0, before + 1);
            saved.push(checkpoints.save(&mut optimizer, *name, blob.as_bytes(), NO_PARAMETERS)?);
        }
        optimizer.close();
        Ok(saved)
    }));
    saved.into_iter().next().unwrap()
}

/// What each of `ranks` ranks gets back from a checkpoint on drives of its own.
fn blobs(shared: &Path, ranks: usize, directory: &Path) -> Vec<String> {
    let drives = Drives::new(1);
    let config = saving(&drives, shared);
    all(on_ranks(ranks, |comm| {
        let mut optimizer = SwappedOptimizer::create(
            &config,
            inventory(&SIZES),
            Arc::clone(&comm),
            CreateOptions::default(),
        )?;
        let blob = open(&config, &comm)?.load(&mut optimizer, directory, &mut NoParameters)?;
        assert_eq!(optimizer.user_blob(), blob);
        optimizer.close();
        Ok(String::from_utf8(blob).unwrap())
    }))
}

#[test]
fn a_second_living_job_of_the_name_is_refused_and_the_first_is_named() {
    let drives = Drives::new(1);
    let shared = drives.path().join("shared");
    let config = saving(&drives, &shared);
    let held = all(on_ranks(2, |comm| {
        let optimizer = start(&config, &SIZES, Arc::clone(&comm))?;
        let mut checkpoints = open(&config, &comm)?;
        let mut optimizer = optimizer;
        checkpoints.save(&mut optimizer, None, b"", NO_PARAMETERS)?;
        optimizer.close();
        Ok(checkpoints)
    }));
    let others = Drives::new(1);
    let second = saving(&others, &shared);
    for result in on_ranks(2, |comm| open(&second, &comm).map(drop)) {
        let error = result.unwrap_err();
        assert!(error.is_agreed() && error.exit_code() == 69, "{error}");
        let process = format!("process {} on ", std::process::id());
        for words in ["job `default` is alive", "rank 0 of 2", &process, ", run 0", "since 2"] {
            assert!(error.to_string().contains(words), "`{words}` is not in {error}");
        }
    }
    // Jobs of other names are no concern of it.
    let other = Config { job: "other".to_owned(), ..second.clone() };
    assert_eq!(save(&other, 1, &[None]).len(), 1);
    drop(held);
    all(on_ranks(2, |comm| open(&second, &comm).map(drop)));
}

#[test]
fn a_start_on_fresh_drives_goes_on_from_what_another_run_saved() {
    let drives = Drives::new(1);
    let shared = drives.path().join("shared");
    let first = save(&saving(&drives, &shared), 2, &[None]);
    let run = |saved: &Saved| Manifest::read(&saved.directory).unwrap().saved_by.unwrap();
    assert_eq!(blobs(&shared, 2, &first[0].directory), ["rank 0 step 1", "rank 1 step 1"]);
    // It saves there as well, and removes what the run before has left: there is nothing to ask.
    let others = Drives::new(1);
    let mut config = saving(&others, &shared);
    config.checkpoint.keep_last = 1;
    let second = save(&config, 2, &[None, None]);
    assert!(second[1].directory.exists() && !first[0].directory.exists());
    let (one, process) = (run(&second[1]), std::process::id());
    assert!(one.id.len() >= 43 && one.process == process && !one.host.is_empty(), "{one}");
    let unlike = save(&config, 2, &[None, None, None]);
    assert_ne!(run(&unlike[2]).id, one.id);
}

#[test]
fn another_run_that_saves_meanwhile_is_noticed_and_loses_nothing() {
    let drives = Drives::new(1);
    let (shared, elsewhere) = (drives.path().join("shared"), drives.path().join("elsewhere"));
    // What another host does where the file system has no locks.
    let foreign = save(&saving(&drives, &elsewhere), 1, &[None, None]);
    let unfinished = shared.join("default/step-00000077");
    let mut config = saving(&drives, &shared);
    config.checkpoint.keep_last = 1;
    all(on_ranks(2, |comm| {
        let mut optimizer = start(&config, &SIZES, Arc::clone(&comm))?;
        let mut checkpoints = open(&config, &comm)?;
        step_until(&mut optimizer, 1)?;
        let own = checkpoints.save(&mut optimizer, None, b"", NO_PARAMETERS)?;
        comm.barrier()?;
        if comm.rank().0 == 0 {
            for saved in &foreign {
                let name = saved.directory.file_name().unwrap();
                copy_tree(&saved.directory, &shared.join("default").join(name));
            }
        }
        comm.barrier()?;
        step_until(&mut optimizer, 3)?;
        let refused = checkpoints.save(&mut optimizer, None, b"", NO_PARAMETERS).unwrap_err();
        assert!(refused.is_agreed() && refused.exit_code() == 69, "{refused}");
        for words in ["another job of this name saves", "step-0000000", "run 0", "--job"] {
            assert!(refused.to_string().contains(words), "`{words}` is not in {refused}");
        }
        assert!(own.directory.exists() && !unfinished.exists());
        assert_eq!(checkpoints.newest()?.unwrap().0, 2);
        // The other has ended: nothing new has come since.
        assert_eq!(checkpoints.save(&mut optimizer, None, b"", NO_PARAMETERS)?.attempts, 3);
        optimizer.close();
        Ok(())
    }));
}

#[test]
fn checkpoints_under_names_of_the_callers_own_stay() {
    let drives = Drives::new(1);
    let mut config = saving(&drives, &drives.path().join("shared"));
    config.checkpoint.keep_last = 2;
    let names = [Some("before-warm-up"), None, Some("step-best"), None, None, Some("last"), None];
    let saved = save(&config, 1, &names);
    let is_there: Vec<bool> = saved.iter().map(|saved| saved.directory.exists()).collect();
    assert_eq!(is_there, [true, false, true, false, true, true, true]);
}

#[test]
fn what_lies_there_is_the_users_own_and_no_link_is_followed() {
    let drives = Drives::new(1);
    let shared = drives.path().join("shared");
    let config = saving(&drives, &shared);
    let saved = save(&config, 2, &[None]);
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&shared.join("default")), mode(&saved[0].directory)), (0o700, 0o700));
    let files = std::fs::read_dir(&saved[0].directory).unwrap();
    let files: Vec<PathBuf> = files.map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 5);
    assert!(files.iter().all(|file| mode(file) == 0o600), "{files:?}");

    // Links that somebody has put where a directory or the lock will be.
    let victim = drives.path().join("victim");
    std::fs::write(&victim, "precious").unwrap();
    for place in ["linked", "linked-lock/owner"] {
        let job = place.split('/').next().unwrap();
        let path = shared.join(place);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(&victim, &path).unwrap();
        let other = Config { job: job.to_owned(), ..config.clone() };
        let error = on_ranks(1, |comm| open(&other, &comm).map(drop)).remove(0).unwrap_err();
        assert_eq!(error.exit_code(), 73, "{error}");
        assert!(error.to_string().contains(job), "{error}");
    }
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
    // And a link in the place of the next checkpoint.
    let outside = drives.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    symlink(&outside, shared.join("default/named")).unwrap();
    all(on_ranks(1, |comm| {
        let mut optimizer = start(&config, &SIZES, Arc::clone(&comm))?;
        let mut checkpoints = open(&config, &comm)?;
        let refused = checkpoints.save(&mut optimizer, Some("named"), b"", NO_PARAMETERS);
        assert_eq!(refused.unwrap_err().exit_code(), 73);
        optimizer.close();
        Ok(())
    }));
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn every_rank_gets_its_own_bytes_back_or_is_told() {
    let drives = Drives::new(1);
    let shared = drives.path().join("shared");
    let directory = save(&saving(&drives, &shared), 3, &[None]).remove(0).directory;
    let own = ["rank 0 step 1", "rank 1 step 1", "rank 2 step 1"];
    assert_eq!(blobs(&shared, 3, &directory), own);
    assert_eq!(Checkpoints::user_blobs(&directory).unwrap(), own.map(str::as_bytes));
    assert_eq!(blobs(&shared, 2, &directory), [own[0]; 2]);
    assert!(Manifest::read(&directory).unwrap().user_blobs_differ);
    // What is too much is refused before anything is written, in a step as in a save.
    let large = vec![0; StepOptions::USER_BLOB_BYTES_MAX + 1];
    let config = saving(&drives, &shared);
    all(on_ranks(2, |comm| {
        let mut optimizer = start(&config, &SIZES, Arc::clone(&comm))?;
        let mut checkpoints = open(&config, &comm)?;
        let given = if comm.rank().0 == 1 { &large[..] } else { b"" };
        let refused = checkpoints.save(&mut optimizer, Some("large"), given, NO_PARAMETERS);
        let error = refused.unwrap_err();
        assert!(error.is_agreed() && error.exit_code() == 64, "{error}");
        assert!(error.to_string().contains("too many"), "{error}");
        optimizer.close();
        Ok(())
    }));
    assert!(!shared.join("default/large").join("manifest.json").exists());
}

#[test]
fn all_ranks_compare_a_checkpoint_of_one_shard_and_no_chunk_is_left_out() {
    let drives = Drives::new(1);
    let shared = drives.path().join("shared");
    let config = saving(&drives, &shared);
    let saved = save(&config, 2, &[None]).remove(0);
    let out = drives.path().join("out");
    export_safetensors(&saved.directory, &out, &mut |_, _| ()).unwrap();
    let imported = shared.join("default/imported");
    import_safetensors(&out, "default", &imported, &mut |_, _| ()).unwrap();
    let newest = |ranks| {
        let found = all(on_ranks(ranks, |comm| {
            let group = Group::discover(&comm, None)?;
            open(&config, &comm)?.newest_whole(&inventory(&SIZES), &group)
        }));
        assert!(found.iter().all(|it| *it == found[0]), "{found:?}");
        found.into_iter().next().unwrap().map(|(_, directory)| directory)
    };
    let shards = |directory: &Path| Manifest::read(directory).unwrap().shards;
    // Of the same step, the last by name is the newest: `step-` comes after `imported`.
    for (directory, other) in [(&saved.directory, &imported), (&imported, &saved.directory)] {
        let aside = drives.path().join("aside");
        std::fs::rename(other, &aside).unwrap();
        for shard in shards(directory) {
            let path = directory.join(&shard.file);
            let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
            for at in (0..shard.bytes).step_by(16 << 10).chain([shard.bytes - 1]) {
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).unwrap();
                file.write_all_at(&[byte[0] ^ 1], at).unwrap();
                assert_eq!(newest(3), None, "byte {at} of {}", shard.file);
                file.write_all_at(&byte, at).unwrap();
            }
        }
        for ranks in [1, 3, 5] {
            assert_eq!(newest(ranks).as_ref(), Some(directory));
        }
        std::fs::rename(&aside, other).unwrap();
    }
}
