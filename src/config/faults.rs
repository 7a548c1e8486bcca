//! `[[faults]]`: faults that are injected on purpose, for tests.

use serde::{Deserialize, Serialize};

use crate::units::{SPLITMIX64_GAMMA, mix64};

/// `[[faults]]`: an I/O operation of a rank goes wrong: the one of number `op`, or one in `one_in`
/// operations, drawn by `seed`. Exactly one of `op` and `one_in` is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultConfig {
    /// The rank whose operations go wrong.
    pub rank: u32,
    /// The operation's number on that rank, counted from 0 at its start.
    #[serde(default)]
    pub op: Option<u64>,
    /// One in so many operations, at least 1; each is drawn by its number and `seed`.
    #[serde(default)]
    pub one_in: Option<u64>,
    /// Decides which operations are drawn. Default 0.
    #[serde(default)]
    pub seed: u64,
    /// What happens.
    pub kind: FaultKind,
    /// For `slow`: the only drive that is slow, by its place in `drives.paths`, from 0. Default
    /// all.
    #[serde(default)]
    pub drive: Option<u32>,
    /// For `slow`: the number of the operation from which on the drive is as fast as before.
    /// Default never.
    #[serde(default)]
    pub until: Option<u64>,
    /// For `slow`: how long each operation keeps the drive busy, in milliseconds. Default 0.
    #[serde(default)]
    pub delay_ms: u32,
}

/// What can go wrong on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FaultKind {
    /// The operation fails with EIO.
    Eio,
    /// The operation fails with ENOSPC.
    Enospc,
    /// The operation fails once with EINTR; tried again, it works.
    Eintr,
    /// The operation fails once with EAGAIN; tried again, it works.
    Eagain,
    /// Only the first 4,096 bytes move.
    Short,
    /// The result never comes.
    Stall,
    /// A write moves only its first half and reports all of it, as a drive may that loses power.
    /// On a read, nothing happens.
    Torn,
    /// A read brings one flipped bit and reports success. On a write, nothing happens.
    Bitflip,
    /// The I/O thread panics.
    Panic,
    /// A drive is slow: it does one operation after the other and takes `delay_ms` for each, from
    /// operation `op` on until `until`, or for the operations that are drawn.
    Slow,
}

impl FaultConfig {
    /// The fault of one operation of one rank.
    pub fn at(rank: u32, op: u64, kind: FaultKind) -> Self {
        let (drive, until, delay_ms) = (None, None, 0);
        Self { rank, op: Some(op), one_in: None, seed: 0, kind, drive, until, delay_ms }
    }

    /// Whether operation `number` of the fault's rank goes wrong.
    pub fn strikes(&self, number: u64) -> bool {
        match (self.op, self.one_in) {
            _ if self.until.is_some_and(|until| number >= until) => false,
            (Some(op), _) if self.kind == FaultKind::Slow => op <= number,
            (Some(op), _) => op == number,
            (None, Some(one_in)) => draw(self.seed, number).is_multiple_of(one_in),
            (None, None) => false,
        }
    }
}

/// A random number for an operation, the same in every run with this seed.
fn draw(seed: u64, number: u64) -> u64 {
    let key = seed.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(number);
    mix64(key.wrapping_mul(SPLITMIX64_GAMMA))
}
