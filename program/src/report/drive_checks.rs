//! What was found on drives, and what that means for optswap. The facts are given; only whether two
//! names are of one directory is looked up here.

use std::path::{Path, PathBuf};

use super::checks::{Check, State};
use optswap::internals::config::MachineFacts;
use optswap::internals::error::Error;
use optswap::internals::storage::{Device, Drive, DriveProfile, DriveTrial, is_local_filesystem};
use optswap::internals::units::Bytes;

/// Files and directories for some ranks, and for what they have beside their state.
const INODES_MIN: u64 = 100;

/// One drive, as far as it could be looked at.
#[derive(Debug)]
pub struct ExaminedDrive {
    /// The directory that the user named.
    pub root: PathBuf,
    /// What optswap would say of it.
    pub inspected: Result<Drive, Error>,
    /// Where it lies.
    pub device: Option<Device>,
    /// What it did with a small file; none if it was not tried.
    pub trial: Option<DriveTrial>,
    /// Its profile; none if it was not looked for.
    pub profile: Option<Result<Option<DriveProfile>, Error>>,
}

/// What the drives are like, each by itself and together.
pub fn drive_checks(drives: &[ExaminedDrive], facts: &MachineFacts) -> Vec<Check> {
    let mut checks = Vec::new();
    for (index, examined) in drives.iter().enumerate() {
        let root = examined.root.display();
        match &examined.inspected {
            Ok(drive) => checks.push(one_drive(drive, examined.device.as_ref(), facts)),
            Err(error) => checks.push(Check::of_error(format!("drive {root}"), error)),
        }
        if let Some(trial) = &examined.trial {
            checks.extend(trial_checks(&examined.root, trial));
        }
        checks.extend(examined.profile.as_ref().map(|it| profile_check(&examined.root, it)));
        let earlier = &drives[..index];
        checks.extend(earlier.iter().find_map(|twin| shared(twin, examined)));
    }
    checks
}

fn one_drive(drive: &Drive, device: Option<&Device>, facts: &MachineFacts) -> Check {
    let name = format!("drive {}", drive.root.display());
    let device = device.cloned().unwrap_or_default();
    let params = drive.free_bytes / 12 / 1_000_000;
    let found = format!(
        "{} on {}, {} free (12 bytes each: {params} million parameters)",
        drive.filesystem,
        device.name,
        Bytes(drive.free_bytes).human()
    );
    let near = facts.nodes_allowed();
    if drive.free_bytes < 1 << 30 {
        return Check::warning(name, found, "free some space, or name another drive");
    }
    if let Some(inodes) = drive.free_inodes.filter(|inodes| *inodes < INODES_MIN) {
        return Check::warning(
            name,
            format!("{found}, but only {inodes} free inodes: a rank takes up to six"),
            "remove small files, or make the file system with more inodes",
        );
    }
    if !is_local_filesystem(&drive.filesystem) {
        return Check::warning(
            name,
            format!("{found}; this is no local drive's own file system"),
            "name a directory on a local drive; in a container, mount it from the host",
        );
    }
    match (device.numa_node, device.rotates) {
        (Some(node), _) if !near.is_empty() && !near.contains(&node) => Check::warning(
            name,
            format!("{found}; attached to NUMA node {node}, this process runs on {near:?}"),
            format!("give the ranks that use it processors of NUMA node {node}"),
        ),
        (_, Some(true)) => Check::warning(
            name,
            format!("{found}; the kernel takes {} for a rotating disk", device.disk),
            "name an NVMe drive if there is one; a virtual disk may only look like this",
        ),
        (Some(node), _) => Check::ok(name, format!("{found}, NUMA node {node}")),
        _ => Check::ok(name, found),
    }
}

fn trial_checks(root: &Path, trial: &DriveTrial) -> Vec<Check> {
    let name = |what: &str| format!("{what} on {}", root.display());
    let locks = match &trial.locks {
        Ok(()) => Check::ok(name("file locks"), "work"),
        Err(error) => Check::warning(
            name("file locks"),
            format!(
                "none: {error}; nothing keeps two jobs of one name apart that run on two machines"
            ),
            "mount the file system with locks (Lustre: -o flock), or name a local drive",
        ),
    };
    let direct = match &trial.direct {
        Ok(()) => Check::ok(name("direct I/O"), "works"),
        Err(error) => Check::warning(
            name("direct I/O"),
            format!("refused: {error}; I/O goes through the page cache, which takes memory"),
            "use a file system with direct I/O, such as xfs or ext4",
        ),
    };
    let alignment = match trial.alignment {
        None => Check::ok(name("alignment"), "not told; optswap keeps to 4096 bytes"),
        Some(align) if 4096 % align == 0 => {
            Check::ok(name("alignment"), format!("{align} bytes; optswap keeps to 4096"))
        }
        Some(align) => Check::problem(
            name("alignment"),
            format!("{align} bytes, but optswap keeps to 4096"),
            "format the drive with sectors of at most 4096 bytes",
        ),
    };
    let preallocation = match &trial.preallocation {
        Ok(()) => Check::ok(name("preallocation"), "works"),
        Err(error) => Check::warning(
            name("preallocation"),
            format!("refused: {error}; new files are written with zeros instead"),
            "free space on the drive; use a file system with fallocate, such as xfs or ext4",
        ),
    };
    let overwriting = if trial.overwrites_in_place {
        Check::ok(name("overwriting"), "in place")
    } else {
        Check::warning(
            name("overwriting"),
            "to new places: a job needs twice the space, and none can be set aside",
            "use a file system that overwrites in place, such as xfs or ext4",
        )
    };
    let flushing = match &trial.flushing {
        Ok(()) => Check::ok(name("flushing"), "works"),
        Err(error) => Check::warning(
            name("flushing"),
            format!("refused: {error}; commits with durability.sync would fail"),
            "use a file system that flushes files and directories, such as xfs or ext4",
        ),
    };
    vec![locks, direct, alignment, preallocation, overwriting, flushing]
}

fn profile_check(root: &Path, profile: &Result<Option<DriveProfile>, Error>) -> Check {
    let name = format!("profile of {}", root.display());
    match profile {
        Ok(Some(profile)) => {
            let gb = |bytes_per_s: f64| bytes_per_s / 1e9;
            let found = format!(
                "reads {:.2} GB/s, writes {:.2} GB/s, both at once {:.2} GB/s",
                gb(profile.read_bytes_per_s),
                gb(profile.write_bytes_per_s),
                gb(profile.mixed_bytes_per_s)
            );
            Check::ok(name, found)
        }
        Ok(None) => Check::ok(name, "none yet: optswap probe measures what the drive can do"),
        Err(error) => Check { state: State::Warning, ..Check::of_error(name, error) },
    }
}

/// What two drives have in common that they should not.
fn shared(first: &ExaminedDrive, second: &ExaminedDrive) -> Option<Check> {
    let [a, b] = [&first.root, &second.root];
    let name = format!("{} and {}", a.display(), b.display());
    let is_same = matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b);
    if is_same {
        return Some(Check::problem(name, "the same directory", "name each drive once"));
    }
    let disk = &first.device.as_ref()?.disk;
    (*disk == second.device.as_ref()?.disk).then(|| {
        let found = format!("both lie on {disk}: striping over both gains nothing");
        Check::warning(name, found, "name one directory on each drive")
    })
}
