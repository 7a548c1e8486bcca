//! Gradients in the caller's memory: pieces in any order, borrowed until the step returns.

use std::ops::Range;

use super::locate::locate;
use crate::config::MissingGradient;
use crate::error::{Error, Result};
use crate::optim::GradElem;
use crate::partition::{Partition, Run};
use crate::state::Inventory;
use crate::units::ParamIndex;

/// The gradients of one step on one rank, all of one number format: f32, bf16 or f16. They are
/// those of the rank's own shard, reduced over the ranks that share it.
///
/// A parameter of which no piece is given is skipped, as torch skips a gradient of `None`: its
/// master, moments and update count stay as they are, unless `gradients.missing` says otherwise. It
/// is an error to give only a part of this rank's share of a parameter.
#[derive(Clone, Debug)]
pub enum Gradients<'a, G> {
    /// A gradient for each element of the shard, in shard order: as many as [`Partition::elems`].
    Shard(&'a [G]),
    /// Pieces in any order: the parameter, the first element within it, and a value for each
    /// element from there on.
    Pieces(Vec<(ParamIndex, u64, &'a [G])>),
    /// The gradients that were handed over before, through a [`GradientSink`](super::GradientSink).
    /// For an update of the caller's own, `G` is the format of `gradients.accumulate_in`.
    HandedOver,
}

impl Gradients<'static, f32> {
    /// [`Gradients::HandedOver`] for a step, where the format of what was handed over does not
    /// matter.
    pub fn handed_over() -> Self {
        Self::HandedOver
    }
}

impl<'a, G: GradElem> Gradients<'a, G> {
    /// Where the gradients of the caller's memory belong in the shard.
    ///
    /// # Errors
    /// Usage: a slice of another length than the shard; or, naming the parameter, one that is
    /// unknown, a piece beyond the parameter's end or outside of this rank's share, elements that
    /// come twice, or a share that is only partly covered.
    pub fn lay_out(
        &self,
        inventory: &Inventory,
        partition: &Partition,
    ) -> Result<ShardGradients<'a, G>> {
        match self {
            Self::Shard(shard) => ShardGradients::of_shard(partition, shard),
            Self::Pieces(pieces) => ShardGradients::of_pieces(inventory, partition, pieces),
            Self::HandedOver => Err(Error::internal(
                "gradients that were handed over are not in the caller's memory",
            )),
        }
    }
}

/// A piece of gradient and where in the shard it belongs.
#[derive(Clone, Copy, Debug)]
pub struct Fragment<'a, G> {
    /// Of which parameter.
    pub param: ParamIndex,
    /// Its first element within the shard.
    pub shard_offset: usize,
    /// A value for each element.
    pub grad: &'a [G],
}

impl<G> Fragment<'_, G> {
    fn end(&self) -> usize {
        self.shard_offset + self.grad.len()
    }
}

/// The gradients of a shard, in shard order, without overlap; each parameter's share is covered
/// whole or not at all.
#[derive(Clone, Debug)]
pub struct ShardGradients<'a, G> {
    fragments: Vec<Fragment<'a, G>>,
}

impl<'a, G: GradElem> ShardGradients<'a, G> {
    /// The gradients of the whole shard, in shard order, which need not be located, sorted or
    /// checked.
    fn of_shard(partition: &Partition, shard: &'a [G]) -> Result<Self> {
        if shard.len() as u64 != partition.elems() {
            return Err(Error::usage("a shard's gradients have another length than the shard")
                .with("gradients", shard.len())
                .with("shard", partition.elems()));
        }
        let fragment = |piece: &Run| Fragment {
            param: piece.param,
            shard_offset: piece.shard_offset as usize,
            grad: &shard[piece.in_shard()],
        };
        Ok(Self { fragments: partition.pieces().iter().map(fragment).collect() })
    }

