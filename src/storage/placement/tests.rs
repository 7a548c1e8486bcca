//! No unit has two owners, whatever is written in whatever order; and what is committed stays.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;
use crate::storage::Slots;
use crate::units::ChunkIndex;

const UNIT: u64 = 64 << 10;

fn extents(extent_bytes: &[u64]) -> impl Iterator<Item = ExtentIndex> {
    (0..extent_bytes.len()).map(ExtentIndex::from_index)
}

/// Every unit once: in the table, free, or taken for a write.
fn check_owners(placement: &Placement) {
    let table = placement.table();
    let mut owners: Vec<u32> = table.units.clone();
    owners.extend(&table.free);
    for (extent, deal) in &table.in_flight {
        let own = &table.units[placement.places_of(ExtentIndex::from_index(*extent))];
        owners.extend(deal.units.iter().filter(|unit| !own.contains(unit)));
        let different: HashSet<&u32> = deal.units.iter().collect();
        assert_eq!(different.len(), own.len(), "a unit twice in one extent");
    }
    owners.sort_unstable();
    let all: Vec<u32> = (0..*placement.first_unit.last().unwrap()).collect();
    assert_eq!(owners, all, "a unit with two owners, or with none");
}

fn units_of(segments: &[Segment]) -> HashSet<(DriveIndex, u64)> {
    let of_one = |segment: &Segment| {
        let end = segment.file_offset + segment.len as u64;
        let drive = segment.drive;
        (segment.file_offset / UNIT..end.div_ceil(UNIT)).map(move |unit| (drive, unit))
    };
    segments.iter().flat_map(of_one).collect()
}

fn write(placement: &Placement, extent: ExtentIndex) {
    placement.begin_write(extent);
    placement.end_write(extent, true);
}

fn units_per_drive(placement: &Placement, of: &[ExtentIndex]) -> Vec<usize> {
    let mut counts = vec![0; placement.drive_bytes().len()];
    for extent in of {
        for (drive, _) in units_of(&placement.segments(*extent)) {
            counts[drive.index()] += 1;
        }
    }
    counts
}

#[test]
fn one_drive_is_read_in_one_piece() {
    let placement = Placement::weighted(&[3 * UNIT, UNIT / 2], UNIT, &[1.0], 0, 0.25);
    let whole =
        Segment { drive: DriveIndex(0), file_offset: 0, extent_offset: 0, len: 3 * UNIT as usize };
    assert_eq!(placement.segments(ExtentIndex(0)), [whole]);
    assert_eq!(placement.segments(ExtentIndex(1))[0].file_offset, 3 * UNIT);
    assert_eq!(placement.drive_bytes(), [5 * UNIT]);
}

#[test]
fn a_drive_of_weight_zero_holds_nothing() {
    let placement = Placement::weighted(&[10 * UNIT], UNIT, &[1.0, 0.0, 1.0], 1, 0.2);
    assert_eq!(placement.drive_bytes(), [6 * UNIT, 0, 6 * UNIT]);
    assert_eq!(placement.reweigh(&[1.0, 5.0, 1.0]).given, [0.5, 0.0, 0.5], "nor ever will");
}

#[test]
fn one_sweep_moves_everything_to_new_shares_and_the_next_one_nothing() {
    let sizes = vec![12 * UNIT; 40];
    let all: Vec<ExtentIndex> = extents(&sizes).collect();
    let placement = Placement::weighted(&sizes, UNIT, &[1.0; 4], 0, 0.25);
    let before: Vec<_> = all.iter().map(|it| placement.segments(*it)).collect();
    all.iter().for_each(|extent| write(&placement, *extent));
    let after: Vec<_> = all.iter().map(|it| placement.segments(*it)).collect();
    assert_eq!(before, after, "no news, no moves");

    let shares = placement.reweigh(&[1.0, 1.0, 0.25, 1.0]);
    assert!(!shares.are_bound());
    all.iter().for_each(|extent| write(&placement, *extent));
    check_owners(&placement);
    assert_eq!(units_per_drive(&placement, &all), [148, 148, 37, 147]);
    for extent in &all {
        let counts = units_per_drive(&placement, &[*extent]);
        assert!(counts[2] <= 1 && counts[0] >= 3, "{extent} is not dealt evenly: {counts:?}");
    }
    let moved: Vec<_> = all.iter().map(|it| placement.segments(*it)).collect();
    all.iter().for_each(|extent| write(&placement, *extent));
    let after: Vec<_> = all.iter().map(|it| placement.segments(*it)).collect();
    assert_eq!(moved, after, "in place again");
}

