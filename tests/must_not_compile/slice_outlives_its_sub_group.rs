//! The arrays of a chunk go with its sub-group.

use optswap::{NoParameters, Result, SubGroup};

pub fn keep(mut sub_group: SubGroup<'_, '_, f32, NoParameters>) -> Result<()> {
    let mut chunk = sub_group.next_chunk()?.unwrap();
    let master = chunk.master_mut();
    sub_group.swap_out()?; //~ E0505
    master[0] = 1.0;
    Ok(())
}
