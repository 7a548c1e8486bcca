//! A sub-group that was swapped out is gone.

use optswap::{NoParameters, Result, SubGroup};

pub fn twice(sub_group: SubGroup<'_, '_, f32, NoParameters>) -> Result<()> {
    sub_group.swap_out()?;
    sub_group.swap_out() //~ E0382
}
