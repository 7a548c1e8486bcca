//! A sub-group that was swapped out is gone.

use optswap::internals::{error::Result, step::SubGroup};

pub fn twice(sub_group: SubGroup<'_, '_, f32, ()>) -> Result<()> {
    sub_group.swap_out()?;
    sub_group.swap_out() //~ E0382
}
