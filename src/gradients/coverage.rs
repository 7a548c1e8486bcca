//! Which gradients of a shard have come: piece by piece, micro-batch by micro-batch. Integers only.

use std::ops::Range;

use super::locate::{Located, Shares};
use crate::error::{Error, Result};
use crate::partition::Partition;
use crate::state::Inventory;
use crate::units::ParamIndex;

/// Which gradients of one parameter's share of the shard have come.
#[derive(Clone, Debug, Default)]
struct Share {
    /// Elements of the micro-batch under way, within the share; ascending, joined.
    covered: Vec<Range<u64>>,
    /// Micro-batches that have come whole.
    micro_batches: u32,
    /// Whether the micro-batch under way is the last one.
    is_last: bool,
    /// Whether the last micro-batch has come whole.
    is_finished: bool,
}

impl Share {
    fn is_untouched(&self) -> bool {
        self.covered.is_empty() && self.micro_batches == 0
    }
}

/// Which gradients have come since the last step.
#[derive(Clone, Debug, Default)]
pub(super) struct Coverage {
    of_params: Shares,
    shares: Vec<Share>,
}

/// A piece of gradient that may be taken.
#[derive(Clone, Debug)]
pub(super) struct Accepted {
    /// Where it belongs.
    pub at: Located,
    /// Whether it is the first gradient for these elements, to be stored and not added.
    pub is_first: bool,
    /// Whether it is the last gradient for these elements.
    pub is_last: bool,
}

impl Coverage {
    pub fn new(partition: &Partition) -> Self {
        let of_params = Shares::new(partition);
        Self { shares: vec![Share::default(); of_params.params().len()], of_params }
    }

    /// Checks that a piece of gradient may be taken, and returns where its parts belong; an empty
    /// piece has no parts. This changes nothing yet.
    ///
    /// # Errors
    /// Usage, naming the parameter.
    pub fn accept(
        &self,
        inventory: &Inventory,
        partition: &Partition,
        (param, offset, len): (ParamIndex, u64, u64),
        is_last: bool,
    ) -> Result<Vec<Accepted>> {
        let parts = self.of_params.locate(inventory, partition, (param, offset, len))?;
        let Some(share) = parts.first().map(|part| &self.shares[part.share]) else {
            return Ok(Vec::new());
        };
        let wrong = |message: &str| {
            let name = &inventory.parameter(param).name;
            Error::usage(message)
                .with("parameter", name)
                .with("offset", offset)
                .with("length", len)
                .with("micro-batch", share.micro_batches + 1)
        };
        if share.is_finished {
            return Err(wrong("a gradient after the last one of its parameter").hint(
                "MicroBatch::Last belongs to the pieces of the last micro-batch before a step",
            ));
        }
        if !share.covered.is_empty() && share.is_last != is_last {
            return Err(wrong("only some pieces of a micro-batch are said to be the last ones"));
        }
        // The parts follow each other in the share.
        let (start, end) = (parts[0].in_share.start, parts[parts.len() - 1].in_share.end);
        if share.covered.iter().any(|it| it.start < end && start < it.end) {
            return Err(wrong("a gradient was handed over twice in one micro-batch")
                .hint("a micro-batch ends when all of this rank's share has come"));
        }
        let is_first = share.micro_batches == 0;
        Ok(parts.into_iter().map(|at| Accepted { at, is_first, is_last }).collect())
    }

    /// Notes that a piece has been taken.
    pub fn take(&mut self, accepted: &Accepted) {
        let share = &mut self.shares[accepted.at.share];
        share.is_last = accepted.is_last;
        insert(&mut share.covered, accepted.at.in_share.clone());
        if share.covered[0] == (0..self.of_params.elems(accepted.at.share)) {
            share.covered.clear();
            share.micro_batches += 1;
            share.is_finished = accepted.is_last;
        }
    }

    /// Whether all of this rank's share of a parameter has come, so that it has a gradient.
    pub fn has_gradient(&self, param: ParamIndex) -> bool {
        let share = self.of_params.of_param(param);
        share.is_some_and(|share| self.shares[share].is_finished)
    }

    /// The parameters of which the shard has a share, and elements of that.
    pub fn params(&self) -> impl Iterator<Item = (ParamIndex, u64)> {
        let shares = self.of_params.params().iter().enumerate();
        shares.map(|(share, param)| (*param, self.of_params.elems(share)))
    }

    /// Whether nothing has come.
    pub fn is_empty(&self) -> bool {
        self.shares.iter().all(Share::is_untouched)
    }

    /// Checks that every share of which some gradient has come has come whole.
    ///
    /// # Errors
    /// Usage, naming the first parameter that is not.
    pub fn check_finished(&self, inventory: &Inventory) -> Result<()> {
        for (share, (param, elems)) in self.shares.iter().zip(self.params()) {
            if share.is_finished || share.is_untouched() {
                continue;
            }
            let given: u64 = share.covered.iter().map(|range| range.end - range.start).sum();
            let message = match given {
                0 => "a parameter's last gradient has not come: no piece was said to be the last",
                _ => "a parameter's gradient is only partly there",
            };
            return Err(Error::usage(message)
                .with("parameter", &inventory.parameter(param).name)
                .with("micro-batches", share.micro_batches)
                .with("given of the next one", given)
                .with("this rank's share", elems)
                .hint("hand over what is left, or drop all with discard_gradients"));
        }
        Ok(())
    }

