//! Placement: which stripe unit of which drive holds which bytes of which extent.
//!
//! At first this is weighted RAID-0. Later, extents move: when one is written and the drives'
//! shares have changed since it was dealt last, it is dealt again, to units that it owns and to
//! free ones, of which every file has some. It is read where it was last written. A unit that it
//! gives up is free when its replacement has been written. So the units of a committed slot, which
//! is never written, stay the same.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::shares::{Dealer, normalized, shares_within};
use crate::units::{DriveIndex, ExtentIndex};

/// One contiguous piece of I/O: bytes of an extent and their position on a drive.
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

/// The units of extents that have moved since they were dealt at first, as a record stores them: 4
/// bytes for each such extent and 4 for each of its units.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovedUnits {
    /// Indices into the list of extents that was asked about, ascending.
    pub extents: Vec<u32>,
    /// Their units, extent by extent; counted over all drives, headroom included.
    pub units: Vec<u32>,
}

/// The drives' shares that follow from new weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Shares {
    /// The shares that the weights ask for.
    pub wanted: Vec<f64>,
    /// The shares for which the files have room.
    pub given: Vec<f64>,
}

impl Shares {
    /// Whether a drive would get more if its file were larger.
    pub fn are_bound(&self) -> bool {
        self.wanted.iter().zip(&self.given).any(|(wanted, given)| given + 1e-3 < *wanted)
    }
}

/// The table (extent) -> stripe units of one shard. Threads may share it.
#[derive(Debug)]
pub struct Placement {
    unit_bytes: u64,
    /// The byte of each drive's file at which its units begin.
    first_byte: Vec<u64>,
    extent_bytes: Vec<u64>,
    /// The index of each extent's first unit in the table; one more at the end.
    first_place: Vec<usize>,
    /// The number of each drive's first unit; one more at the end.
    first_unit: Vec<u32>,
    /// How the extents were dealt at first.
    first_deal: Dealer,
    table: Mutex<Table>,
}

/// Every unit is either free, or once in `units`, or taken by a write in flight.
#[derive(Clone, Debug)]
struct Table {
    /// The units of all extents, extent by extent.
    units: Vec<u32>,
    free: BTreeSet<u32>,
    dealer: Dealer,
    /// How many times the shares have changed.
    version: u32,
    /// The version by which each extent was dealt.
    dealt_at: Vec<u32>,
    /// The version whose dealer counts the units that an extent has.
    counted_at: Vec<u32>,
    is_moved: Vec<bool>,
    /// The new units of extents that are being written to other units than they have now.
    in_flight: HashMap<usize, Deal>,
}

#[derive(Clone, Debug)]
struct Deal {
    units: Vec<u32>,
    /// Every unit came to the drive that its share asked for.
    is_complete: bool,
    version: u32,
}

impl Placement {
    /// Deals the units of all extents to the drives by weight. Of drives with the same load,
    /// `first_drive` comes first, so that shards of few units do not all begin on the same drive.
    /// Weights must be finite, not negative, and not all zero, as the configuration makes sure. On
    /// every drive that is used, more units are free: `headroom` as a fraction of those dealt.
    pub fn weighted(
        extent_bytes: &[u64],
        unit_bytes: u64,
        weights: &[f64],
        first_drive: usize,
        headroom: f64,
    ) -> Self {
        let first_deal = Dealer::new(normalized(weights), first_drive);
        let mut dealer = first_deal.clone();
        let units_of = |bytes: &u64| bytes.div_ceil(unit_bytes) as usize;
        let mut first_place = Vec::with_capacity(extent_bytes.len() + 1);
        first_place.push(0);
        let mut units: Vec<u32> = Vec::with_capacity(extent_bytes.iter().map(units_of).sum());
        // Of every unit the drive at first; what number it has there is known when all are dealt.
        let mut counts = vec![0u32; weights.len()];
        for bytes in extent_bytes {
            for _ in 0..units_of(bytes) {
                let drive = dealer.deal_freely();
                counts[drive] += 1;
                units.push(drive as u32);
            }
            first_place.push(units.len());
        }
        let mut first_unit = vec![0];
        for (drive, count) in counts.into_iter().enumerate() {
            let count = f64::from(count);
            let end = f64::from(first_unit[drive]) + count + (count * headroom).ceil();
            first_unit.push(end as u32);
        }
        let mut next = first_unit.clone();
        for unit in &mut units {
            let drive = *unit as usize;
            *unit = next[drive];
            next[drive] += 1;
        }
        let free = (0..weights.len()).flat_map(|drive| next[drive]..first_unit[drive + 1]);
        let table = Table {
            free: free.collect(),
            dealer,
            version: 0,
            dealt_at: vec![0; extent_bytes.len()],
            counted_at: vec![0; extent_bytes.len()],
            is_moved: vec![false; extent_bytes.len()],
            in_flight: HashMap::new(),
            units,
        };
        Self {
            unit_bytes,
            first_byte: vec![0; weights.len()],
            extent_bytes: extent_bytes.to_vec(),
            first_place,
            first_unit,
            first_deal,
            table: Mutex::new(table),
        }
    }

