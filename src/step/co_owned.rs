//! Parameters of which several ranks own a part: all of these ranks give a step its gradient, or
//! none. Otherwise the norm is that of no gradient, and parts of one parameter are updated without
//! the others.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::coord::{Communicator, Group, agree, gather_all};
use crate::error::{Error, Result};
use crate::partition::{Piece, slice_of};
use crate::state::Inventory;
use crate::units::{ParamIndex, mix64};

/// This rank's parameters that other ranks own parts of too.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct CoOwned {
    group: u32,
    /// By parameter: what this rank adds to the sum if it gives the gradient. It adds up to zero
    /// over the owners.
    terms: BTreeMap<ParamIndex, u64>,
}

impl CoOwned {
    /// With the default cut, where each of the ranks that share the inventory owns a range of the
    /// flat space.
    pub fn of_ranges(inventory: &Inventory, ranges: &[Range<u64>], group: &Group) -> Self {
        let me = group.communicator().rank().index();
        // Every parameter of this rank but the first and the last is its own alone.
        let mut params = BTreeSet::new();
        if let Some(mine) = ranges.get(me).filter(|range| !range.is_empty()) {
            params.insert(inventory.param_at(mine.start));
            params.insert(inventory.param_at(mine.end - 1));
        }
        let owners = params.into_iter().map(|param| {
            let start = inventory.flat_start(param);
            let end = start + inventory.elems(param);
            let has_part = |range: &&Range<u64>| range.start.max(start) < range.end.min(end);
            let owners = ranges.iter().filter(has_part).count() as u64;
            let is_first = ranges.iter().position(|range| has_part(&range)) == Some(me);
            (param, is_first, owners)
        });
        Self::of_owners(group.number(), owners)
    }

    /// With slices of every parameter, which follow from its size.
    pub fn of_slices(inventory: &Inventory, group: &Group) -> Self {
        let comm = group.communicator();
        let (me, ranks) = (comm.rank().index(), comm.size());
        let params = (0..inventory.parameters().len()).map(ParamIndex::from_index);
        let mine = params.filter_map(|param| {
            let elems = inventory.elems(param);
            let mine = slice_of(elems, me, ranks);
            // All slices but the last one are as long as the first.
            let owners = || elems.div_ceil(slice_of(elems, 0, ranks).end);
            (!mine.is_empty()).then(|| (param, me == 0, owners()))
        });
        Self::of_owners(group.number(), mine)
    }

    /// Where ranks have brought pieces of their own, from those of every rank that shares the
    /// inventory: what each of them has.
    pub fn of_pieces(pieces: &[Vec<Piece>], group: u32) -> Vec<Self> {
        let params_of = |pieces: &Vec<Piece>| -> BTreeSet<ParamIndex> {
            pieces.iter().map(|piece| piece.param).collect()
        };
        let mut owners: BTreeMap<ParamIndex, (usize, u64)> = BTreeMap::new();
        for (rank, of_rank) in pieces.iter().enumerate() {
            for param in params_of(of_rank) {
                owners.entry(param).or_insert((rank, 0)).1 += 1;
            }
        }
        let of_rank = |(rank, pieces): (usize, &Vec<Piece>)| {
            let mine = params_of(pieces).into_iter().map(|param| {
                let (first, owners) = owners[&param];
                (param, first == rank, owners)
            });
            Self::of_owners(group, mine)
        };
        pieces.iter().enumerate().map(of_rank).collect()
    }

    fn of_owners(group: u32, owners: impl Iterator<Item = (ParamIndex, bool, u64)>) -> Self {
        let shared = owners.filter(|(.., owners)| *owners > 1);
        let terms = shared.map(|(param, is_first, owners)| {
            let weight = mix64(u64::from(group) << 32 | u64::from(param.0));
            let others = owners - 1;
            (param, if is_first { weight.wrapping_mul(others) } else { weight.wrapping_neg() })
        });
        Self { group, terms: terms.collect() }
    }

    /// What this rank adds to the sum over all ranks if it has gradients of these parameters. The
    /// sum is 0 if all owners of each have one, or none; otherwise it is as good as never.
    pub fn term(&self, params: &[ParamIndex]) -> u64 {
        let terms = params.iter().filter_map(|param| self.terms.get(param));
        terms.fold(0, |sum, term| sum.wrapping_add(*term))
    }

    /// Collective over the world, where the sum is not 0: the error that names the first parameter
    /// of which some owners have the gradient and others have not.
    ///
    /// # Errors
    /// That error, agreed. Peer, not agreed, if another rank does not come in time.
    pub fn name_missing(
        &self,
        params: &[ParamIndex],
        inventory: &Inventory,
        group: &Group,
        world: &dyn Communicator,
    ) -> Result<()> {
        let given: BTreeSet<ParamIndex> = params.iter().copied().collect();
        let mine: Vec<(u32, bool)> =
            self.terms.keys().map(|param| (param.0, given.contains(param))).collect();
        let all = gather_all(&**group.communicator(), &mine)?;
        let mut by_param: BTreeMap<u32, [Vec<u32>; 2]> = BTreeMap::new();
        for (of_rank, rank) in all.iter().zip(group.ranks()) {
            for (param, is_given) in of_rank {
                by_param.entry(*param).or_default()[usize::from(*is_given)].push(rank.0);
            }
        }
        let mixed = by_param.iter().find(|(_, ranks)| ranks.iter().all(|it| !it.is_empty()));
        let named = mixed.map_or(Ok(()), |(param, [without, with])| {
            Err(Error::usage("only some of the ranks that own a parameter have its gradient")
                .with("parameter", &inventory.parameter(ParamIndex(*param)).name)
                .with("with", crate::coord::rank_words(with))
                .with("without", crate::coord::rank_words(without))
                .hint("all ranks hand over the gradients of the same parameters, or none of one"))
        });
        agree(world, named)?;
        let group = self.group;
        Err(Error::internal("gradients of parameters do not add up").with("inventory", group))
    }
}
