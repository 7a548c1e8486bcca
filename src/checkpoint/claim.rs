//! A job's claim on its directory of checkpoints: a lock that rank 0 holds for as long as the job
//! lives. Where the file system has no locks, a second job is noticed by what it saves.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::directories::list;
use super::manifest::Run;
use super::private::{is_misplaced, open_private, private_directory};
use crate::coord::{Communicator, Pulse};
use crate::error::{Error, ErrorKind, Result};
use crate::storage::{Owner, boot_id};
use crate::telemetry::utc_now;

/// A process that was killed holds its lock until the kernel has ended its last operation.
const PATIENCE: Duration = Duration::from_secs(8);
/// A server of NFS keeps the locks of a host that went down for the time of its lease, 90 seconds
/// by default.
const PATIENCE_WITH_OTHER_HOSTS: Duration = Duration::from_secs(100);

/// The claim, on rank 0.
#[derive(Debug)]
pub(super) struct Claim {
    directory: PathBuf,
    /// Locked; `None` where that is not possible.
    lock: Option<File>,
    holder: Holder,
    /// The generations of the checkpoints that were there when the job began, and of its own.
    known: BTreeSet<String>,
}

/// What the lock file says of the process that holds it. This serves messages only.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Holder {
    /// Empty until the job has been created on its drives.
    run: String,
    since: String,
    owner: Owner,
}

impl Claim {
    /// Claims `directory`, which is `DIR/JOB`, and creates it if it is missing.
    ///
    /// # Errors
    /// Unavailable if a living job holds it. Cannot create if it is no directory, or cannot be
    /// listed.
    pub fn take(directory: &Path, job: &str, comm: &dyn Communicator) -> Result<Self> {
        let ranks = comm.size() as u32;
        let owner = Owner::this_process(job, comm.rank().0, ranks, comm.host(), false);
        let holder = Holder { run: String::new(), since: utc_now(), owner };
        let lock = match open_lock(directory) {
            Ok(mut file) => match lock(&mut file, directory, &Pulse::of(comm)) {
                Ok(()) => Some(file),
                Err(Errno::WOULDBLOCK) => return Err(is_held(&mut file, job, directory)),
                Err(errno) => {
                    warn_of_no_lock(directory, &errno);
                    None
                }
            },
            Err(error) if is_misplaced(&error) => {
                return Err(Error::new(ErrorKind::CannotCreate, "checkpoints cannot go there")
                    .with("path", directory.display())
                    .because(error)
                    .hint("move away what is there, or name another directory"));
            }
            Err(error) => {
                warn_of_no_lock(directory, &error);
                None
            }
        };
        let known = list(directory)?.into_iter().map(|found| found.generation).collect();
        let mut claim = Self { directory: directory.to_owned(), lock, holder, known };
        claim.write_holder();
        Ok(claim)
    }

    /// Whether no other living job can be there.
    pub fn is_locked(&self) -> bool {
        self.lock.is_some()
    }

    /// Names this creation of the job, for those who ask who holds the lock.
    pub fn name_run(&mut self, run: &str) {
        if self.holder.run != run {
            run.clone_into(&mut self.holder.run);
            self.write_holder();
        }
    }

    /// What a manifest says of the process that saved it.
    pub fn run(&self) -> Run {
        let Owner { host, pid, .. } = &self.holder.owner;
        Run { id: self.holder.run.clone(), host: host.clone(), process: *pid }
    }

    /// Takes a checkpoint for the job's own.
    pub fn note(&mut self, generation: &str) {
        self.known.insert(generation.to_owned());
    }

    /// Checks that no other run has saved here since the last look. Two that live and save in turns
    /// would remove each other's checkpoints. One that saved once, since it was about to end, is no
    /// reason to save no more.
    ///
    /// # Errors
    /// Unavailable if one has, with its name; cannot create if the directory cannot be listed.
    pub fn check_alone(&mut self) -> Result<()> {
        let mut newest = None;
        for found in list(&self.directory)? {
            if self.known.insert(found.generation) {
                newest = found.saved_by.map(|run| (found.directory, run)).or(newest);
            }
        }
        let Some((directory, run)) = newest else { return Ok(()) };
        let message = "another job of this name saves its checkpoints here";
        Err(Error::new(ErrorKind::Unavailable, message)
            .with("checkpoint", directory.display())
            .with("saved by", run)
            .hint("stop one of the two; give it another name with --job"))
    }

    fn write_holder(&mut self) {
        let Some(file) = &mut self.lock else { return };
        // A file that cannot be written leaves a message without a name, and nothing else.
        let _ = toml::to_string(&self.holder).map_err(std::io::Error::other).and_then(|text| {
            file.rewind()?;
            file.set_len(0)?;
            file.write_all(text.as_bytes())
        });
    }
}

fn open_lock(directory: &Path) -> std::io::Result<File> {
    if let Some(above) = directory.parent() {
        std::fs::create_dir_all(above)?;
    }
    private_directory(directory)?;
    // NFS locks only files that are open for writing.
    open_private(&directory.join("owner"), |options| options.read(true).write(true).create(true))
}

/// Locks the file, and waits for a holder that may be about to end.
fn lock(file: &mut File, directory: &Path, pulse: &Pulse) -> rustix::io::Result<()> {
    let begin = Instant::now();
    let mut patience = PATIENCE;
    let mut has_told = false;
    loop {
        match rustix::fs::flock(&*file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) if begin.elapsed() < patience => {
                if !has_told {
                    has_told = true;
                    let holder = read_holder(file);
                    if holder.as_ref().is_some_and(|it| it.owner.boot_id != boot_id()) {
                        patience = PATIENCE_WITH_OTHER_HOSTS;
                    }
                    let seconds = patience.as_secs();
                    let path = directory.display();
                    let holder = describe(holder.as_ref());
                    tracing::info!("{path}: waiting up to {seconds} s for {holder} to end");
                }
                std::thread::sleep(Duration::from_millis(20));
                pulse.beat();
            }
            locked => return locked,
        }
    }
}

fn is_held(file: &mut File, job: &str, directory: &Path) -> Error {
    let held = format!("job `{job}` is alive, and its checkpoints are in this directory");
    Error::new(ErrorKind::Unavailable, held)
        .with("path", directory.display())
        .with("held by", describe(read_holder(file).as_ref()))
        .hint(
            "wait for it, stop it, give this job another name with --job, or name another \
             checkpoint.dir",
        )
}

fn read_holder(file: &mut File) -> Option<Holder> {
    let mut text = String::new();
    file.rewind().and_then(|()| file.read_to_string(&mut text)).ok()?;
    toml::from_str(&text).ok()
}

fn describe(holder: Option<&Holder>) -> String {
    let Some(Holder { run, since, owner: Owner { rank, ranks, host, pid, .. } }) = holder else {
        return "an owner that left no readable name".to_owned();
    };
    let run = if run.is_empty() { "that is starting" } else { run };
    format!("rank {rank} of {ranks}, process {pid} on {host}, run {run}, since {since}")
}

fn warn_of_no_lock(directory: &Path, why: &dyn std::fmt::Display) {
    tracing::warn!(
        "{}: the checkpoints cannot be locked ({why}); start no second job of this name while this \
         one lives",
        directory.display()
    );
}