    pub fn clear(&mut self) {
        for share in &mut self.shares {
            share.covered.clear();
            (share.micro_batches, share.is_last, share.is_finished) = (0, false, false);
        }
    }
}

/// Adds a range that overlaps none, and joins it with its neighbours.
fn insert(ranges: &mut Vec<Range<u64>>, new: Range<u64>) {
    let at = ranges.partition_point(|range| range.end < new.start);
    let joins = |range: &Range<u64>| range.start == new.end || range.end == new.start;
    let joined = ranges[at..].iter().take(2).filter(|range| joins(range)).count();
    let start = ranges.get(at).filter(|_| joined > 0).map_or(new.start, |r| r.start.min(new.start));
    let end = joined.checked_sub(1).map_or(new.end, |last| ranges[at + last].end.max(new.end));
    ranges.splice(at..at + joined, std::iter::once(start..end));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::partition::Piece;
    use crate::state::Parameter;

    proptest! {
        #[test]
        fn ranges_in_any_order_become_one(
            lens in prop::collection::vec(1u64..9, 1..20),
            seed in any::<u64>(),
        ) {
            let mut ends = lens.iter().scan(0, |end, len| { *end += len; Some(*end - len..*end) })
                .collect::<Vec<_>>();
            let whole = 0..ends.last().unwrap().end;
            let (mut covered, mut elems, mut seed) = (Vec::new(), 0, seed);
            while !ends.is_empty() {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let next = ends.swap_remove((seed >> 33) as usize % ends.len());
                elems += next.end - next.start;
                insert(&mut covered, next);
                let sum: u64 = covered.iter().map(|range| range.end - range.start).sum();
                prop_assert_eq!(sum, elems);
                prop_assert!(covered.windows(2).all(|pair| pair[0].end < pair[1].start));
            }
            prop_assert_eq!(covered, [whole]);
        }
    }

    #[test]
    fn micro_batches_are_kept_apart() {
        let parameters = vec![Parameter::new("a", [10]), Parameter::new("b", [8190])];
        let inventory = Inventory::new(parameters).unwrap();
        let partition = Partition::new(&inventory, 4096..8200, 4096, 4096);
        let mut coverage = Coverage::new(&partition);
        let mut hand_over = |offset: u64, len: u64, is_last: bool| {
            let param = (ParamIndex(1), offset, len);
            let accepted = coverage.accept(&inventory, &partition, param, is_last)?;
            accepted.iter().for_each(|part| coverage.take(part));
            Ok::<_, Error>((accepted[0].is_first, coverage.has_gradient(ParamIndex(1))))
        };
        assert_eq!(hand_over(5000, 3190, false).unwrap(), (true, false));
        let twice = hand_over(8189, 1, false).unwrap_err().to_string();
        assert!(twice.contains("twice in one micro-batch"), "{twice}");
        let mixed = hand_over(4086, 914, true).unwrap_err().to_string();
        assert!(mixed.contains("only some pieces"), "{mixed}");
        assert_eq!(hand_over(4086, 914, false).unwrap(), (true, false));
        assert_eq!(hand_over(4086, 4104, true).unwrap(), (false, true));
        let late = hand_over(4086, 1, true).unwrap_err().to_string();
        assert!(late.contains("after the last one"), "{late}");
    }

    #[test]
    fn a_share_in_pieces_is_one_share() {
        let inventory = Inventory::new(vec![Parameter::new("a", [100])]).unwrap();
        let piece = |offset, elems| Piece::new(ParamIndex(0), offset, elems);
        let pieces = [piece(60, 40), piece(0, 20), piece(30, 10)];
        let partition = Partition::of_pieces(&inventory, &pieces, 4096, 4096);
        let mut coverage = Coverage::new(&partition);
        let mut hand_over = |offset: u64, len: u64| {
            let given = (ParamIndex(0), offset, len);
            let parts = coverage.accept(&inventory, &partition, given, true)?;
            parts.iter().for_each(|part| coverage.take(part));
            let places = parts.into_iter().map(|part| part.at.in_shard);
            let places: Vec<_> = places.map(|it| (it.start, it.end)).collect();
            Ok::<_, Error>((places, coverage.has_gradient(ParamIndex(0))))
        };
        assert!(hand_over(10, 15).unwrap_err().to_string().contains("outside"));
        assert_eq!(hand_over(60, 40).unwrap(), (vec![(0, 40)], false));
        assert_eq!(hand_over(5, 15).unwrap(), (vec![(45, 60)], false));
        assert!(hand_over(0, 6).unwrap_err().to_string().contains("twice"));
        assert_eq!(hand_over(30, 10).unwrap(), (vec![(60, 70)], false));
        assert_eq!(hand_over(0, 5).unwrap(), (vec![(40, 45)], true));
    }
}
