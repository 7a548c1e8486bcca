//! Placement: which stripe unit of which drive holds which bytes of which extent.
//!
//! At first it is weighted RAID-0: units are dealt to drives one by one so that at any moment each
//! drive holds its share. The table is explicit, because a unit may later move to another drive.

use crate::units::{DriveIndex, ExtentIndex};

/// One contiguous piece of I/O: bytes of an extent and where they lie on a drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The drive.
    pub drive: DriveIndex,
    /// Byte offset in the shard's file on that drive.
    pub file_offset: u64,
    /// Byte offset within the extent.
    pub extent_offset: usize,
    /// Length in bytes.
    pub len: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Unit {
    drive: DriveIndex,
    file_offset: u64,
}

/// The table (extent) -> stripe units of one shard.
#[derive(Clone, Debug)]
pub struct Placement {
    unit_bytes: u64,
    extent_bytes: Vec<u64>,
    /// The first unit of each extent; every extent starts a new unit, so no unit has two owners.
    first_unit: Vec<usize>,
    units: Vec<Unit>,
    drive_bytes: Vec<u64>,
}

impl Placement {
    /// Deals the units of all extents to the drives by weight. `first_drive` rotates ties, so that
    /// shards of few units do not all begin on the same drive. Weights are finite, not negative,
    /// and not all zero; the configuration sees to it.
    pub fn weighted(
        extent_bytes: &[u64],
        unit_bytes: u64,
        weights: &[f64],
        first_drive: usize,
    ) -> Self {
        let mut placement = Self {
            unit_bytes,
            extent_bytes: extent_bytes.to_vec(),
            first_unit: Vec::with_capacity(extent_bytes.len()),
            units: Vec::new(),
            drive_bytes: vec![0; weights.len()],
        };
        for bytes in extent_bytes {
            placement.first_unit.push(placement.units.len());
            for _ in 0..bytes.div_ceil(unit_bytes) {
                let drive = placement.next_drive(weights, first_drive);
                let file_offset = placement.drive_bytes[drive];
                placement.units.push(Unit { drive: DriveIndex::from_index(drive), file_offset });
                placement.drive_bytes[drive] += unit_bytes;
            }
        }
        placement
    }

    /// The drive that would be least loaded, relative to its weight, with one more unit.
    fn next_drive(&self, weights: &[f64], first_drive: usize) -> usize {
        let drives = weights.len();
        let load_after = |drive: usize| {
            ((self.drive_bytes[drive] / self.unit_bytes + 1) as f64) / weights[drive]
        };
        let in_turn = (0..drives).map(|turn| (first_drive + turn) % drives);
        in_turn
            .filter(|drive| weights[*drive] > 0.0)
            .min_by(|a, b| load_after(*a).total_cmp(&load_after(*b)))
            .unwrap_or(0)
    }

    /// Bytes that the shard's file on each drive must have.
    pub fn drive_bytes(&self) -> &[u64] {
        &self.drive_bytes
    }

    /// Bytes of one extent.
    pub fn extent_bytes(&self, extent: ExtentIndex) -> u64 {
        self.extent_bytes[extent.index()]
    }

    /// The I/O of one extent, in its order; neighbours in file and extent are joined.
    pub fn segments(&self, extent: ExtentIndex) -> Vec<Segment> {
        let mut segments: Vec<Segment> = Vec::new();
        let mut extent_offset = 0u64;
        let extent_bytes = self.extent_bytes(extent);
        for unit in &self.units[self.first_unit[extent.index()]..] {
            if extent_offset >= extent_bytes {
                break;
            }
            let len = self.unit_bytes.min(extent_bytes - extent_offset) as usize;
            match segments.last_mut() {
                Some(last)
                    if last.drive == unit.drive
                        && last.file_offset + last.len as u64 == unit.file_offset =>
                {
                    last.len += len;
                }
                _ => segments.push(Segment {
                    drive: unit.drive,
                    file_offset: unit.file_offset,
                    extent_offset: extent_offset as usize,
                    len,
                }),
            }
            extent_offset += len as u64;
        }
        segments
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    const UNIT: u64 = 64 << 10;

    fn extents(extent_bytes: &[u64]) -> impl Iterator<Item = ExtentIndex> {
        (0..extent_bytes.len()).map(ExtentIndex::from_index)
    }

    #[test]
    fn one_drive_is_read_in_one_piece() {
        let placement = Placement::weighted(&[3 * UNIT, UNIT / 2], UNIT, &[1.0], 0);
        let whole = Segment {
            drive: DriveIndex(0),
            file_offset: 0,
            extent_offset: 0,
            len: 3 * UNIT as usize,
        };
        assert_eq!(placement.segments(ExtentIndex(0)), [whole]);
        assert_eq!(placement.segments(ExtentIndex(1))[0].file_offset, 3 * UNIT);
        assert_eq!(placement.drive_bytes(), [4 * UNIT]);
    }

    #[test]
    fn a_drive_of_weight_zero_holds_nothing() {
        let placement = Placement::weighted(&[10 * UNIT], UNIT, &[1.0, 0.0, 1.0], 1);
        assert_eq!(placement.drive_bytes(), [5 * UNIT, 0, 5 * UNIT]);
    }

    proptest! {
        #[test]
        fn no_unit_has_two_owners_and_none_is_missing(
            extent_blocks in prop::collection::vec(1u64..200, 0..20),
            weights in prop::collection::vec(0.05f64..10.0, 1..6),
            first_drive in 0usize..8,
        ) {
            let extent_bytes: Vec<u64> = extent_blocks.iter().map(|n| n * 4096).collect();
            let placement = Placement::weighted(&extent_bytes, UNIT, &weights, first_drive);
            let mut owned = HashSet::new();
            for extent in extents(&extent_bytes) {
                let mut covered = 0;
                for segment in placement.segments(extent) {
                    prop_assert_eq!(segment.extent_offset, covered);
                    covered += segment.len;
                    let end = segment.file_offset + segment.len as u64;
                    prop_assert!(end <= placement.drive_bytes()[segment.drive.index()]);
                    for unit in segment.file_offset / UNIT..end.div_ceil(UNIT) {
                        prop_assert!(owned.insert((segment.drive, unit)), "two owners");
                    }
                }
                prop_assert_eq!(covered as u64, extent_bytes[extent.index()]);
            }
            let units: u64 = placement.drive_bytes().iter().map(|bytes| bytes / UNIT).sum();
            prop_assert_eq!(owned.len() as u64, units);
        }

        #[test]
        fn every_drive_holds_its_share(
            units in 1u64..500,
            weights in prop::collection::vec(0.1f64..10.0, 1..6),
        ) {
            let placement = Placement::weighted(&[units * UNIT], UNIT, &weights, 0);
            let sum: f64 = weights.iter().sum();
            for (bytes, weight) in placement.drive_bytes().iter().zip(&weights) {
                let ideal = units as f64 * weight / sum;
                let given = (bytes / UNIT) as f64;
                prop_assert!((given - ideal).abs() < weights.len() as f64, "{given} of {ideal}");
            }
        }
    }
}