    fn of_pieces(
        inventory: &Inventory,
        partition: &Partition,
        pieces: &[(ParamIndex, u64, &'a [G])],
    ) -> Result<Self> {
        let mut fragments = Vec::with_capacity(pieces.len());
        for (param, offset, grad) in pieces {
            locate(inventory, partition, (*param, *offset, grad.len() as u64), |_, run| {
                let from = (run.param_offset - offset) as usize;
                let grad = &grad[from..from + run.elems as usize];
                let shard_offset = run.shard_offset as usize;
                fragments.push(Fragment { param: *param, shard_offset, grad });
            })?;
        }
        fragments.sort_by_key(|fragment| fragment.shard_offset);
        let laid_out = Self { fragments };
        laid_out.check_coverage(inventory, partition)?;
        Ok(laid_out)
    }

    /// Fragments in the order of the shard, without overlap.
    pub fn of_fragments(fragments: Vec<Fragment<'a, G>>) -> Self {
        Self { fragments }
    }

    /// Treats parameters without a gradient as `missing` says: they are left out, get zeros, or are
    /// an error.
    ///
    /// # Errors
    /// Usage, naming the first.
    pub fn completed(
        mut self,
        missing: MissingGradient,
        inventory: &Inventory,
        partition: &Partition,
    ) -> Result<Self> {
        if missing == MissingGradient::Skip {
            return Ok(self);
        }
        let has_none = |piece: &&Run| self.within(piece.in_shard()).next().is_none();
        let without: Vec<Run> = partition.pieces().iter().filter(has_none).copied().collect();
        for piece in &without {
            if missing == MissingGradient::Error {
                let share = partition.pieces().iter().filter(|it| it.param == piece.param);
                let share = share.map(|it| it.elems).sum();
                return Err(missing_gradient(inventory, piece.param, share));
            }
            self.fragments.extend(zeros_for(piece));
        }
        self.fragments.sort_by_key(|fragment| fragment.shard_offset);
        Ok(self)
    }

    fn check_coverage(&self, inventory: &Inventory, partition: &Partition) -> Result<()> {
        let wrong = |message: &str, param: ParamIndex| {
            Error::usage(message).with("parameter", &inventory.parameter(param).name)
        };
        for pair in self.fragments.windows(2) {
            if pair[1].shard_offset < pair[0].end() {
                return Err(wrong("a gradient was handed over twice", pair[1].param)
                    .with("shard element", pair[1].shard_offset));
            }
        }
        let pieces: Vec<&Run> = partition.pieces_by_param().collect();
        for pieces in pieces.chunk_by(|a, b| a.param == b.param) {
            let given = pieces.iter().flat_map(|piece| self.within(piece.in_shard()));
            let given: usize = given.map(|(_, fragment)| fragment.grad.len()).sum();
            let share = pieces.iter().map(|piece| piece.elems).sum::<u64>();
            if given != 0 && given as u64 != share {
                return Err(wrong("a parameter's gradient is only partly there", pieces[0].param)
                    .with("given", given)
                    .with("this rank's share", share));
            }
        }
        Ok(())
    }

    /// The fragments' parts within a range of the shard, each with its own range.
    pub fn within(
        &self,
        range: Range<usize>,
    ) -> impl Iterator<Item = (Range<usize>, Fragment<'a, G>)> {
        let first = self.fragments.partition_point(|fragment| fragment.end() <= range.start);
        let overlapping = self.fragments[first..].iter();
        let Range { start, end } = range;
        overlapping.take_while(move |fragment| fragment.shard_offset < end).map(move |fragment| {
            let from = fragment.shard_offset.max(start);
            let to = fragment.end().min(end);
            let grad = &fragment.grad[from - fragment.shard_offset..to - fragment.shard_offset];
            (from..to, Fragment { param: fragment.param, shard_offset: from, grad })
        })
    }

    /// The parameters that have a gradient, each once, in order.
    pub fn params(&self) -> Vec<ParamIndex> {
        let mut params: Vec<_> = self.fragments.iter().map(|fragment| fragment.param).collect();
        params.sort_unstable();
        params.dedup();
        params
    }
}

/// Zeros for elements of the shard that have no gradient.
pub fn zeros_for<'a, G: GradElem>(run: &Run) -> impl Iterator<Item = Fragment<'a, G>> {
    let (param, range) = (run.param, run.in_shard());
    let starts = range.clone().step_by(G::zeros().len());
    starts.map(move |shard_offset| {
        let len = G::zeros().len().min(range.end - shard_offset);
        Fragment { param, shard_offset, grad: &G::zeros()[..len] }
    })
}

pub(super) fn missing_gradient(inventory: &Inventory, param: ParamIndex, share: u64) -> Error {
    Error::usage("a parameter has no gradient")
        .with("parameter", &inventory.parameter(param).name)
        .with("this rank's share", share)
        .hint("hand it over, or set gradients.missing to \"skip\" or \"zero\"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Parameter;

    fn shard() -> (Inventory, Partition) {
        let parameters = vec![Parameter::new("a", [10]), Parameter::new("b", [8190])];
        let inventory = Inventory::new(parameters).unwrap();
        let partition = Partition::new(&inventory, 4096..8200, 4096, 4096);
        (inventory, partition)
    }

    fn refusal(pieces: &[(u32, u64, &[f32])]) -> String {
        let (inventory, partition) = shard();
        let pieces =
            pieces.iter().map(|(param, offset, grad)| (ParamIndex(*param), *offset, *grad));
        let gradients = Gradients::Pieces(pieces.collect());
        gradients.lay_out(&inventory, &partition).unwrap_err().to_string()
    }

    #[test]
    fn wrong_pieces_are_named() {
        assert!(refusal(&[(7, 0, &[0.0])]).contains("unknown parameter"));
        assert!(refusal(&[(1, 8189, &[0.0, 0.0])]).contains("beyond its parameter's end"));
        assert!(refusal(&[(1, u64::MAX, &[0.0])]).contains("beyond its parameter's end"));
        assert!(refusal(&[(0, 0, &[0.0])]).contains("outside of this rank's shard"));
        assert!(refusal(&[(1, 4086, &[0.0; 8])]).contains("only partly there"));
        assert!(refusal(&[(1, 4086, &[0.0; 8]), (1, 4090, &[0.0; 2])]).contains("twice"));
    }

    #[test]
    fn pieces_in_any_order_cover_the_shard() {
        let (inventory, partition) = shard();
        let values: Vec<f32> = (0..4104).map(|i| i as f32).collect();
        let gradients = Gradients::Pieces(vec![
            (ParamIndex(1), 4086 + 1000, &values[1000..]),
            (ParamIndex(1), 4086, &values[..1000]),
        ]);
        let laid_out = gradients.lay_out(&inventory, &partition).unwrap();
        let seen = laid_out.within(999..1002).map(|(range, part)| (range, part.grad.to_vec()));
        assert_eq!(
            seen.collect::<Vec<_>>(),
            [(999..1000, vec![999.0]), (1000..1002, vec![1000.0, 1001.0])]
        );
        assert_eq!(laid_out.params(), [ParamIndex(1)]);
        let none = Gradients::<f32>::Pieces(Vec::new()).lay_out(&inventory, &partition).unwrap();
        assert!(none.params().is_empty());
    }
}
