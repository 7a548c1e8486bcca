//! Checking the state on drives and in checkpoints between two runs, in parallel, and repairing
//! chunks on drives from a checkpoint that has the same bytes.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::manifest::Manifest;
use super::reader::CheckpointReader;
use super::stored_shard::StoredShard;
use crate::error::{Error, ErrorKind, Result};
use crate::step::check_steps;
use crate::storage::commit::{Held, Places, Stamp, Verdict, judge, places_of};
use crate::storage::{FoundShard, Record, held};
use crate::units::ChunkIndex;

/// A defect that a check has found.
#[derive(Debug)]
pub struct Finding {
    /// The job.
    pub job: String,
    /// The shard.
    pub shard: u32,
    /// What is wrong, and where.
    pub error: Error,
}

/// The result of a check.
#[derive(Debug, Default)]
pub struct VerifyReport {
    /// One line per shard: job, shard, commit.
    pub shards: Vec<String>,
    /// Number of chunks compared.
    pub chunks: u64,
    /// Number of bytes read.
    pub bytes: u64,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// The result of a scrub.
#[derive(Debug, Default)]
pub struct ScrubReport {
    /// Chunks compared.
    pub chunks: u64,
    /// Number of corrupt chunks that were repaired.
    pub repaired: u64,
    /// What is still wrong.
    pub findings: Vec<Finding>,
}

/// Compares the committed state of every job on these drives, or of one, with its checksums.
///
/// # Errors
/// Unavailable if there is no durable job, or a drive cannot be read; I/O or state lost if a
/// shard's layout is damaged or missing. Everything else that is wrong is in the report.
pub fn verify_drives(drives: &[PathBuf], job: Option<&str>) -> Result<VerifyReport> {
    let mut report = VerifyReport::default();
    let (shards, findings) = open_all(drives, job, false)?;
    report.findings = findings;
    for shard in &shards {
        let layout = shard.plan().config();
        let (stamp, attempts) = (shard.record().stamp, shard.record().attempts);
        let number = shard.plan().shard();
        report.shards.push(format!("{} shard {number}: {stamp}, step {attempts}", layout.job));
    }
    let (chunks, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
    let corrupt = for_every_chunk(&shards, |shard, chunk| {
        let values = shard.read(chunk)?;
        chunks.fetch_add(1, Ordering::Relaxed);
        bytes.fetch_add(4 * values.len() as u64, Ordering::Relaxed);
        shard.check(chunk, &values)
    });
    report.findings.extend(corrupt);
    (report.chunks, report.bytes) = (chunks.into_inner(), bytes.into_inner());
    Ok(report)
}

/// Compares a checkpoint with its checksums.
///
/// # Errors
/// Unavailable if there is no checkpoint, or its version is not known; I/O if its manifest is
/// damaged; usage if it has a state tensor that no optimizer can have. What is wrong with its data
/// is in the report.
pub fn verify_checkpoint(directory: &Path) -> Result<VerifyReport> {
    let manifest = Manifest::read(directory)?;
    let mut report = VerifyReport::default();
    let (job, attempts) = (manifest.job.clone(), manifest.attempts);
    let mut chunks: Vec<(u32, usize, usize)> = Vec::new();
    for inventory in 0..manifest.inventories() {
        let mut reader = CheckpointReader::open_inventory(directory, inventory)?;
        for shard in 0..reader.manifest().shards.len() {
            let file = &reader.manifest().shards[shard].file;
            report.shards.push(format!("{job} {file}: step {attempts}"));
            match reader.chunks_of(shard) {
                Ok(count) => chunks.extend((0..count).map(|chunk| (inventory, shard, chunk))),
                Err(error) => {
                    report.findings.push(Finding { job: job.clone(), shard: shard as u32, error });
                }
            }
        }
    }
    let found = Mutex::new(Vec::new());
    let (next, bytes) = (AtomicUsize::new(0), AtomicU64::new(0));
    let compared = AtomicU64::new(0);
    in_parallel(|| {
        // Every thread has a file and a buffer of its own.
        let mut open: Option<(u32, CheckpointReader)> = None;
        let mut check = |inventory: u32, shard: usize, chunk: usize| {
            let (_, reader) = match open.take().filter(|(number, _)| *number == inventory) {
                Some(open_already) => open.insert(open_already),
                None => {
                    let reader = CheckpointReader::open_inventory(directory, inventory)?;
                    open.insert((inventory, reader))
                }
            };
            reader.check_chunk(shard, chunk)
        };
        let next = || chunks.get(next.fetch_add(1, Ordering::Relaxed));
        while let Some((inventory, shard, chunk)) = next() {
            compared.fetch_add(1, Ordering::Relaxed);
            match check(*inventory, *shard, *chunk) {
                Ok(read) => drop(bytes.fetch_add(read, Ordering::Relaxed)),
                Err(error) => {
                    let finding = Finding { job: job.clone(), shard: *shard as u32, error };
                    found.lock().unwrap_or_else(|held| held.into_inner()).push(finding);
                }
            }
        }
    });
    report.findings.extend(found.into_inner().unwrap_or_else(|held| held.into_inner()));
    (report.chunks, report.bytes) = (compared.into_inner(), bytes.into_inner());
    Ok(report)
}

/// Compares the committed state of every job on these drives, or of one, with its checksums, and
/// rewrites every corrupt chunk from a checkpoint if that has the bytes of the checksums.
///
/// # Errors
/// Unavailable if there is no durable job or no checkpoint, or a drive cannot be read; I/O or state
/// lost if the manifest or a shard's layout is damaged or missing; usage if the checkpoint has a
/// state tensor that no optimizer can have. Chunks that stay corrupt are in the report.
pub fn scrub(drives: &[PathBuf], job: Option<&str>, checkpoint: &Path) -> Result<ScrubReport> {
    let manifest = CheckpointReader::open(checkpoint)?.manifest().clone();
    let (shards, findings) = open_all(drives, job.or(Some(&manifest.job)), true)?;
    let mut report = ScrubReport { findings, ..ScrubReport::default() };
    let (chunks, repaired) = (AtomicU64::new(0), AtomicU64::new(0));
    let left = for_every_chunk(&shards, |shard, chunk| {
        chunks.fetch_add(1, Ordering::Relaxed);
        let Err(corrupt) = shard.read(chunk).and_then(|values| shard.check(chunk, &values)) else {
            return Ok(());
        };
        match repair(shard, chunk, checkpoint) {
            Ok(()) => {
                tracing::info!("repaired: {corrupt}");
                repaired.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            Err(why) => {
                let steps = format!("{} and {}", manifest.attempts, shard.record().attempts);
                Err(corrupt.because(why).with("steps of checkpoint and drives", steps))
            }
        }
    });
    report.findings.extend(left);
    (report.chunks, report.repaired) = (chunks.into_inner(), repaired.into_inner());
    Ok(report)
}

fn repair(shard: &StoredShard, chunk: ChunkIndex, checkpoint: &Path) -> Result<()> {
    let number = shard.plan().allotment().group;
    let mut reader = CheckpointReader::open_inventory(checkpoint, number)?;
    reader.check_model(shard.plan().inventory())?;
    reader.check_tensors(shard.plan().tensors())?;
    let (plan, padded) = (shard.plan(), shard.padded_elems(chunk));
    let mut values = vec![vec![0.0f32; padded]; reader.tensors().len()];
    for run in plan.partition().runs_of(chunk) {
        let at = run.in_chunk(plan.partition().chunk(chunk));
        let mut arrays: Vec<&mut [f32]> =
            values.iter_mut().map(|array| &mut array[at.clone()]).collect();
        reader.read_flat(plan.inventory().flat_of(run.param, run.param_offset), &mut arrays)?;
    }
    shard.repair(chunk, &values)
}

/// Opens all shards at the commit that all of their job's shards on these drives have.
pub(super) fn open_all(
    drives: &[PathBuf],
    job: Option<&str>,
    for_repair: bool,
) -> Result<(Vec<StoredShard>, Vec<Finding>)> {
    let found = FoundShard::all_on(drives, job)?;
    if found.is_empty() {
        let paths: Vec<String> = drives.iter().map(|path| path.display().to_string()).collect();
        return Err(Error::new(ErrorKind::Unavailable, "no durable job lies on these drives")
            .with("drives", paths.join(", "))
            .hint("name the directories that were given to --drives"));
    }
    let (mut shards, mut findings) = (Vec::new(), Vec::new());
    for job in found.chunk_by(|a, b| a.layout.job_id == b.layout.job_id) {
        let name = job[0].layout.job.clone();
        let mut incomplete = job.iter().filter_map(|shard| Some((shard, shard.complete().err()?)));
        if let Some((shard, error)) = incomplete.next() {
            findings.push(Finding { job: name, shard: shard.layout.shard, error });
            continue;
        }
        let records: Result<Vec<_>> = job.iter().map(FoundShard::records).collect();
        let records = match records {
            Ok(records) => records,
            Err(error) => {
                findings.push(Finding { job: name, shard: job[0].layout.shard, error });
                continue;
            }
        };
        let stamp = match common_commit(&records) {
            Ok(stamp) => stamp,
            Err(error) => {
                findings.push(Finding { job: name, shard: job[0].layout.shard, error });
                continue;
            }
        };
        for (found, records) in job.iter().zip(records) {
            let record = records.into_iter().flatten().find(|record| record.stamp == stamp);
            let Some(record) = record else { continue };
            match StoredShard::open(found, record, for_repair) {
                Ok(shard) => shards.push(shard),
                Err(error) => findings.push(Finding {
                    job: found.layout.job.clone(),
                    shard: found.layout.shard,
                    error,
                }),
            }
        }
    }
    Ok((shards, findings))
}

/// The newest commit that all shards of a job have.
fn common_commit(records: &[[Option<Record>; 2]]) -> Result<Stamp> {
    let all: Vec<Held> = records.iter().map(held).collect();
    let places: Vec<Places> = all.iter().map(places_of).collect();
    let Verdict::Resume { stamp, .. } = judge(&places) else {
        let message = "its shards here have no commit in common";
        return Err(Error::new(ErrorKind::StateLost, message));
    };
    check_steps(&all, stamp).map(|()| stamp)
}

/// Calls `look` for every chunk of all shards, in parallel, and returns what is wrong.
fn for_every_chunk(
    shards: &[StoredShard],
    look: impl Fn(&StoredShard, ChunkIndex) -> Result<()> + Sync,
) -> Vec<Finding> {
    let chunks_of = |shard: usize| (0..shards[shard].chunks()).map(move |chunk| (shard, chunk));
    let chunks: Vec<(usize, usize)> = (0..shards.len()).flat_map(chunks_of).collect();
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    in_parallel(|| {
        while let Some((shard, chunk)) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
            let shard = &shards[*shard];
            if let Err(error) = look(shard, ChunkIndex::from_index(*chunk)) {
                let job = shard.plan().config().job.clone();
                let finding = Finding { job, shard: shard.plan().shard(), error };
                found.lock().unwrap_or_else(|held| held.into_inner()).push(finding);
            }
        }
    });
    found.into_inner().unwrap_or_else(|held| held.into_inner())
}

fn in_parallel(work: impl Fn() + Sync) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        // This thread works too, so that the work is done where no more threads are allowed.
        for _ in 1..threads {
            let _ = std::thread::Builder::new().spawn_scoped(scope, &work);
        }
        work();
    });
}