    /// The same placement, behind so many bytes of each drive's file that hold something else.
    pub fn behind(self, first_byte: Vec<u64>) -> Self {
        assert_eq!(first_byte.len(), self.first_byte.len(), "one for each drive");
        Self { first_byte, ..self }
    }

    /// Units of all extents together, free ones left out.
    pub fn unit_count(&self) -> usize {
        self.first_place.last().copied().unwrap_or(0)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // A panic in the middle of a change would be a defect, which ends the process.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that all units take in the shard's file on each drive, headroom included.
    pub fn drive_bytes(&self) -> Vec<u64> {
        let ends = self.first_unit.windows(2);
        ends.map(|ends| u64::from(ends[1] - ends[0]) * self.unit_bytes).collect()
    }

    /// Bytes of one extent.
    pub fn extent_bytes(&self, extent: ExtentIndex) -> u64 {
        self.extent_bytes[extent.index()]
    }

    /// Where an extent was last written, in its order. Segments that are adjacent both in the file
    /// and in the extent are joined.
    pub fn segments(&self, extent: ExtentIndex) -> Vec<Segment> {
        let table = self.table();
        self.segments_of(extent, &table.units[self.places_of(extent)])
    }

    /// Where an extent is to be written now. Until [`Self::end_write`], [`Self::segments`] stays
    /// what it was.
    pub fn begin_write(&self, extent: ExtentIndex) -> Vec<Segment> {
        let mut table = self.table();
        self.deal_again(&mut table, extent);
        let units = match table.in_flight.get(&extent.index()) {
            Some(deal) => &deal.units,
            None => &table.units[self.places_of(extent)],
        };
        self.segments_of(extent, units)
    }

    /// Enters the end of an extent's write. If all of it has been written, it lies at the new place
    /// from now on, and units that it gave up are free. If not, it lies where it did before.
    pub fn end_write(&self, extent: ExtentIndex, has_moved: bool) {
        let table = &mut *self.table();
        let Some(deal) = table.in_flight.remove(&extent.index()) else { return };
        let owned = &mut table.units[self.places_of(extent)];
        let (kept, given_up) =
            if has_moved { (deal.units, owned.to_vec()) } else { (owned.to_vec(), deal.units) };
        let still_owned: BTreeSet<u32> = kept.iter().copied().collect();
        table.free.extend(given_up.into_iter().filter(|unit| !still_owned.contains(unit)));
        owned.copy_from_slice(&kept);
        if has_moved {
            table.is_moved[extent.index()] = true;
            table.counted_at[extent.index()] = deal.version;
            if deal.is_complete {
                table.dealt_at[extent.index()] = deal.version;
            }
        }
    }

    /// Sets the weights of the drives for everything that is written from now on.
    pub fn reweigh(&self, weights: &[f64]) -> Shares {
        let mut table = self.table();
        let wanted = normalized(weights);
        let given = shares_within(&wanted, &self.rooms());
        let differ = |(a, b): (&f64, &f64)| (a - b).abs() > 1e-9;
        if given.iter().zip(table.dealer.shares()).any(differ) {
            table.version += 1;
            table.dealer = self.first_deal.with_shares(given.clone());
        }
        Shares { wanted, given }
    }

    /// The drives' shares of what is written from now on.
    pub fn shares(&self) -> Vec<f64> {
        self.table().dealer.shares().to_vec()
    }

    /// The units of those of these extents that have moved since they were dealt at first.
    pub fn moved_units(&self, extents: &[ExtentIndex]) -> MovedUnits {
        let table = self.table();
        let mut moved = MovedUnits::default();
        for (at, extent) in extents.iter().enumerate() {
            if table.is_moved[extent.index()] {
                moved.extents.push(at as u32);
                moved.units.extend(&table.units[self.places_of(*extent)]);
            }
        }
        moved
    }

    /// Goes back to a record: these extents lie where it says. The others get any other units;
    /// their contents are lost.
    ///
    /// # Errors
    /// If the record cannot be one of this placement; nothing has changed then.
    pub fn restore(
        &self,
        extents: &[ExtentIndex],
        moved: &MovedUnits,
        shares: &[f64],
    ) -> Result<(), &'static str> {
        let fits = shares.len() + 1 == self.first_unit.len()
            && shares.iter().all(|share| share.is_finite() && *share >= 0.0)
            && shares.iter().any(|share| *share > 0.0);
        if !fits {
            return Err("it has no shares of these drives");
        }
        if extents.iter().any(|extent| extent.index() >= self.extent_bytes.len()) {
            return Err("it has slots that are not there");
        }
        let mut units = self.dealt_at_first();
        let mut moved_units = moved.units.iter();
        for at in &moved.extents {
            let extent = extents.get(*at as usize).ok_or("it moves chunks that are not there")?;
            for place in self.places_of(*extent) {
                units[place] = *moved_units.next().ok_or("it does not say where all chunks lie")?;
            }
        }
        if moved_units.next().is_some() {
            return Err("it places more than there is");
        }
        let all = self.first_unit.last().copied().unwrap_or(0);
        let mut free: BTreeSet<u32> = (0..all).collect();
        let mut is_kept = vec![false; self.extent_bytes.len()];
        for extent in extents {
            is_kept[extent.index()] = true;
            if !units[self.places_of(*extent)].iter().all(|unit| free.remove(unit)) {
                return Err("it places two chunks on the same bytes, or beyond the files");
            }
        }
        let mut is_moved = vec![false; self.extent_bytes.len()];
        moved.extents.iter().for_each(|at| is_moved[extents[*at as usize].index()] = true);
        for extent in (0..self.extent_bytes.len()).filter(|extent| !is_kept[*extent]) {
            for unit in &mut units[self.places_of(ExtentIndex::from_index(extent))] {
                if !free.remove(unit) {
                    *unit = free.pop_first().ok_or("it leaves too few units")?;
                    is_moved[extent] = true;
                }
            }
        }
        let table = &mut *self.table();
        let is_first = shares == self.first_deal.shares();
        table.version += 1;
        let stale = table.version - 1;
        let is_dealt = |moved: &bool| if is_first && !moved { table.version } else { stale };
        table.dealt_at = is_moved.iter().map(is_dealt).collect();
        table.counted_at.fill(stale);
        table.dealer = self.first_deal.with_shares(shares.to_vec());
        (table.units, table.free, table.is_moved) = (units, free, is_moved);
        table.in_flight.clear();
        Ok(())
    }

