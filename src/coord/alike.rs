//! Whether all ranks have the same value, found out in a sum that is made anyway.
//!
//! Each part of a digest is summed, and its square. By the inequality of Cauchy and Schwarz,
//! n x = sum and n x^2 = sum of squares holds for one rank's x only if all ranks have the same x,
//! so all ranks come to the same conclusion. Parts are short enough for exact sums over 65,536
//! ranks.

use std::collections::BTreeMap;

use serde::Serialize;
use xxhash_rust::xxh3::xxh3_64;

use super::{Communicator, gather_all};
use crate::config::number_ranges;
use crate::error::{Error, Result};
use crate::wire;

/// Bits of the parts of a digest.
const PART_BITS: u32 = 24;
const PARTS: usize = 2;

/// Words that a value adds to a sum.
pub const ALIKE_WORDS: usize = 2 * PARTS;

/// Values that differ, named in one error at most.
const NAMED_MAX: usize = 6;

/// What stands for a value in a sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alike([u64; PARTS]);

impl Alike {
    /// Of a value as bytes.
    ///
    /// # Errors
    /// Internal if it cannot be encoded.
    pub fn of<T: Serialize>(value: &T) -> Result<Self> {
        let digest = xxh3_64(&wire::encode(value)?);
        let part = |index| digest >> (PART_BITS * index as u32) & ((1 << PART_BITS) - 1);
        Ok(Self(std::array::from_fn(part)))
    }

    /// The words to be summed.
    pub fn words(self) -> [u64; ALIKE_WORDS] {
        let [first, second] = self.0;
        [first, first * first, second, second * second]
    }

    /// Whether these sums are those of as many ranks with this same value.
    pub fn is_of_all(self, sums: &[u64], ranks: usize) -> bool {
        let expected = self.words().map(|word| word.wrapping_mul(ranks as u64));
        sums == expected
    }
}

/// Collective: checks that all ranks have the same values.
///
/// # Errors
/// Usage, agreed, with the names, ranks and values of the first differences; `what` says what
/// differs. Peer, not agreed, if another rank does not come in time.
pub fn agree_on_values(
    comm: &dyn Communicator,
    what: &str,
    hint: &str,
    values: &BTreeMap<String, String>,
) -> Result<()> {
    let alike = Alike::of(values)?;
    let mut sums = alike.words();
    comm.all_reduce_sum(&mut sums)?;
    if alike.is_of_all(&sums, comm.size()) {
        return Ok(());
    }
    Err(differing_values(comm, what, values)?.hint(hint))
}

/// Collective, when it is known that values differ: the error that says where. It is the same on
/// all ranks.
///
/// # Errors
/// Those of the communicator.
pub fn differing_values(
    comm: &dyn Communicator,
    what: &str,
    values: &BTreeMap<String, String>,
) -> Result<Error> {
    let all = gather_all(comm, values)?;
    let keys: std::collections::BTreeSet<&String> = all.iter().flat_map(BTreeMap::keys).collect();
    let differs =
        |key: &&&String| all.iter().any(|of_rank| of_rank.get(**key) != all[0].get(**key));
    let differing: Vec<&String> = keys.iter().filter(differs).copied().collect();
    let mut error = Error::usage(what);
    for key in differing.iter().take(NAMED_MAX) {
        let value_of = |of_rank: &BTreeMap<String, String>| of_rank.get(*key).cloned();
        let by_value = by_value(all.iter().map(value_of));
        let said: Vec<String> = by_value
            .into_iter()
            .map(|(value, ranks)| {
                let value = value.unwrap_or_else(|| "not set".to_owned());
                format!("{value} on {}", rank_words(&ranks))
            })
            .collect();
        error = error.with((*key).clone(), said.join(", "));
    }
    if differing.len() > NAMED_MAX {
        error = error.with("more that differ", differing.len() - NAMED_MAX);
    }
    Ok(error.agreed())
}

/// Which ranks have which value, in the order of their lowest ranks.
pub(super) fn by_value<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<(T, Vec<u32>)> {
    let mut found: Vec<(T, Vec<u32>)> = Vec::new();
    for (rank, value) in values.enumerate() {
        match found.iter_mut().find(|(known, _)| *known == value) {
            Some((_, ranks)) => ranks.push(rank as u32),
            None => found.push((value, vec![rank as u32])),
        }
    }
    found
}

/// Ranks in words, such as `ranks 0,3-5`.
pub fn rank_words(ranks: &[u32]) -> String {
    let word = if ranks.len() == 1 { "rank" } else { "ranks" };
    format!("{word} {}", number_ranges(ranks))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_alike_and_others_are_not_on_any_rank() {
        let values = [7u64, 7, 8, 7];
        let alike = values.map(|value| Alike::of(&value).unwrap());
        let sums = |of: &[Alike]| {
            let mut sums = [0; ALIKE_WORDS];
            for alike in of {
                sums.iter_mut().zip(alike.words()).for_each(|(sum, word)| *sum += word);
            }
            sums
        };
        assert!(alike[0].is_of_all(&sums(&alike[..2]), 2));
        let all = sums(&alike);
        assert!(alike.iter().all(|alike| !alike.is_of_all(&all, 4)));
    }

    #[test]
    fn the_sums_of_65_536_ranks_are_exact() {
        let largest = Alike([(1 << PART_BITS) - 1; PARTS]);
        let squares = u128::from(largest.words()[1]) * 65_536;
        assert!(squares < 1 << 64);
    }

    #[test]
    fn ranks_are_sorted_by_what_they_have() {
        let found = by_value(["a", "b", "a", "c"].into_iter());
        assert_eq!(found, [("a", vec![0, 2]), ("b", vec![1]), ("c", vec![3])]);
        assert_eq!(rank_words(&[0, 2, 3]), "ranks 0,2-3");
        assert_eq!(rank_words(&[1]), "rank 1");
    }
}
