//! Where each range of the flat space lies in the shards of a checkpoint, whatever their cut.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::state::Inventory;

/// One shard's data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardEntry {
    /// The data file; its index has `.index` behind.
    pub file: String,
    /// First element of the flat space; 0 if the shard is in pieces.
    pub flat_start: u64,
    /// Number of elements.
    pub elems: u64,
    /// Bytes of the data file.
    pub bytes: u64,
    /// If the shard is in pieces, where each begins in the flat space and how many elements it has,
    /// in the order of the shard.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pieces: Vec<[u64; 2]>,
}

/// A range of the flat space that lies in one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub flat: Range<u64>,
    pub shard: usize,
    /// The position of its first element, as the shard's index counts.
    pub position: u64,
}

/// All places, in the order of the flat space and without gaps.
#[derive(Debug)]
pub(super) struct Places {
    places: Vec<Place>,
}

impl Places {
    /// The places of an inventory's shards.
    ///
    /// # Errors
    /// Says in which way the shards do not fit each other or the inventory.
    pub fn of(inventory: &Inventory, shards: &[ShardEntry]) -> Result<Self, String> {
        let mut all = Vec::new();
        for (number, shard) in shards.iter().enumerate() {
            if shard.file.contains('/') || shard.file.is_empty() {
                return Err(format!("its shard `{}` is out of place", shard.file));
            }
            all.append(&mut places_of(number, shard)?);
        }
        // Contiguous shards are listed in the order of the flat space.
        if shards.iter().all(|shard| shard.pieces.is_empty()) {
            let out = all.iter().scan(0, |next, place| {
                let fits = place.flat.start == *next;
                *next = place.flat.end;
                Some((fits, place.shard))
            });
            if let Some((_, shard)) = out.into_iter().find(|(fits, _)| !fits) {
                return Err(format!("its shard `{}` is out of place", shards[shard].file));
            }
        }
        all.sort_by_key(|place| (place.flat.start, place.shard));
        Ok(Self { places: without_copies(inventory, all)? })
    }

    /// The place with an element of the flat space.
    pub fn at(&self, flat: u64) -> Option<&Place> {
        let place = self.places.partition_point(|place| place.flat.end <= flat);
        self.places.get(place)
    }
}

fn places_of(shard: usize, entry: &ShardEntry) -> Result<Vec<Place>, String> {
    let too_large = || "its shards are too large".to_owned();
    let end = |start: u64, elems: u64| start.checked_add(elems).ok_or_else(too_large);
    if entry.pieces.is_empty() {
        let flat = entry.flat_start..end(entry.flat_start, entry.elems)?;
        return Ok(vec![Place { flat, shard, position: entry.flat_start }]);
    }
    let (mut places, mut position) = (Vec::with_capacity(entry.pieces.len()), 0);
    for [start, elems] in &entry.pieces {
        places.push(Place { flat: *start..end(*start, *elems)?, shard, position });
        position = end(position, *elems)?;
    }
    if position != entry.elems || entry.flat_start != 0 {
        return Err(format!("the pieces of its shard `{}` do not add up", entry.file));
    }
    Ok(places)
}

/// Leaves out copies of replicated parameters, which an earlier place has already.
fn without_copies(inventory: &Inventory, places: Vec<Place>) -> Result<Vec<Place>, String> {
    let (mut kept, mut covered) = (Vec::with_capacity(places.len()), 0);
    let total = inventory.total_elems();
    for mut place in places.into_iter().filter(|place| !place.flat.is_empty()) {
        if place.flat.start > covered || place.flat.end > total {
            return Err("its shards do not cover its parameters".to_owned());
        }
        let known = covered.min(place.flat.end);
        if place.flat.start < known {
            let param = inventory.param_at(place.flat.start);
            let param_end = inventory.flat_start(param) + inventory.elems(param);
            if !inventory.parameter(param).replicated || known > param_end {
                return Err("its shards have elements twice".to_owned());
            }
            place.position += known - place.flat.start;
            place.flat.start = known;
        }
        covered = covered.max(place.flat.end);
        if !place.flat.is_empty() {
            kept.push(place);
        }
    }
    if covered != total {
        return Err("its shards do not cover its parameters".to_owned());
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Parameter;

    fn places(shards: &[&[[u64; 2]]]) -> Result<Places, String> {
        let parameters = vec![Parameter::new("w", [10]), Parameter::new("norm", [4]).replicated()];
        let entry = |pieces: &&[[u64; 2]]| ShardEntry {
            file: "a".to_owned(),
            flat_start: 0,
            elems: pieces.iter().map(|[_, elems]| elems).sum(),
            bytes: 0,
            pieces: pieces.to_vec(),
        };
        let shards: Vec<ShardEntry> = shards.iter().map(entry).collect();
        Places::of(&Inventory::new(parameters).unwrap(), &shards)
    }

    #[test]
    fn pieces_in_any_order_cover_the_flat_space_once() {
        let found = places(&[&[[10, 4], [0, 5]], &[[5, 5], [11, 3]]]).unwrap();
        let at = |flat| found.at(flat).map(|place| (place.shard, place.position, place.flat.start));
        assert_eq!(at(0), Some((0, 4, 0)));
        assert_eq!(at(7), Some((1, 0, 5)));
        assert_eq!(at(13), Some((0, 0, 10)), "the copy in the second shard is not needed");
        assert_eq!(at(14), None);
        let refused = |shards: &[&[[u64; 2]]]| places(shards).unwrap_err();
        assert!(refused(&[&[[0, 5]], &[[6, 8]]]).contains("do not cover"));
        assert!(refused(&[&[[0, 10]]]).contains("do not cover"));
        assert!(refused(&[&[[0, 6]], &[[5, 9]]]).contains("twice"));
        assert!(refused(&[&[[0, 15]]]).contains("do not cover"));
        assert!(refused(&[&[[u64::MAX, 15]]]).contains("too large"));
    }
}
