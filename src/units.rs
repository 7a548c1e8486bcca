//! Numbers with a meaning: ranks, drives, chunks and parameters cannot be mistaken for one another,
//! and sizes are read and written the way people write them (`256MiB`, `64Mi`).

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The grain of everything: shards are cut, chunks padded and gradient norms summed in blocks of
/// this many elements of the flat space. 4,096 four-byte elements are also four 4 KiB sectors, so
/// that a section of an extent is aligned for direct I/O on every drive.
pub const BLOCK_ELEMS: u64 = 4096;

macro_rules! index_type {
    ($(#[$doc:meta])* $name:ident, $label:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub u32);

        impl $name {
            /// The number as a slice index.
            pub fn index(self) -> usize {
                self.0 as usize
            }

            /// The type for a slice index; indices of this crate fit 32 bits by validation.
            pub fn from_index(index: usize) -> Self {
                Self(u32::try_from(index).expect("index beyond 2^32"))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($label, " {}"), self.0)
            }
        }
    };
}

index_type!(
    /// A process of the world, as in MPI.
    Rank,
    "rank"
);
index_type!(
    /// A drive, numbered as this rank lists its drives.
    DriveIndex,
    "drive"
);
index_type!(
    /// A chunk of this rank's shard, in shard order.
    ChunkIndex,
    "chunk"
);
index_type!(
    /// A slot of a chunk: one extent on the drives.
    ExtentIndex,
    "extent"
);
index_type!(
    /// A parameter, in inventory order.
    ParamIndex,
    "parameter"
);

/// A number of bytes, read as `4096`, `256MiB`, `1.5 GB`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

/// A number of elements, read as `4096`, `64Mi`, `1G`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Elems(pub u64);

/// Why a size could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no size: write a number with an optional unit, such as {example}")]
pub struct ParseSizeError {
    text: String,
    example: &'static str,
}

const BINARY: [(&str, u64); 5] =
    [("", 1), ("Ki", 1 << 10), ("Mi", 1 << 20), ("Gi", 1 << 30), ("Ti", 1 << 40)];
const DECIMAL: [(&str, u64); 4] =
    [("k", 1_000), ("M", 1_000_000), ("G", 1_000_000_000), ("T", 1_000_000_000_000)];

/// Parses `NUMBER[.FRACTION][UNIT]`; the result must be a whole number below 2^63.
fn parse_scaled(text: &str, suffix: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim();
    let is_unit = |name: &str| {
        unit.eq_ignore_ascii_case(name) || unit.eq_ignore_ascii_case(&format!("{name}{suffix}"))
    };
    let scale = BINARY.iter().chain(&DECIMAL).find(|(name, _)| is_unit(name))?.1;
    let value = match number.parse::<u64>() {
        Ok(whole) => whole.checked_mul(scale)?,
        Err(_) => {
            let scaled = number.parse::<f64>().ok()? * scale as f64;
            (scaled >= 0.0 && scaled.fract() == 0.0 && scaled < 9e15).then_some(scaled as u64)?
        }
    };
    (value < 1 << 63).then_some(value)
}

/// The largest binary unit that divides `value`, so that printing and reading agree.
fn format_scaled(value: u64, suffix: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let fits = |&&(_, scale): &&(&str, u64)| value != 0 && value.is_multiple_of(scale);
    let (unit, scale) = BINARY.iter().rev().find(fits).unwrap_or(&BINARY[0]);
    write!(f, "{}{unit}{suffix}", value / scale)
}

macro_rules! size_type {
    ($name:ident, $suffix:literal, $example:literal) => {
        impl FromStr for $name {
            type Err = ParseSizeError;

            fn from_str(text: &str) -> Result<Self, ParseSizeError> {
                parse_scaled(text, $suffix)
                    .map(Self)
                    .ok_or_else(|| ParseSizeError { text: text.to_owned(), example: $example })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                format_scaled(self.0, $suffix, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                #[derive(Deserialize)]
                #[serde(untagged)]
                enum Written {
                    Number(u64),
                    Text(String),
                }
                let written = Written::deserialize(deserializer).map_err(|_| {
                    serde::de::Error::custom(concat!("expected a size such as ", $example))
                })?;
                match written {
                    Written::Number(number) => Ok(Self(number)),
                    Written::Text(text) => text.parse().map_err(serde::de::Error::custom),
                }
            }
        }
    };
}

size_type!(Bytes, "B", "\"256MiB\"");
size_type!(Elems, "", "\"64Mi\"");

impl Bytes {
    /// For people: three significant digits in binary units, `1.50 GiB`.
    pub fn human(self) -> String {
        let (unit, scale) =
            BINARY.iter().rev().find(|(_, scale)| self.0 >= *scale).unwrap_or(&BINARY[0]);
        if *scale == 1 {
            return format!("{} B", self.0);
        }
        format!("{:.2} {unit}B", self.0 as f64 / *scale as f64)
    }
}

/// `value` rounded up to a multiple of `grain`.
pub fn round_up(value: u64, grain: u64) -> u64 {
    value.div_ceil(grain) * grain
}

/// Some steps in a row, counted from 1: `3`, `3-5`, or nothing for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepRange {
    first: u64,
    last: u64,
}