    fn dealt_at_first(&self) -> Vec<u32> {
        let (mut dealer, mut next) = (self.first_deal.clone(), self.first_unit.clone());
        let places = 0..self.unit_count();
        let deal = |_| {
            let drive = dealer.deal_freely();
            next[drive] += 1;
            next[drive] - 1
        };
        places.map(deal).collect()
    }

    /// Chooses units for an extent if the shares have changed since it was dealt. Each is one of
    /// its own or a free one. If the drive whose turn it is has none, another drive takes the unit,
    /// and the extent is dealt again when it is written next.
    fn deal_again(&self, table: &mut Table, extent: ExtentIndex) {
        let index = extent.index();
        if table.dealt_at[index] == table.version || table.in_flight.contains_key(&index) {
            return;
        }
        let owned = &table.units[self.places_of(extent)];
        if table.counted_at[index] == table.version {
            owned.iter().for_each(|unit| table.dealer.take_back(self.drive_of(*unit)));
        }
        let mut own: BTreeSet<u32> = owned.iter().copied().collect();
        let mut units = Vec::with_capacity(owned.len());
        let mut is_complete = true;
        for _ in owned {
            let lowest = |of: &BTreeSet<u32>, drive: usize| {
                of.range(self.first_unit[drive]..self.first_unit[drive + 1]).next().copied()
            };
            let on = |drive: usize| lowest(&own, drive).or_else(|| lowest(&table.free, drive));
            let first_choice = table.dealer.next();
            let Some(drive) = table.dealer.deal(|drive| on(drive).is_some()) else { break };
            let Some(unit) = on(drive) else { break };
            is_complete &= drive == first_choice;
            if !own.remove(&unit) {
                table.free.remove(&unit);
            }
            units.push(unit);
        }
        let version = table.version;
        if units == *owned {
            table.counted_at[index] = version;
            table.dealt_at[index] = if is_complete { version } else { table.dealt_at[index] };
            return;
        }
        table.in_flight.insert(index, Deal { units, is_complete, version });
    }

    /// Which fraction of all units each drive has room for.
    fn rooms(&self) -> Vec<f64> {
        let all = self.unit_count().max(1) as f64;
        self.first_unit.windows(2).map(|ends| f64::from(ends[1] - ends[0]) / all).collect()
    }

    fn places_of(&self, extent: ExtentIndex) -> std::ops::Range<usize> {
        self.first_place[extent.index()]..self.first_place[extent.index() + 1]
    }

    fn drive_of(&self, unit: u32) -> usize {
        let drives = &self.first_unit[..self.first_unit.len() - 1];
        drives.partition_point(|first| *first <= unit) - 1
    }

    fn segments_of(&self, extent: ExtentIndex, units: &[u32]) -> Vec<Segment> {
        let mut segments: Vec<Segment> = Vec::new();
        let mut extent_offset = 0u64;
        let extent_bytes = self.extent_bytes(extent);
        for unit in units {
            let len = self.unit_bytes.min(extent_bytes - extent_offset) as usize;
            let number = self.drive_of(*unit);
            let drive = DriveIndex::from_index(number);
            let in_units = u64::from(unit - self.first_unit[number]) * self.unit_bytes;
            let file_offset = self.first_byte[number] + in_units;
            match segments.last_mut() {
                Some(last)
                    if last.drive == drive && last.file_offset + last.len as u64 == file_offset =>
                {
                    last.len += len;
                }
                _ => segments.push(Segment {
                    drive,
                    file_offset,
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
mod tests;
