//! Gradients from the ranks that computed them to the ranks that own them, and parameters back, for
//! any cut of the parameters.

use std::ops::Range;

use bytemuck::Pod;

use super::optimizer::SwappedOptimizer;
use super::owners::Owners;
use crate::coord::{Call, all_gather_ranges, gather_all, reduce_scatter_ranges};
use crate::error::{Error, Result};
use crate::partition::Cut;
use crate::units::ParamIndex;

impl SwappedOptimizer {
    /// Collective among the ranks that share this rank's inventory: adds the gradients of all
    /// parameters over these ranks, and writes the sums that this rank owns to `shard`, in shard
    /// order. `full` has a gradient for each element of every parameter, end to end in the order of
    /// the inventory; `shard` has as many elements as [`Self::partition`]. Ranks are added in rank
    /// order, so the sum has the same bits for any communicator and any cut. It is a sum and no
    /// mean: divide by the number of data-parallel ranks where a mean is wanted.
    ///
    /// # Errors
    /// Usage, on this rank alone and before anything is sent, if a slice has another length than
    /// the parameters or the shard. Peer, not agreed, if another rank does not come in time.
    pub fn reduce_gradients(&mut self, full: &[f32], shard: &mut [f32]) -> Result<()> {
        let _call = self.enter("reduce_gradients");
        self.check_lengths(full.len(), shard.len())?;
        let comm = self.group.communicator().clone();
        let owners = self.owners()?;
        reduce_scatter_ranges(&*comm, full, owners.ranges(), shard)
    }

    /// Collective among the ranks that share this rank's inventory: adds the gradients of one
    /// parameter over these ranks, in rank order, and writes the sums that this rank owns to their
    /// places in `shard`, which is of the whole shard. `full` has a gradient for each element of
    /// the parameter. All ranks name the same parameter. Returns whether this rank owns any of it.
    ///
    /// # Errors
    /// Usage, on this rank alone and before anything is sent, for an unknown parameter or a slice
    /// of another length than the parameter or the shard. Peer, not agreed, if another rank does
    /// not come in time.
    pub fn reduce_gradient(
        &mut self,
        param: ParamIndex,
        full: &[f32],
        shard: &mut [f32],
    ) -> Result<bool> {
        let whole = self.flat_range_of(param, full.len())?;
        self.check_shard(shard.len())?;
        let _call = self.enter_for("reduce_gradient", param);
        let comm = self.group.communicator().clone();
        let rank = comm.rank().index();
        let (owned, in_shards) = self.owners()?.within(&whole);
        let mut mine = vec![0.0; owned[rank].iter().map(ExactSizeIterator::len).sum()];
        reduce_scatter_ranges(&*comm, full, &owned, &mut mine)?;
        let mut rest = mine.as_slice();
        for range in &in_shards[rank] {
            let (part, after) = rest.split_at(range.len());
            shard[range.clone()].copy_from_slice(part);
            rest = after;
        }
        Ok(!mine.is_empty())
    }

    /// Collective among the ranks that share this rank's inventory: every rank gives the parameters
    /// of its shard, in shard order, and gets every element of all parameters in `full`, end to end
    /// in the order of the inventory.
    ///
    /// # Errors
    /// Usage, on this rank alone and before anything is sent, if a slice has another length than
    /// the shard or the parameters. Peer, not agreed, if another rank does not come in time.
    pub fn gather_parameters<P: Pod>(&mut self, shard: &[P], full: &mut [P]) -> Result<()> {
        let _call = self.enter("gather_parameters");
        self.check_lengths(full.len(), shard.len())?;
        let comm = self.group.communicator().clone();
        let owners = self.owners()?;
        all_gather_ranges(&*comm, shard, owners.ranges(), full)
    }

    /// Which rank owns what. Collective at the first call, where ranks have brought pieces of their
    /// own: they exchange these.
    fn owners(&mut self) -> Result<&Owners> {
        if self.owners.is_none() {
            let plan = &self.shard.plan;
            let owners = match &plan.allotment().cut {
                Cut::Contiguous { .. } => Owners::of_ranges(plan),
                Cut::Own(pieces) => {
                    Owners::of_pieces(plan, &gather_all(&**self.group.communicator(), pieces)?)
                }
            };
            self.owners = Some(owners);
        }
        self.owners.as_ref().ok_or_else(|| Error::internal("nobody knows who owns what"))
    }

    fn enter_for(&self, call: &'static str, param: ParamIndex) -> Call {
        let inventory = self.shard.plan.inventory();
        Call::enter(&**self.group.communicator(), call, || {
            format!("parameter {}", inventory.parameter(param).name)
        })
    }

    fn check_lengths(&self, full: usize, shard: usize) -> Result<()> {
        let total = self.shard.plan.inventory().total_elems();
        if full as u64 != total {
            return Err(Error::usage("a slice has another length than all parameters together")
                .with("slice", full)
                .with("parameters", total));
        }
        self.check_shard(shard)
    }

    fn check_shard(&self, shard: usize) -> Result<()> {
        let elems = self.partition().elems();
        if shard as u64 != elems {
            return Err(Error::usage("a slice has another length than the shard")
                .with("slice", shard)
                .with("shard", elems));
        }
        Ok(())
    }

    fn flat_range_of(&self, param: ParamIndex, len: usize) -> Result<Range<usize>> {
        let inventory = self.shard.plan.inventory();
        let Some(parameter) = inventory.parameters().get(param.index()) else {
            return Err(Error::usage("there is no such parameter").with("parameter", param));
        };
        let (start, elems) = (inventory.flat_start(param), inventory.elems(param));
        if len as u64 != elems {
            return Err(Error::usage("a slice has another length than its parameter")
                .with("parameter", &parameter.name)
                .with("slice", len)
                .with("elements", elems));
        }
        Ok(start as usize..(start + elems) as usize)
    }
}
