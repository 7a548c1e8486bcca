//! One sub-group is swapped in at a time.

use optswap::internals::{error::Result, step::SubGroups};

pub fn two(mut groups: SubGroups<'_, '_, f32, ()>) -> Result<()> {
    let first = groups.swap_in()?.unwrap();
    let second = groups.swap_in()?.unwrap(); //~ E0499
    first.swap_out()?;
    second.swap_out()
}
