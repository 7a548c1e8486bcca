//! The bytes of a resident chunk go with it.

use optswap::internals::swap::ResidentChunk;

pub fn keep(chunk: ResidentChunk) -> u8 {
    let bytes = &chunk[..8];
    chunk.swap_out(); //~ E0505
    bytes[0]
}
