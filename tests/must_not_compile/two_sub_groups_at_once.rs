//! One sub-group is swapped in at a time.

use optswap::{NoParameters, Result, SubGroups};

pub fn two(mut groups: SubGroups<'_, '_, f32, NoParameters>) -> Result<()> {
    let first = groups.swap_in()?.unwrap();
    let second = groups.swap_in()?.unwrap(); //~ E0499
    first.swap_out()?;
    second.swap_out()
}
