//! Bytes that are not what they should be: every reader of bytes from outside gives a value or an
//! error, never a panic and never a huge allocation; and a durable job whose files have changed on
//! the drives goes on with the right bits or refuses to, never with wrong ones.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

mod support;

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use optswap::internals::config::{Durability, EngineName};
use optswap::internals::storage::{FoundShard, ShardDirectory};
use optswap::internals::wire::{crc32c, crc32c_joined};
use optswap::{Config, NO_PARAMETERS};
use proptest::prelude::*;
use proptest::sample::Index;
use support::world::{Job, STEPS, all, job_config_for, on_ranks, undisturbed_digests};
use support::{Drives, one_at_a_time};

/// What the frame of records and layouts begins with: magic, version, checksum, length.
const HEADER_BYTES: usize = 24;

type Files = Vec<(PathBuf, Vec<u8>)>;

/// The files of a job that was closed after all its steps, by ranks and drives.
fn kept_job(ranks: usize, drives: usize) -> &'static Files {
    static JOBS: LazyLock<[Files; 4]> = LazyLock::new(|| {
        [(1, 1), (1, 2), (2, 1), (2, 2)].map(|(ranks, drives)| {
            let drives = Drives::new(drives);
            let config = job_config_for(&drives, Durability::Step, EngineName::Auto);
            all(on_ranks(ranks, |comm| Job::start(&config, comm)?.finish()));
            let files = files_below(drives.path()).into_iter().map(|path| {
                let name = path.strip_prefix(drives.path()).unwrap().to_owned();
                (name, std::fs::read(path).unwrap())
            });
            files.collect()
        })
    });
    &JOBS[2 * (ranks - 1) + drives - 1]
}

fn write_files(files: &Files, to: &Path) {
    for (name, bytes) in files {
        let path = to.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

fn files_below(path: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}

/// A change to some bytes; the places are relative to their length.
#[derive(Clone, Debug)]
enum Change {
    Flip(Index),
    Cut(Index),
    Overwrite(Index, Vec<u8>),
    Insert(Index, Vec<u8>),
    Replace(Vec<u8>),
}

impl Change {
    fn of(&self, bytes: &mut Vec<u8>) {
        let at = |index: &Index| index.index(bytes.len().max(1)).min(bytes.len());
        match self {
            Self::Flip(bit) => {
                if !bytes.is_empty() {
                    let bit = bit.index(8 * bytes.len());
                    bytes[bit / 8] ^= 1 << (bit % 8);
                }
            }
            Self::Cut(index) => bytes.truncate(at(index)),
            Self::Overwrite(index, with) => {
                let start = at(index);
                let end = (start + with.len()).min(bytes.len());
                bytes[start..end].copy_from_slice(&with[..end - start]);
            }
            Self::Insert(index, with) => {
                let at = at(index);
                drop(bytes.splice(at..at, with.iter().copied()));
            }
            Self::Replace(with) => bytes.clone_from(with),
        }
    }
}

fn any_change() -> impl Strategy<Value = Change> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..40);
    // Lengths are eight bytes: some that are far too large.
    let number = prop_oneof![any::<u64>(), (0u32..64).prop_map(|bits| 1 << bits)];
    let number = number.prop_map(|number| number.to_le_bytes().to_vec());
    prop_oneof![
        any::<Index>().prop_map(Change::Flip),
        any::<Index>().prop_map(Change::Cut),
        (any::<Index>(), number).prop_map(|(at, with)| Change::Overwrite(at, with)),
        (any::<Index>(), bytes()).prop_map(|(at, with)| Change::Overwrite(at, with)),
        (any::<Index>(), bytes()).prop_map(|(at, with)| Change::Insert(at, with)),
        prop::collection::vec(any::<u8>(), 0..300).prop_map(Change::Replace),
    ]
}

/// Makes the length and the checksum of a frame right again, so that its value is read.
fn reseal(bytes: &mut [u8]) {
    if bytes.len() < HEADER_BYTES {
        return;
    }
    let len = (bytes.len() - HEADER_BYTES) as u64;
    bytes[16..24].copy_from_slice(&len.to_le_bytes());
    let (version, rest) = (crc32c(&bytes[8..12]), crc32c(&bytes[16..]));
    let checksum = crc32c_joined(version, rest, len + 8);
    bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
}

