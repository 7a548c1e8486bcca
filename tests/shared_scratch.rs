//! Drives whose directory others may write to, as a node's shared scratch: what they plant there is
//! not followed, not read and not written to. What lies there is this user's alone, or the job does
//! not start.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use support::{Drives, Run, alone, optswap};

/// A durable benchmark on the first drive, that leaves its files where they are.
fn start(drives: &Drives, more: &[&str]) -> Run {
    let list = drives.list(1);
    let fixed = ["bench", "--params", "64Ki", "--steps", "1", "--warmup", "0"];
    let own = ["--durability", "step", "--drives", &list];
    alone(&optswap(), &[&fixed[..], &own, more].concat())
}

/// A drive that everybody may write to, and a directory with a file of a victim's beside it.
fn shared_drive() -> (Drives, PathBuf) {
    let drives = Drives::new(1);
    std::fs::set_permissions(&drives.paths()[0], Permissions::from_mode(0o1777)).unwrap();
    let victim = drives.path().join("victim");
    std::fs::create_dir(&victim).unwrap();
    std::fs::write(victim.join("thesis"), "ten years of work").unwrap();
    (drives, victim)
}

/// Names, sizes and contents below a directory.
fn contents(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> =
        entries.map(|path| (path.clone(), std::fs::read(&path).unwrap_or_default())).collect();
    found.sort();
    found
}

#[test]
fn planted_links_are_not_followed() {
    let places = ["optswap", "optswap/default", "optswap/default/shard-00000"];
    let files = ["state", "owner", "layout", "record-0", "record-1"];
    let files = files.map(|name| format!("optswap/default/shard-00000/{name}"));
    for place in places.map(str::to_owned).into_iter().chain(files) {
        let (drives, victim) = shared_drive();
        let link = drives.paths()[0].join(&place);
        let is_file = place.matches('/').count() == 3;
        let target = if is_file { victim.join("thesis") } else { victim.clone() };
        std::fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(&target, &link).unwrap();
        let before = contents(&victim);
        let run = start(&drives, &[]);
        run.expect(69, &["is a symbolic link, which is not followed", &place]);
        assert_eq!(contents(&victim), before, "{place}");
        for tool in [&["clean", "--remove"][..], &["verify"], &["inspect"]] {
            alone(&optswap(), &[tool, &[&drives.list(1)]].concat());
            assert_eq!(contents(&victim), before, "{place}: {tool:?}");
        }
    }
}

#[test]
fn a_planted_profile_is_neither_read_nor_written_to() {
    let (drives, victim) = shared_drive();
    let text = "read_bytes_per_s = 3e9\nwrite_bytes_per_s = 1e9\nmixed_bytes_per_s = 2e9\n\
                probed_at_unix_s = 1\n";
    std::fs::write(victim.join("profile"), text).unwrap();
    std::fs::create_dir(drives.paths()[0].join("optswap")).unwrap();
    let profile = drives.paths()[0].join("optswap/profile.toml");
    symlink(victim.join("profile"), &profile).unwrap();
    let run = start(&drives, &[]);
    run.expect(0, &["the profile of a drive cannot be used", "is a symbolic link"]);
    let list = drives.list(1);
    let probe = ["probe", "--seconds", "0.05", "--size", "4MiB", "--depth", "1", "--drives", &list];
    assert_eq!(alone(&optswap(), &probe).code, 0);
    // The link itself was replaced.
    let written = std::fs::symlink_metadata(&profile).unwrap();
    assert!(written.is_file() && written.mode() & 0o777 == 0o600, "{written:?}");
    assert_eq!(std::fs::read_to_string(victim.join("profile")).unwrap(), text);
}

#[test]
fn what_others_may_change_is_refused() {
    for place in ["optswap", "optswap/default", "optswap/default/shard-00000"] {
        let (drives, _) = shared_drive();
        // So that directories which are empty stay.
        std::fs::create_dir_all(drives.paths()[0].join("optswap/default/shard-00000")).unwrap();
        std::fs::write(drives.paths()[0].join("optswap/default/shard-00000/mine"), "").unwrap();
        let directory = drives.paths()[0].join(place);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::set_permissions(&directory, Permissions::from_mode(0o770)).unwrap();
        let run = start(&drives, &[]);
        let path = directory.display().to_string();
        run.expect(69, &["others may change", &path, "mode 0770", "chmod go-w"]);
        std::fs::set_permissions(&directory, Permissions::from_mode(0o755)).unwrap();
        start(&drives, &[]).expect(0, &[]);
    }
}