#[test]
fn what_does_not_fit_is_moved_as_far_as_it_does() {
    let sizes = vec![12 * UNIT; 40];
    let all: Vec<ExtentIndex> = extents(&sizes).collect();
    let placement = Placement::weighted(&sizes, UNIT, &[1.0; 3], 0, 0.25);
    let shares = placement.reweigh(&[300.0, 300.0, 30.0]);
    assert!(shares.are_bound());
    all.iter().for_each(|extent| write(&placement, *extent));
    assert_eq!(units_per_drive(&placement, &all), [200, 200, 80]);
}

/// A shard as its drives have it, and what its chunks must read back.
struct Shard {
    sizes: Vec<u64>,
    drives: usize,
    headroom: f64,
    is_durable: bool,
    placement: Placement,
    slots: Slots,
    /// Which write of which chunk each unit has; `u32::MAX` while it is being written.
    bytes: HashMap<(DriveIndex, u64), u32>,
    /// The newest write of every chunk; 0 for none that can be read back.
    newest: Vec<u32>,
    committed: Option<Commit>,
    in_flight: Vec<(ChunkIndex, Vec<Segment>, u32)>,
}

#[derive(Clone)]
struct Commit {
    slots: Vec<u8>,
    moved: MovedUnits,
    shares: Vec<f64>,
    newest: Vec<u32>,
}

impl Shard {
    fn new(chunks: usize, sizes: Vec<u64>, drives: usize, headroom: f64, is_durable: bool) -> Self {
        Self {
            placement: Placement::weighted(&sizes, UNIT, &vec![1.0; drives], 1, headroom),
            sizes,
            drives,
            headroom,
            is_durable,
            slots: Slots::new(chunks, is_durable),
            bytes: HashMap::new(),
            newest: vec![0; chunks],
            committed: None,
            in_flight: Vec::new(),
        }
    }

    fn new_placement(&self) -> Placement {
        Placement::weighted(&self.sizes, UNIT, &vec![1.0; self.drives], 1, self.headroom)
    }

    fn is_in_flight(&self, chunk: ChunkIndex) -> bool {
        self.in_flight.iter().any(|(busy, ..)| *busy == chunk)
    }

    fn reweigh(&mut self, random: u32) {
        let weight = |drive: usize| f64::from(random.rotate_left(8 * drive as u32) % 9) + 0.1;
        self.placement.reweigh(&(0..self.drives).map(weight).collect::<Vec<_>>());
    }

    fn begin_write(&mut self, chunk: ChunkIndex, made: u32) {
        if self.is_in_flight(chunk) {
            return;
        }
        let segments = self.placement.begin_write(self.slots.write_extent(chunk));
        self.bytes.extend(units_of(&segments).into_iter().map(|unit| (unit, u32::MAX)));
        self.in_flight.push((chunk, segments, made));
    }

    fn end_write(&mut self, must_succeed: bool, random: u32) {
        if self.in_flight.is_empty() {
            return;
        }
        let (chunk, segments, made) =
            self.in_flight.swap_remove(random as usize % self.in_flight.len());
        // A scratch job whose write has failed is over.
        let has_moved = must_succeed || !self.is_durable || !random.is_multiple_of(5);
        self.placement.end_write(self.slots.write_extent(chunk), has_moved);
        if has_moved {
            self.bytes.extend(units_of(&segments).into_iter().map(|unit| (unit, made)));
            self.newest[chunk.index()] = made;
            self.slots.mark_written(chunk);
        } else if self.slots.read_extent(chunk) == self.slots.write_extent(chunk) {
            // It was written in place, so it cannot be read before it is written again.
            self.newest[chunk.index()] = 0;
        }
    }

    /// Commits, and then sometimes goes back to the commit, with this placement or a new one.
    fn commit(&mut self, random: u32) {
        if !self.is_durable || !self.in_flight.is_empty() || self.newest.contains(&0) {
            return;
        }
        self.slots.commit();
        let moved = self.placement.moved_units(&self.slots.committed_extents());
        let (slots, newest) = (self.slots.committed().to_vec(), self.newest.clone());
        let commit = Commit { slots, moved, shares: self.placement.shares(), newest };
        if random.is_multiple_of(3) {
            self.placement = self.new_placement();
        }
        if random.is_multiple_of(2) || random.is_multiple_of(3) {
            self.slots = Slots::from_committed(commit.slots.clone());
            let extents = self.slots.committed_extents();
            self.placement.restore(&extents, &commit.moved, &commit.shares).unwrap();
            self.newest.clone_from(&commit.newest);
        }
        self.committed = Some(commit);
    }

