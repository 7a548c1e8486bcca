//! Which ranks share an inventory: the world is divided among groups, each with a communicator.

use std::sync::Arc;

use super::{Checked, Communicator, agree, gather_all};
use crate::error::{Error, Result};
use crate::units::Rank;

/// The ranks that share this rank's inventory, and the other groups of the world. Groups are
/// numbered from 0, in the order of their lowest ranks.
#[derive(Clone)]
pub struct Group {
    comm: Arc<dyn Communicator>,
    number: u32,
    members: Vec<Vec<Rank>>,
}

impl Group {
    /// Collective over the world: `shared` are those who share this rank's inventory; all ranks
    /// hand one in, or none, if all share one.
    ///
    /// # Errors
    /// Usage, agreed, if the communicators do not divide the world. Peer, not agreed, if another
    /// rank does not come in time.
    pub fn discover(
        world: &Arc<dyn Communicator>,
        shared: Option<Arc<dyn Communicator>>,
    ) -> Result<Self> {
        let shared = shared.map(Checked::over_part);
        let mut given = [u64::from(shared.is_some())];
        world.all_reduce_sum(&mut given)?;
        let ranks = (0..world.size()).map(Rank::from_index);
        let Some(comm) = shared.filter(|_| given[0] == world.size() as u64) else {
            let members = vec![ranks.collect()];
            let whole = Self { comm: Arc::clone(world), number: 0, members };
            return if given[0] == 0 { Ok(whole) } else { Err(some_have_none(given[0], world)) };
        };
        let mine: Vec<Rank> = gather_all(&*comm, &world.rank())?;
        // The first rank of each group lists all of it.
        let listed = if comm.rank().0 == 0 { mine.clone() } else { Vec::new() };
        let mut members: Vec<Vec<Rank>> = gather_all(&**world, &listed)?;
        members.retain(|ranks| !ranks.is_empty());
        members.sort_by_key(|ranks| ranks.iter().min().copied());
        let number = agree(&**world, check(&members, &mine, world))?;
        Ok(Self { comm, number, members })
    }

    /// The communicator of the ranks that share this rank's inventory.
    pub fn communicator(&self) -> &Arc<dyn Communicator> {
        &self.comm
    }

    /// The number of this rank's group.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// How many groups there are.
    pub fn count(&self) -> u32 {
        self.members.len() as u32
    }

    /// The ranks of this group, as ranks of the world, in the order of the group's communicator.
    pub fn ranks(&self) -> &[Rank] {
        &self.members[self.number as usize]
    }

    /// The number of the group of each rank of the world, in rank order.
    pub fn of_ranks(&self) -> Vec<u32> {
        let mut numbers = vec![0; self.members.iter().map(Vec::len).sum()];
        for (number, ranks) in self.members.iter().enumerate() {
            ranks.iter().for_each(|rank| numbers[rank.index()] = number as u32);
        }
        numbers
    }
}

/// The same on all ranks, since it comes from what all have given.
fn some_have_none(given: u64, world: &Arc<dyn Communicator>) -> Error {
    Error::usage("some ranks name those who share their inventory, others do not")
        .with("ranks that do", given)
        .with("ranks", world.size())
        .hint("hand in a communicator on all ranks, or on none")
        .agreed()
}

/// The number of this rank's group, if every rank is in one group and this one in that which it
/// believes.
fn check(members: &[Vec<Rank>], mine: &[Rank], world: &Arc<dyn Communicator>) -> Result<u32> {
    let mut all: Vec<Rank> = members.iter().flatten().copied().collect();
    all.sort_unstable();
    let number = members.iter().position(|ranks| ranks == mine);
    match number.filter(|_| all.into_iter().eq((0..world.size()).map(Rank::from_index))) {
        Some(number) => Ok(number as u32),
        None => Err(Error::usage("the communicators of inventories do not divide the world")
            .with("members of this rank's", mine.len())
            .with("ranks", world.size())
            .hint("every rank is in exactly one, and all its members hand in that same one")),
    }
}
