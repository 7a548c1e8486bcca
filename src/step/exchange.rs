//! Gradients from the ranks that computed them to the ranks that own them, and parameters back, for
//! any cut of the parameters.

use bytemuck::Pod;

use super::optimizer::SwappedOptimizer;
use super::owners::{Owners, each_of};
use crate::coord::{Call, OwnedRanges, all_gather_ranges, reduce_scatter_ranges};
use crate::error::{Error, Result};
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
        self.learn_owners()?;
        reduce_scatter_ranges(&*comm, full, self.owned_ranges()?, shard)
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
        self.check_param(param, full.len())?;
        self.check_shard(shard.len())?;
        let _call = self.enter_for("reduce_gradient", param);
        let comm = self.group.communicator().clone();
        self.learn_owners()?;
        let plan = &self.shard.plan;
        let owned = self.known_owners()?.of_param(plan.inventory(), param);
        let own = &owned[comm.rank().index()];
        let mut mine = vec![0.0; own.iter().map(ExactSizeIterator::len).sum()];
        let ranges = owned.iter().map(|ranges| each_of(ranges)).collect();
        reduce_scatter_ranges(&*comm, full, ranges, &mut mine)?;
        let mut rest = mine.as_slice();
        for range in own {
            let in_param = range.start as u64..range.end as u64;
            plan.partition().locate(param, in_param, |_, run| {
                let (part, after) = rest.split_at(run.elems as usize);
                shard[run.in_shard()].copy_from_slice(part);
                rest = after;
            });
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
        self.learn_owners()?;
        all_gather_ranges(&*comm, shard, self.owned_ranges()?, full)
    }

    /// Learns which rank owns what, at the first call. Collective then, where ranks have brought
    /// pieces of their own.
    fn learn_owners(&mut self) -> Result<()> {
        if self.owners.is_none() {
            let comm = self.group.communicator();
            self.owners = Some(Owners::discover(&self.shard.plan, &**comm)?);
        }
        Ok(())
    }

    fn known_owners(&self) -> Result<&Owners> {
        self.owners.as_ref().ok_or_else(|| Error::internal("nobody knows who owns what"))
    }

    fn enter_for(&self, call: &'static str, param: ParamIndex) -> Call {
        let inventory = self.shard.plan.inventory();
        Call::enter(&**self.group.communicator(), call, || {
            format!("parameter {}", inventory.parameter(param).name)
        })
    }

    fn owned_ranges(&self) -> Result<Vec<OwnedRanges<'_>>> {
        Ok(self.known_owners()?.ranges(self.shard.plan.inventory()))
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

    fn check_param(&self, param: ParamIndex, len: usize) -> Result<()> {
        let inventory = self.shard.plan.inventory();
        let Some(parameter) = inventory.parameters().get(param.index()) else {
            return Err(Error::usage("there is no such parameter").with("parameter", param));
        };
        let elems = inventory.elems(param);
        if len as u64 != elems {
            return Err(Error::usage("a slice has another length than its parameter")
                .with("parameter", &parameter.name)
                .with("slice", len)
                .with("elements", elems));
        }
        Ok(())
    }
}
