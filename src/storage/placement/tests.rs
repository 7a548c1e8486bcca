//! No unit has two owners, whatever is written in whatever order; and what is committed stays.

use std::collections::HashSet;

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
    for (extent, deal) in &table.on_the_way {
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
        let chunks = extent_units.len();
        let sizes: Vec<u64> = extent_units.iter().map(|units| units * UNIT - 4096).collect();
        let sizes = sizes.repeat(if is_durable { 2 } else { 1 });
        let fresh = || Placement::weighted(&sizes, UNIT, &vec![1.0; drives], 1, headroom);
        let mut placement = fresh();
        let mut slots = Slots::new(chunks, is_durable);
        // What lies where: which write of which chunk.
        let mut bytes = std::collections::HashMap::new();
        let mut newest: Vec<u32> = vec![0; chunks];
        let mut committed = None;
        let mut on_the_way: Vec<(ChunkIndex, Vec<Segment>, u32)> = Vec::new();
        for (number, (what, which, other)) in events.into_iter().enumerate() {
            let chunk = ChunkIndex::from_index(which as usize % chunks);
            let is_free = on_the_way.iter().all(|(busy, ..)| *busy != chunk);
            match what {
                0 => {
                    let weight = |drive: usize| f64::from(other.rotate_left(8 * drive as u32) % 9);
                    let weights: Vec<f64> = (0..drives).map(|it| weight(it) + 0.1).collect();
                    placement.reweigh(&weights);
                }
                1..=4 if is_free => {
                    let segments = placement.begin_write(slots.write_extent(chunk));
                    for unit in units_of(&segments) {
                        bytes.insert(unit, u32::MAX);
                    }
                    on_the_way.push((chunk, segments, number as u32 + 1));
                }
                5 | 6 if !on_the_way.is_empty() => {
                    let (chunk, segments, made) =
                        on_the_way.swap_remove(other as usize % on_the_way.len());
                    // A scratch job whose write has failed is over.
                    let has_moved = what == 5 || !is_durable || other % 5 > 0;
                    placement.end_write(slots.write_extent(chunk), has_moved);
                    if has_moved {
                        bytes.extend(units_of(&segments).into_iter().map(|unit| (unit, made)));
                        newest[chunk.index()] = made;
                        slots.mark_written(chunk);
                    } else if slots.read_extent(chunk) == slots.write_extent(chunk) {
                        // It was written in place: nothing is there until it is written again.
                        newest[chunk.index()] = 0;
                    }
                }
                7 if is_durable && on_the_way.is_empty() && !newest.contains(&0) => {
                    slots.commit();
                    let moved = placement.moved_units(&slots.committed_extents());
                    let shares = placement.shares();
                    committed = Some((slots.committed().to_vec(), moved, shares, newest.clone()));
                    if which.is_multiple_of(3) {
                        placement = fresh();
                    }
                    if which.is_multiple_of(2) || which.is_multiple_of(3) {
                        let (at, moved, shares, made) = committed.clone().unwrap();
                        slots = Slots::from_committed(at);
                        let extents = slots.committed_extents();
                        placement.restore(&extents, &moved, &shares).unwrap();
                        newest = made;
                    }
                }
                _ => {}
            }
            check_owners(&placement);
            // What is committed is there, whatever is on its way.
            if let Some((at, moved, shares, made)) = &committed {
                let after_crash = fresh();
                let slots = Slots::from_committed(at.clone());
                let extents = slots.committed_extents();
                after_crash.restore(&extents, moved, shares).unwrap();
                check_owners(&after_crash);
                for (chunk, extent) in extents.iter().enumerate() {
                    for unit in units_of(&after_crash.segments(*extent)) {
                        prop_assert_eq!(bytes.get(&unit), Some(&made[chunk]));
                    }
                }
            }
            // What is not being written is where the table says.
            for chunk in (0..chunks).map(ChunkIndex::from_index) {
                let is_busy = on_the_way.iter().any(|(busy, ..)| *busy == chunk);
                if !is_busy && newest[chunk.index()] > 0 {
                    for unit in units_of(&placement.segments(slots.read_extent(chunk))) {
                        prop_assert_eq!(bytes.get(&unit), Some(&newest[chunk.index()]));
                    }
                }
            }
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
