//! `optswap clean`, `verify`, `scrub`, `export` and `import`: what lies on drives and in
//! checkpoints between two runs.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;

use optswap::internals::checkpoint::{self, Finding, VerifyReport};
use optswap::internals::error::{Error, ErrorKind, Result};
use optswap::internals::storage::{FoundShard, Life, ShardDirectory};
use optswap::internals::telemetry::TextTable;
use optswap::internals::units::Bytes;
use optswap_args::{bytes_bar, say};

#[derive(Debug, Args)]
pub(super) struct CleanArgs {
    /// The directories that were given to --drives.
    #[arg(required = true, value_name = "DIR")]
    drives: Vec<PathBuf>,

    /// This job alone.
    #[arg(long, value_name = "NAME")]
    job: Option<String>,

    /// Remove what is dead. Without it, nothing is changed.
    #[arg(long)]
    remove: bool,
}

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// The directories that were given to --drives, or the directory of one checkpoint.
    #[arg(required = true, value_name = "DIR")]
    paths: Vec<PathBuf>,

    /// This job alone.
    #[arg(long, value_name = "NAME")]
    job: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct ScrubArgs {
    /// The directories that were given to --drives.
    #[arg(required = true, value_name = "DIR")]
    drives: Vec<PathBuf>,

    /// The checkpoint to repair from.
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,

    /// The job [default: the checkpoint's].
    #[arg(long, value_name = "NAME")]
    job: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// The checkpoint's directory.
    checkpoint: PathBuf,

    /// The format.
    #[arg(long = "to", value_enum, default_value_t = Format::Safetensors)]
    format: Format,

    /// Where the files go: model.safetensors, exp_avg.safetensors, exp_avg_sq.safetensors.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Safetensors,
}

#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    /// A directory that `optswap export` wrote, or a model as `optswap init` takes it: its weights
    /// alone.
    from: PathBuf,

    /// The checkpoint's directory, such as DIR/JOB/step-00000000 below checkpoint.dir.
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,

    /// The job that it is for.
    #[arg(long, value_name = "NAME", default_value = "default")]
    job: String,
}

pub(super) fn clean(args: &CleanArgs) -> Result<()> {
    let header = ["job", "shard", "drive", "size", "state", "committed"];
    let mut table = TextTable::of_words(header);
    let committed = committed_steps(args);
    let (mut dead, mut removed_bytes, mut found) = (0, 0, 0);
    for drive in &args.drives {
        for directory in ShardDirectory::all_on(drive, args.job.as_deref())? {
            found += 1;
            let bytes = directory.allocated_bytes();
            let owner = directory.owner();
            let life = if args.remove { directory.remove_dead()? } else { directory.life() };
            let state = match (&life, args.remove, owner) {
                (Life::Alive, _, Some(owner)) => {
                    format!("alive: process {} on {}", owner.pid, owner.host)
                }
                (Life::Alive, _, None) => "alive".to_owned(),
                (Life::Unknown(why), ..) => format!("unknown: {why}"),
                (Life::Dead, true, _) => "removed".to_owned(),
                (Life::Dead, false, _) => "dead".to_owned(),
            };
            let step = committed
                .iter()
                .find(|(job, shard, _)| *job == directory.job() && *shard == directory.shard());
            table.add_row([
                directory.job().to_owned(),
                directory.shard().to_string(),
                drive.display().to_string(),
                Bytes(bytes).human(),
                state,
                step.map_or_else(|| "-".to_owned(), |(.., step)| format!("step {step}")),
            ]);
            if life != Life::Dead {
                continue;
            }
            dead += 1;
            removed_bytes += bytes;
        }
    }
    if found == 0 {
        return say("no job lies on these drives");
    }
    say(table)?;
    let size = Bytes(removed_bytes).human();
    if args.remove {
        say(format_args!("{dead} dead shard directories removed, {size} freed"))
    } else {
        say(format_args!("{dead} dead shard directories, {size}; --remove removes them"))
    }
}

/// Job, shard and committed step of every durable shard that can be read.
fn committed_steps(args: &CleanArgs) -> Vec<(String, u32, u64)> {
    let found = FoundShard::all_on(&args.drives, args.job.as_deref()).unwrap_or_default();
    let mut committed = Vec::new();
    for shard in found {
        if let Ok(Some(record)) = shard.newest_record() {
            committed.push((shard.layout.job, shard.layout.shard, record.attempts));
        }
    }
    committed
}

pub(super) fn verify(args: &VerifyArgs) -> Result<()> {
    let start = Instant::now();
    let report = match args.paths.as_slice() {
        [one] if one.join("manifest.json").exists() => checkpoint::verify_checkpoint(one)?,
        drives => checkpoint::verify_drives(drives, args.job.as_deref())?,
    };
    report.shards.iter().try_for_each(say)?;
    let VerifyReport { chunks, bytes, findings, .. } = report;
    let seconds = start.elapsed().as_secs_f64();
    let rate = bytes as f64 / 1e9 / seconds.max(1e-9);
    let size = Bytes(bytes).human();
    say(format_args!("{chunks} chunks, {size}, compared in {seconds:.2} s ({rate:.2} GB/s)"))?;
    conclude(&findings)
}

/// Prints what is wrong; an I/O error if anything is.
pub(super) fn conclude(findings: &[Finding]) -> Result<()> {
    for Finding { job, shard, error } in findings {
        say(format_args!("{job} shard {shard}: {error}"))?;
    }
    match findings {
        [] => say("all is as it was written"),
        [Finding { error, .. }, ..] if findings.iter().all(|it| !it.error.kind().is_damage()) => {
            Err(Error::new(error.kind(), "not everything could be looked at"))
        }
        some => Err(Error::new(ErrorKind::Io, format!("{} findings, see above", some.len()))),
    }
}

pub(super) fn scrub(args: &ScrubArgs) -> Result<()> {
    let report = checkpoint::scrub(&args.drives, args.job.as_deref(), &args.checkpoint)?;
    say(format_args!("{} chunks compared, {} repaired", report.chunks, report.repaired))?;
    conclude(&report.findings)
}

pub(super) fn export(args: &ExportArgs) -> Result<()> {
    let Format::Safetensors = args.format;
    let bar = bytes_bar("exporting", true);
    let mut progress = |elems: u64, all: u64| bar(12 * elems, 12 * all);
    let written = checkpoint::export_safetensors(&args.checkpoint, &args.output, &mut progress)?;
    written.paths.iter().try_for_each(|path| say(path.display()))?;
    say(format_args!(
        "{} parameters, {} elements, after step {}",
        written.parameters, written.elems, written.attempts
    ))
}

pub(super) fn import(args: &ImportArgs) -> Result<()> {
    let bar = bytes_bar("importing", true);
    let mut progress = |elems: u64, all: u64| bar(12 * elems, 12 * all);
    let (from, to) = (&args.from, &args.checkpoint);
    let written = checkpoint::import_safetensors(from, &args.job, to, &mut progress)?;
    written.notes.iter().try_for_each(say)?;
    say(format_args!(
        "{}: {} parameters, {} elements, after step {}",
        to.display(),
        written.parameters,
        written.elems,
        written.attempts
    ))
}
