//! Bytes that are nearly those of a corpus: bits flipped, pieces cut, doubled and moved, and
//! lengths that are far too large.

use optswap::internals::units::{SPLITMIX64_GAMMA, mix64};

/// The longest input.
const BYTES_MAX: usize = 200_000;

/// splitmix64, so that a seed says everything.
pub struct Dice(u64);

impl Dice {
    /// A stream of its own for each number.
    pub fn new(seed: u64, number: u64) -> Self {
        Self(mix64(seed ^ mix64(number)))
    }

    pub fn below(&mut self, end: usize) -> usize {
        let bits = mix64(self.0);
        self.0 = self.0.wrapping_add(SPLITMIX64_GAMMA);
        (bits % end.max(1) as u64) as usize
    }

    fn of<'a, T>(&mut self, some: &'a [T]) -> &'a T {
        &some[self.below(some.len())]
    }

    /// A range within so many bytes, mostly a short one.
    fn range(&mut self, bytes: usize) -> std::ops::Range<usize> {
        let start = self.below(bytes + 1);
        let most = if self.below(4) == 0 { bytes } else { 16 };
        start..bytes.min(start + self.below(most + 1))
    }

    /// A number at the edge of something.
    fn extreme(&mut self) -> u64 {
        let power = 1u64 << self.below(64);
        *self.of(&[
            0,
            1,
            power,
            power - 1,
            power + 1,
            u64::MAX,
            i64::MAX as u64,
            u64::from(u32::MAX),
        ])
    }
}

/// One to four changes to one of the inputs.
pub fn mutated(corpus: &[Vec<u8>], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = dice.of(corpus).clone();
    for _ in 0..=dice.below(4) {
        change(&mut bytes, corpus, dice);
    }
    bytes.truncate(BYTES_MAX);
    bytes
}

fn change(bytes: &mut Vec<u8>, corpus: &[Vec<u8>], dice: &mut Dice) {
    let range = dice.range(bytes.len());
    let at = range.start.min(bytes.len().saturating_sub(1));
    match dice.below(11) {
        0 if !bytes.is_empty() => bytes[at] ^= 1 << dice.below(8),
        1 if !bytes.is_empty() => bytes[at] = *dice.of(b"\0\xff\x7f\x80 \n\"'[]{},:.-#/\\9e"),
        2 => bytes.truncate(range.start),
        3 => drop(bytes.drain(range)),
        4 => {
            let noise: Vec<u8> = (0..dice.below(20)).map(|_| dice.below(256) as u8).collect();
            drop(bytes.splice(range, noise));
        }
        5 => {
            let again = bytes[range].to_vec();
            let to = dice.below(bytes.len() + 1);
            drop(bytes.splice(to..to, again));
        }
        6 => {
            let other = dice.of(corpus);
            let piece = other[dice.range(other.len())].to_vec();
            drop(bytes.splice(range, piece));
        }
        7 => overwrite(bytes, at, &dice.extreme().to_le_bytes()),
        8 => overwrite(bytes, at, &(dice.extreme() as u32).to_le_bytes()),
        // A number in a text.
        9 => {
            let is_digit = |byte: &u8| byte.is_ascii_digit();
            let start = bytes[at.min(bytes.len())..].iter().position(is_digit).unwrap_or(0) + at;
            let digits = bytes[start..].iter().take_while(|byte| is_digit(byte)).count();
            let number = dice.extreme().to_string().into_bytes();
            drop(bytes.splice(start..start + digits, number));
        }
        // Seldom, as long inputs take long.
        10 if dice.below(8) == 0 => {
            let many = bytes[range.clone()].repeat(1 + BYTES_MAX / 2 / (range.len() + 1));
            drop(bytes.splice(range, many));
        }
        _ => {}
    }
}

fn overwrite(bytes: &mut [u8], at: usize, with: &[u8]) {
    bytes[at..].iter_mut().zip(with).for_each(|(byte, new)| *byte = *new);
}
