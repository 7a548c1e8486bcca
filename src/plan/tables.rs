//! What the tables of a rank take: all that it keeps of its chunks, stripe units and pieces, apart
//! from buffers. A closed formula, so that it can be told before there is any table.

/// What the size of a rank's tables follows from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tables {
    /// Chunks of the shard.
    pub chunks: u64,
    /// Slots of each.
    pub slots: u64,
    /// Stripe units of all slots, and of gradients that are spilled.
    pub units: u64,
    /// Free units, as a fraction of those.
    pub headroom: f64,
    /// Pieces of the shard: parts of parameters.
    pub pieces: u64,
    /// Checksums of a chunk.
    pub sums_per_chunk: u64,
    /// Gradients are handed over during backward.
    pub keeps_gradients: bool,
    /// Some of them are spilled.
    pub spills_gradients: bool,
}

/// Its place in the shard, its first run, its sub-group, its state, the bytes that a step reads.
const CHUNK: u64 = 40 + 32 + 4 + 4 + 8;
/// Its bytes, its first unit, which shares it was dealt by.
const EXTENT: u64 = 8 + 8 + 4 + 4 + 1;
/// Which of its slots are read and written, for the caller's thread and the I/O thread; where its
/// spilled gradient is.
const CHUNK_PLACES: u64 = 2 + 2 + 1;
/// Its number; that of a free one, in a tree.
const UNIT: u64 = 4;
const FREE_UNIT: f64 = 6.0;
/// Its run and its place by parameter; twice its update count: now, and at the last commit.
const PIECE: u64 = 32 + 32 + 8 + 2 * 8;
/// The state of a chunk's gradients, with their norm.
const GRADIENTS: u64 = 104 + 48;

impl Tables {
    /// Bytes of all tables.
    pub fn bytes(&self) -> u64 {
        // A durable job keeps those of the last commit too.
        let sums = 4 * self.sums_per_chunk * self.slots;
        let gradients = if self.keeps_gradients { GRADIENTS } else { 0 };
        let extents = self.slots + u64::from(self.spills_gradients);
        let chunk = CHUNK + CHUNK_PLACES + extents * EXTENT + sums + gradients;
        let free = (self.units as f64 * self.headroom * FREE_UNIT) as u64;
        self.chunks * chunk + self.units * UNIT + free + self.pieces * PIECE
    }
}