/// The most address space that this process has had.
fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmPeak")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_file_of_a_job_is_read_without_a_panic(
        changes in prop::collection::vec(any_change(), 0..4),
        which in any::<Index>(),
        is_resealed in any::<bool>(),
    ) {
        let _turn = one_at_a_time();
        let files = kept_job(2, 2).iter().filter(|(path, _)| !path.ends_with("state"));
        let files: Vec<&Vec<u8>> = files.map(|(_, bytes)| bytes).collect();
        let mut bytes = which.get(&files).to_vec();
        changes.iter().for_each(|change| change.of(&mut bytes));
        if is_resealed && !changes.is_empty() {
            reseal(&mut bytes);
        }
        let drives = Drives::new(1);
        let drive = drives.paths().remove(0);
        let directory = ShardDirectory::new(&drive, "default", 0);
        std::fs::create_dir_all(directory.path()).unwrap();
        for name in ["record-0", "record-1", "layout", "owner"] {
            std::fs::write(directory.path().join(name), &bytes).unwrap();
        }
        let before = peak_mib();
        let record = directory.record(0);
        let layout = directory.layout();
        let found = FoundShard::all_on(std::slice::from_ref(&drive), None);
        // A thread that starts meanwhile reserves some as well.
        prop_assert!(peak_mib() - before < 512, "{} MiB", peak_mib() - before);
        if let Ok(shards) = &found {
            for shard in shards {
                let _ = (shard.complete(), shard.newest_record());
            }
        }
        let _ = (directory.owner(), directory.life());
        if changes.is_empty() {
            let is_record = record.unwrap().is_some();
            let is_layout = layout.unwrap().is_some();
            let is_owner = directory.owner().is_some();
            prop_assert_eq!(u8::from(is_record) + u8::from(is_layout) + u8::from(is_owner), 1);
        }
    }

    #[test]
    fn any_text_is_a_configuration_or_an_error(
        changes in prop::collection::vec(any_change(), 0..4),
        noise in "\\PC*",
    ) {
        let mut text = toml::to_string(&Config::default()).unwrap().into_bytes();
        changes.iter().for_each(|change| change.of(&mut text));
        for text in [String::from_utf8_lossy(&text).into_owned(), noise] {
            if let Err(error) = Config::parse(&text) {
                prop_assert_eq!(error.exit_code(), 64);
            }
        }
    }
}

/// Starts a job again whose files have been changed: the step that it goes on from, with the right
/// bits there and at its end; or why it does not.
fn go_on(ranks: usize, drives: &Drives) -> Result<Option<u64>, String> {
    static EXPECTED: LazyLock<Vec<String>> = LazyLock::new(|| undisturbed_digests(1));
    let config = job_config_for(drives, Durability::Step, EngineName::Auto);
    let results = on_ranks(ranks, |comm| {
        let mut job = Job::start(&config, comm)?;
        let resumed = job.optimizer.resumed().map(|resumed| resumed.attempt);
        let digest = job.optimizer.state_digest(NO_PARAMETERS)?;
        Ok((resumed, digest, job.finish()?))
    });
    let mut from = Vec::new();
    for result in results {
        let (resumed, digest, last) = result.map_err(|error| {
            assert!(error.is_agreed(), "{error}");
            assert!([64, 69, 73, 74].contains(&error.exit_code()), "{error}");
            error.to_string()
        })?;
        assert_eq!(digest, EXPECTED[resumed.unwrap_or(0) as usize]);
        assert_eq!(last, EXPECTED[STEPS as usize]);
        from.push(resumed);
    }
    assert!(from.iter().all(|step| *step == from[0]));
    Ok(from[0])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_changed_job_goes_on_rightly_or_not_at_all(
        ranks in 1usize..3,
        drives in 1usize..3,
        which in any::<Index>(),
        change in prop_oneof![
            4 => any::<Index>().prop_map(Change::Flip),
            1 => any::<Index>().prop_map(Change::Cut),
        ],
        is_removed in prop::bool::weighted(0.1),
    ) {
        let _turn = one_at_a_time();
        let job = Drives::new(drives);
        let mut files = kept_job(ranks, drives).clone();
        let (name, mut bytes) = files.remove(which.index(files.len()));
        if !is_removed {
            change.of(&mut bytes);
            files.push((name.clone(), bytes));
        }
        write_files(&files, job.path());
        let name = name.display().to_string();
        match go_on(ranks, &job) {
            Ok(Some(STEPS)) => {}
            // One damaged record costs one step; nothing is ever taken for a new job.
            Ok(step) => {
                let is_record = name.contains("record-");
                prop_assert!(step == Some(STEPS - 1) && is_record, "{name}: {step:?}");
            }
            Err(why) => prop_assert!(!name.ends_with("owner"), "{name}: {why}"),
        }
    }

    #[test]
    fn a_layout_that_lies_is_refused(change in any_change()) {
        let _turn = one_at_a_time();
        let job = Drives::new(1);
        write_files(kept_job(1, 1), job.path());
        let layout = ShardDirectory::new(&job.paths()[0], "default", 0).layout_path();
        let mut bytes = std::fs::read(&layout).unwrap();
        let mut value = bytes.split_off(HEADER_BYTES);
        change.of(&mut value);
        bytes.extend(value);
        reseal(&mut bytes);
        std::fs::write(&layout, bytes).unwrap();
        // Its checksum is right, so it may also be taken for the layout of another job.
        let _ = go_on(1, &job);
    }
}
