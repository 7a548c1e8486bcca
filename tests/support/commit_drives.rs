//! What lies on the drives of one rank in the model of commits. See `tests/commit_protocol.rs`.

use optswap::ChunkIndex;
use optswap::internals::storage::commit::Stamp;
use optswap::internals::storage::{MovedUnits, Placement};
use optswap::internals::units::ExtentIndex;

/// The only chunk: its extent has the number of its slot.
pub const CHUNK: ChunkIndex = ChunkIndex(0);
const UNIT: u64 = 4096;
const SHARES: [f64; 2] = [0.5, 0.5];

/// Two slots of one unit, and one free unit, on each of two drives.
pub fn placement() -> Placement {
    Placement::weighted(&[UNIT, UNIT], UNIT, &SHARES, 0, 1.0)
}

/// Which of all units an extent lies in.
pub fn unit_at(segments: &[optswap::internals::storage::Segment]) -> usize {
    2 * segments[0].drive.index() + (segments[0].file_offset / UNIT) as usize
}

/// Which of all units a record's slot lies in.
pub fn unit_of(record: &Record) -> usize {
    let placement = placement();
    record.place_in(&placement);
    unit_at(&placement.segments(ExtentIndex(record.slot.into())))
}

/// By which step, in which life of the job, something was computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Made {
    pub step: u8,
    pub life: u8,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Slot {
    #[default]
    Empty,
    Torn,
    Whole(Made),
}

/// What counts of `storage::Record`; numbers are small here, so that worlds are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Record {
    /// The life in which the job was created, for the job's id.
    pub job: u8,
    pub epoch: u8,
    pub incarnation: u8,
    /// Steps attempted up to it.
    pub steps: u8,
    pub slot: u8,
    /// Where the slot lies, if it has moved.
    pub moved: Option<u8>,
    /// The checksum: what the slot holds if it is whole.
    pub value: Made,
    /// Which commit it is really; the protocol cannot see this.
    pub commit: Made,
}

impl Record {
    pub fn stamp(&self) -> Stamp {
        Stamp { epoch: self.epoch.into(), incarnation: self.incarnation.into() }
    }

    pub fn place_in(&self, placement: &Placement) {
        let moved = self.moved.map_or_else(MovedUnits::default, |unit| MovedUnits {
            extents: vec![0],
            units: vec![unit.into()],
        });
        placement.restore(&[ExtentIndex(self.slot.into())], &moved, &SHARES).unwrap();
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Content {
    pub units: [Slot; 4],
    /// `None`: no record, or a torn one.
    pub places: [Option<Record>; 2],
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Drives {
    pub now: Content,
    /// What each of them was before its last write; kept only where power may be lost.
    pub before: Content,
}