impl StepRange {
    /// Whether it holds no step.
    pub fn is_empty(self) -> bool {
        self.last == 0
    }

    /// Whether it holds this one.
    pub fn contains(self, step: u64) -> bool {
        (self.first..=self.last).contains(&step) && step > 0
    }

    /// The last step; 0 for none.
    pub fn last(self) -> u64 {
        self.last
    }
}

impl FromStr for StepRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
            (Ok(first), Ok(last)) if first >= 1 && first <= last => Ok(Self { first, last }),
            _ => Err(format!("`{text}` is neither a step nor some in a row, such as 3-5")),
        }
    }
}

impl fmt::Display for StepRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.is_empty(), self.first == self.last) {
            (true, _) => Ok(()),
            (false, true) => write!(f, "{}", self.first),
            (false, false) => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

impl Serialize for StepRange {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for StepRange {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The increment of splitmix64's state: the odd number nearest to 2^64 divided by the golden ratio.
pub const SPLITMIX64_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output of splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
/// generators", OOPSLA 2014) in the state `state`; its next state is [`SPLITMIX64_GAMMA`] more. As
/// a function of numbers that are not random, such as seeds and indices, it gives bits that look
/// random.
#[inline]
pub fn mix64(state: u64) -> u64 {
    let mut bits = state.wrapping_add(SPLITMIX64_GAMMA);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// `1 node`, `2 nodes`.
pub fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Text from outside, such as a tensor's name, on one line: what would control a terminal, break a
/// line or turn its direction is written as an escape, such as `\n` or `\u{1b}`.
pub fn printable(text: &str) -> Cow<'_, str> {
    let is_plain = |c: char| {
        let turns = matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        !c.is_control() && !turns
    };
    if text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let escaped =
        |c: char| if is_plain(c) { c.to_string() } else { c.escape_default().to_string() };
    Cow::Owned(text.chars().map(escaped).collect())
}

/// The first of some names, and how many more there are.
pub fn first_of<S: AsRef<str>>(names: &[S]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<_> = names.iter().take(SHOWN).map(|name| printable(name.as_ref())).collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_outside_stays_on_its_line() {
        assert!(matches!(printable("h.0.größe \\n"), Cow::Borrowed(_)));
        assert_eq!(printable("a\n| b\t\r\u{1b}[2J\u{202e}"), r"a\n| b\t\r\u{1b}[2J\u{202e}");
        assert_eq!(first_of(&["a", "b\n"]), r"a, b\n");
        assert_eq!(first_of(&["a"; 10]), "a, a, a, a, a, a, a, a and 2 more");
    }

    #[test]
    fn sizes_read_as_people_write_them() {
        let bytes = |text: &str| text.parse::<Bytes>().map(|b| b.0);
        assert_eq!(bytes("4096"), Ok(4096));
        assert_eq!(bytes("256MiB"), Ok(256 << 20));
        assert_eq!(bytes("256mib"), Ok(256 << 20));
        assert_eq!(bytes("1.5 GiB"), Ok(3 << 29));
        assert_eq!(bytes("2 MB"), Ok(2_000_000));
        assert_eq!("64Mi".parse::<Elems>().map(|e| e.0), Ok(64 << 20));
        for wrong in ["", "MiB", "-1", "1.0000000001", "12 parsecs", "99999999999Ti", "1e3"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn mixed_bits_are_those_of_the_published_generator() {
        // The first outputs for the seed 1234567, as Vigna's splitmix64.c gives them.
        let states = [1_234_567, 1_234_567u64.wrapping_add(SPLITMIX64_GAMMA)];
        assert_eq!(states.map(mix64), [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
    }

    #[test]
    fn sizes_print_as_they_are_read() {
        for value in [0, 1, 4095, 4096, 256 << 20, 3 << 29, 1 << 40] {
            assert_eq!(Bytes(value).to_string().parse(), Ok(Bytes(value)));
            assert_eq!(Elems(value).to_string().parse(), Ok(Elems(value)));
        }
        assert_eq!(Bytes(256 << 20).to_string(), "256MiB");
        assert_eq!(Bytes(3 << 29).human(), "1.50 GiB");
    }
}