    /// What is committed can be read back after a crash, whatever is in flight.
    fn check_committed(&self) {
        let Some(commit) = &self.committed else { return };
        let after_crash = self.new_placement();
        let extents = Slots::from_committed(commit.slots.clone()).committed_extents();
        after_crash.restore(&extents, &commit.moved, &commit.shares).unwrap();
        check_owners(&after_crash);
        for (chunk, extent) in extents.iter().enumerate() {
            for unit in units_of(&after_crash.segments(*extent)) {
                assert_eq!(self.bytes.get(&unit), Some(&commit.newest[chunk]));
            }
        }
    }

    /// A chunk that is not being written lies where the table says.
    fn check_written(&self) {
        for chunk in (0..self.newest.len()).map(ChunkIndex::from_index) {
            let newest = self.newest[chunk.index()];
            if self.is_in_flight(chunk) || newest == 0 {
                continue;
            }
            for unit in units_of(&self.placement.segments(self.slots.read_extent(chunk))) {
                assert_eq!(self.bytes.get(&unit), Some(&newest));
            }
        }
    }
}

proptest! {
    #[test]
    fn at_first_no_unit_has_two_owners_and_none_is_missing(
        extent_blocks in prop::collection::vec(1u64..200, 0..20),
        weights in prop::collection::vec(0.05f64..10.0, 1..6),
        first_drive in 0usize..8,
        headroom in 0.0f64..0.5,
    ) {
        let extent_bytes: Vec<u64> = extent_blocks.iter().map(|n| n * 4096).collect();
        let placement =
            Placement::weighted(&extent_bytes, UNIT, &weights, first_drive, headroom);
        check_owners(&placement);
        for extent in extents(&extent_bytes) {
            let mut covered = 0;
            for segment in placement.segments(extent) {
                prop_assert_eq!(segment.extent_offset, covered);
                covered += segment.len;
                let end = segment.file_offset + segment.len as u64;
                prop_assert!(end <= placement.drive_bytes()[segment.drive.index()]);
            }
            prop_assert_eq!(covered as u64, extent_bytes[extent.index()]);
        }
    }

    /// Writes in any order, some on their way at the same time, some that fail, under any weights,
    /// with commits and with crashes that leave only the record. Each unit holds what was last
    /// written to it, so bytes are followed, not owners alone.
    #[test]
    fn what_is_committed_is_never_written_and_comes_back_from_its_record(
        extent_units in prop::collection::vec(1u64..9, 1..8),
        drives in 1usize..5,
        headroom in 0.0f64..0.6,
        is_durable in any::<bool>(),
        events in prop::collection::vec((0u8..8, any::<u32>(), any::<u32>()), 0..120),
    ) {
        let sizes: Vec<u64> = extent_units.iter().map(|units| units * UNIT - 4096).collect();
        let sizes = sizes.repeat(if is_durable { 2 } else { 1 });
        let mut shard = Shard::new(extent_units.len(), sizes, drives, headroom, is_durable);
        for (number, (what, which, other)) in events.into_iter().enumerate() {
            let chunk = ChunkIndex::from_index(which as usize % extent_units.len());
            match what {
                0 => shard.reweigh(other),
                1..=4 => shard.begin_write(chunk, number as u32 + 1),
                5 | 6 => shard.end_write(what == 5, other),
                _ => shard.commit(which),
            }
            check_owners(&shard.placement);
            shard.check_committed();
            shard.check_written();
        }
    }

    #[test]
    fn no_record_makes_a_placement_with_two_owners(
        at in prop::collection::vec(0u32..8, 0..4),
        units in prop::collection::vec(0u32..40, 0..12),
        shares in prop::collection::vec(-0.1f64..1.0, 1..4),
    ) {
        let sizes = [2 * UNIT, 3 * UNIT, UNIT, 2 * UNIT, 3 * UNIT, UNIT];
        let placement = Placement::weighted(&sizes, UNIT, &[1.0, 2.0], 0, 0.25);
        let committed = Slots::new(3, true).committed_extents();
        let moved = MovedUnits { extents: at, units };
        let _ = placement.restore(&committed, &moved, &shares);
        check_owners(&placement);
    }
}
