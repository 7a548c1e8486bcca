//! The drives' weights at the start of a job: as configured, as measured before, or equal.

use crate::config::Config;
use crate::coord::{Communicator, Topology, gather_alike};
use crate::error::Result;
use crate::storage::{Drive, DriveProfile, normalized};

/// Collective: the weights of this node's drives, the same on all of its ranks. The log says where
/// they come from.
///
/// # Errors
/// Peer, not agreed, if another rank does not come in time.
pub(super) fn starting_weights(
    config: &Config,
    drives: &[Drive],
    comm: &dyn Communicator,
    topology: &Topology,
) -> Result<Vec<f64>> {
    let (mine, source) = match config.drives.weights.as_slice() {
        [] => measured_weights(drives),
        weights => (weights.to_vec(), "as configured"),
    };
    // A profile may be written at this moment, so that ranks read different ones. The first rank's
    // weights count.
    let mine = (mine, source.to_owned());
    let all = gather_alike(comm, &mine)?;
    let first = topology.local_ranks().next().unwrap_or(comm.rank());
    let (weights, source) = all.of(first).unwrap_or(&mine);
    if drives.len() > 1 {
        let mut shares = Vec::with_capacity(drives.len());
        for (share, drive) in normalized(weights).into_iter().zip(drives) {
            shares.push(format!("{} {:.1} %", drive.root.display(), 100.0 * share));
        }
        tracing::info!("shares of the drives, {source}: {}", shares.join(", "));
    }
    Ok(weights.clone())
}

/// The weights of the drives' profiles if every drive has one, otherwise equal weights. Directories
/// on one disk share the weight of the disk.
fn measured_weights(drives: &[Drive]) -> (Vec<f64>, &'static str) {
    let on_disk = |drive: &Drive| drives.iter().filter(|it| it.disk == drive.disk).count();
    let divided = |weight: f64, drive: &Drive| weight / on_disk(drive) as f64;
    let profile = |drive: &Drive| {
        let read = DriveProfile::read(&drive.root);
        read.inspect_err(|error| tracing::warn!("{error}")).ok().flatten()
    };
    let profiles: Option<Vec<DriveProfile>> = drives.iter().map(profile).collect();
    let Some(profiles) = profiles else {
        let equal = drives.iter().map(|drive| divided(1.0, drive));
        return (equal.collect(), "equal, as not every drive has been probed");
    };
    let weight = |(drive, profile): (&Drive, DriveProfile)| {
        // What was measured while all worked together is divided already.
        if profile.mixed_together_bytes_per_s == 0.0 {
            divided(profile.weight(), drive)
        } else {
            profile.weight()
        }
    };
    let weights = drives.iter().zip(profiles).map(weight);
    (weights.collect(), "by what probing them has measured")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn profiles_count_if_every_drive_has_one_and_one_device_is_shared() {
        let folder = tempfile::tempdir().unwrap();
        let drive = |name: &str, disk: &str, device: u64| {
            let root = folder.path().join(name);
            std::fs::create_dir_all(&root).unwrap();
            let (disk, filesystem) = (disk.to_owned(), "ext4".to_owned());
            Drive { root, device, disk, filesystem, ..Drive::default() }
        };
        let drives = [drive("a", "nvme0n1", 1), drive("b", "nvme1n1", 2), drive("c", "nvme1n1", 3)];
        assert_eq!(measured_weights(&drives).0, [1.0, 0.5, 0.5]);
        let probe = |root: &Path, mixed: f64, together: f64| {
            let profile = DriveProfile {
                read_bytes_per_s: mixed,
                write_bytes_per_s: mixed,
                mixed_bytes_per_s: mixed,
                mixed_together_bytes_per_s: together,
                ..DriveProfile::default()
            };
            profile.write(root).unwrap();
        };
        probe(&drives[0].root, 8e9, 0.0);
        probe(&drives[1].root, 4e9, 0.0);
        assert_eq!(measured_weights(&drives).0, [1.0, 0.5, 0.5], "one drive has none");
        probe(&drives[2].root, 4e9, 1e9);
        let (weights, source) = measured_weights(&drives);
        assert_eq!(weights, [8e9, 2e9, 1e9]);
        assert!(source.contains("prob"), "{source}");
    }
}
