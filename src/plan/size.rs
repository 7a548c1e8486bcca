//! How large a shard is, by closed formulas: what can be judged before any table of its chunks is
//! built, which for a model that is far too large would itself take all memory.

use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::partition::{Allotment, Cut, contiguous_range};
use crate::state::{Inventory, StateTensor};
use crate::storage::{ExtentLayout, normalized};
use crate::units::{BLOCK_ELEMS, Bytes};

/// The least number of buffers that keeps reads and writes going at the same time.
pub(super) const BUFFERS_MIN: u64 = 2;

/// A shard's size.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardSize {
    /// Chunks of one size: how many, and the bytes of an extent of theirs.
    extents: Vec<(u64, u64)>,
    /// Stripe units of all slots, without headroom.
    units: u64,
    unit_bytes: u64,
    headroom: f64,
    shares: Vec<f64>,
}

impl ShardSize {
    /// The size of the shard that has this allotment of an inventory.
    ///
    /// # Errors
    /// Usage if no drive is named, the shard has too many stripe units, or the memory budget is
    /// below the minimum for its chunks.
    pub fn resolve(config: &Config, inventory: &Inventory, allotment: &Allotment) -> Result<Self> {
        if config.drives.paths.is_empty() {
            return Err(Error::usage("no drive is named").hint(
                "name a directory on each drive with --drives DIR,DIR or in [drives] paths",
            ));
        }
        let elems = match &allotment.cut {
            Cut::Contiguous { part, parts } => {
                let range = contiguous_range(inventory.total_elems(), *part, *parts);
                range.end - range.start
            }
            Cut::Own(pieces) => pieces.iter().map(|piece| piece.elems).sum(),
        };
        let tensors = config.state_tensors();
        let slots = if config.is_durable() { 2 } else { 1 };
        let extents = extents(config, elems, &tensors);
        let unit_bytes = config.drives.stripe_unit.0;
        let of_slot = extents.iter().map(|(count, bytes)| count * bytes.div_ceil(unit_bytes));
        let units = slots * of_slot.sum::<u64>();
        let size = Self {
            extents,
            units,
            unit_bytes,
            headroom: config.drives.stripe_headroom,
            shares: normalized(&config.drive_weights()),
        };
        size.check_units()?;
        buffer_count(config, 0, size.buffer_bytes(), size.chunks())?;
        Ok(size)
    }

    /// Number of chunks.
    pub fn chunks(&self) -> u64 {
        self.extents.iter().map(|(count, _)| count).sum()
    }

    /// Bytes of the largest extent.
    pub fn buffer_bytes(&self) -> u64 {
        self.extents.iter().map(|(_, bytes)| *bytes).max().unwrap_or(0)
    }

    /// Bytes of state that a drive takes at least, headroom included: units are dealt by share, so
    /// it may be one unit more.
    pub fn drive_bytes(&self) -> Vec<u64> {
        let of_share = |share: &f64| {
            let units = (self.units as f64 * share).floor();
            (units + (units * self.headroom).ceil()) as u64 * self.unit_bytes
        };
        self.shares.iter().map(of_share).collect()
    }

    /// Checks that the stripe units can be counted in 32 bits.
    fn check_units(&self) -> Result<()> {
        let units = self.units as f64 * (1.0 + self.headroom);
        if units < f64::from(u32::MAX / 2) {
            return Ok(());
        }
        Err(Error::usage("a rank's state has too many stripe units")
            .with("drives.stripe_unit", Bytes(self.unit_bytes))
            .with("state of one rank", Bytes(self.units.saturating_mul(self.unit_bytes)).human())
            .hint("raise drives.stripe_unit"))
    }
}

/// Sub-groups are cut in shard order, and each into chunks, so there are chunks of at most four
/// sizes.
fn extents(config: &Config, elems: u64, tensors: &[StateTensor]) -> Vec<(u64, u64)> {
    let (sub_group, chunk) = (config.swap.sub_group_elements.0, config.swap.chunk_elements.0);
    let (whole, rest) = (elems / sub_group, elems % sub_group);
    let groups = [
        (whole * (sub_group / chunk) + rest / chunk, chunk),
        (whole, sub_group % chunk),
        (1, rest % chunk),
    ];
    let groups = groups.into_iter().filter(|(count, elems)| *count > 0 && *elems > 0);
    let extent = |(count, elems): (u64, u64)| {
        let padded = elems.div_ceil(BLOCK_ELEMS) * BLOCK_ELEMS;
        (count, ExtentLayout::new(padded, tensors, config.is_durable()).bytes())
    };
    groups.map(extent).collect()
}

/// The number of buffers for state: as many as the budget holds beside gradients, but no more than
/// there are chunks.
pub(super) fn buffer_count(
    config: &Config,
    taken: u64,
    buffer_bytes: u64,
    chunks: u64,
) -> Result<usize> {
    let wanted = BUFFERS_MIN.min(chunks);
    let budget = config.swap.memory_budget;
    let room = budget.0.checked_sub(taken);
    let fitting = room.and_then(|room| room.checked_div(buffer_bytes)).unwrap_or(0).min(chunks);
    if fitting < wanted {
        let gradients = match taken {
            0 => String::new(),
            _ => format!(
                " and {} for gradients (gradients.place, gradients.accumulate_in)",
                Bytes(taken).human()
            ),
        };
        return Err(Error::new(ErrorKind::Usage, "the memory budget is below the minimum")
            .with("swap.memory_budget", budget)
            .with("minimum", Bytes(wanted * buffer_bytes + taken))
            .hint(format!(
                "{wanted} buffers of one chunk ({}){gradients} are needed: raise --memory-budget, \
                 or lower swap.chunk_elements (now {})",
                Bytes(buffer_bytes).human(),
                config.swap.chunk_elements
            )));
    }
    Ok(fitting as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Plan;
    use crate::state::Parameter;

    #[test]
    fn the_closed_formulas_say_what_the_tables_do() {
        let text = "[drives]\npaths = [\"/a\"]\nstripe_unit = \"64KiB\"\nstripe_headroom = 0.1\n\
                    [swap]\nchunk_elements = 8192\nsub_group_elements = 20480\n";
        for (elems, parts) in [(1, 1), (4096, 1), (20_480, 1), (100_001, 1), (1_000_000, 3)] {
            for durability in ["", "[durability]\nmode = \"step\"\n"] {
                let config = Config::parse(&format!("{text}{durability}")).unwrap();
                let inventory = Inventory::new(vec![Parameter::new("w", [elems])]).unwrap();
                for part in 0..parts {
                    let allotment = Allotment {
                        shard: part,
                        shards: parts,
                        group: 0,
                        groups: 1,
                        cut: Cut::Contiguous { part, parts },
                        parts: (0..parts).collect(),
                        uncounted: Vec::new(),
                    };
                    let size = ShardSize::resolve(&config, &inventory, &allotment).unwrap();
                    let plan = Plan::resolve(&config, inventory.clone(), &allotment).unwrap();
                    assert_eq!(size.drive_bytes(), plan.drive_bytes(), "{elems} {part}");
                    assert_eq!(size.chunks(), plan.partition().chunks().len() as u64);
                    assert_eq!(size.buffer_bytes(), plan.buffer_bytes() as u64);
                }
            }
        }
    }
}