#[test]
fn what_a_job_creates_is_its_owners_alone() {
    let drives = Drives::new(1);
    let config = drives.write("keep.toml", "[drives]\nkeep_files = true\n");
    let saved = drives.path().join("saved");
    let mut arguments = vec!["--drives", "", "--config", &config, "--durability", "step"];
    let (list, saved_path) = (drives.list(1), saved.display().to_string());
    arguments[1] = &list;
    arguments.extend(["--checkpoint-dir", &saved_path, "--steps", "1"]);
    arguments.extend(support::TINY);
    let run = alone(&support::train_lm(), &arguments);
    assert_eq!(run.code, 0, "{run:?}");
    let shard = drives.shard("default", 0);
    for path in shard.ancestors().take(3) {
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o700, "{}", path.display());
    }
    let files: Vec<_> = std::fs::read_dir(&shard).unwrap().map(|it| it.unwrap().path()).collect();
    assert_eq!(files.len(), 5, "{files:?}");
    for path in files {
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o600, "{}", path.display());
    }
    // The state in a checkpoint is as private.
    let data = std::fs::read_dir(saved.join("default/step-00000001")).unwrap();
    let data = data.map(|it| it.unwrap().path());
    let mut data = data.filter(|it| {
        let name = it.file_name().unwrap().to_str().unwrap();
        name.starts_with("shard-") && !name.ends_with(".index")
    });
    assert_eq!(data.next().unwrap().metadata().unwrap().mode() & 0o7777, 0o600);
}

mod needs_root {
    use super::*;
    use rustix::fs::{Gid, Uid};

    const OTHER: u32 = 65534;

    fn give_away(path: &Path) {
        rustix::fs::chown(path, Some(Uid::from_raw(OTHER)), Some(Gid::from_raw(OTHER))).unwrap();
    }

    #[test]
    #[ignore = "needs root, to have files of another user: launch/test"]
    fn what_is_anothers_is_refused_and_left_alone() {
        let places = ["optswap", "optswap/default", "optswap/default/shard-00000"];
        for (depth, place) in places.into_iter().enumerate() {
            let (drives, _) = shared_drive();
            let directory = drives.paths()[0].join(place);
            std::fs::create_dir_all(&directory).unwrap();
            std::fs::write(directory.join("theirs"), "theirs").unwrap();
            give_away(&directory);
            let before = contents(&directory);
            let run = start(&drives, &[]);
            let words = ["belongs to user 65534", place, "name a directory of your own"];
            run.expect(69, &words);
            let list = drives.list(1);
            let doctor = alone(&optswap(), &["doctor", "--drives", &list]);
            // The doctor's trial goes as far as the job's directory.
            let sees = doctor.code == 69 && doctor.stdout.contains("belongs to user 65534");
            assert!(sees == (depth < 2), "{doctor:?}");
            alone(&optswap(), &["clean", "--remove", &list]);
            assert_eq!(contents(&directory), before, "{place}");
        }
    }

    #[test]
    #[ignore = "needs root, to have files of another user: launch/test"]
    fn a_file_of_anothers_is_no_profile() {
        let (drives, _) = shared_drive();
        let top = drives.paths()[0].join("optswap");
        std::fs::create_dir(&top).unwrap();
        // As an administrator may have made it, for all users of the node.
        std::fs::set_permissions(&top, Permissions::from_mode(0o1777)).unwrap();
        std::fs::write(top.join("profile.toml"), "nonsense").unwrap();
        give_away(&top.join("profile.toml"));
        let run = start(&drives, &[]);
        run.expect(0, &["the profile of a drive cannot be used", "belongs to user 65534"]);
        // Other users' jobs stay as they are.
        std::fs::create_dir(top.join("theirs")).unwrap();
        give_away(&top.join("theirs"));
        start(&drives, &[]).expect(0, &[]);
        assert!(top.join("theirs").exists());
    }
}
