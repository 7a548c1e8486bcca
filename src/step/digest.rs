//! A digest of the whole state that does not depend on how it is cut or where it lies.

use xxhash_rust::xxh3::Xxh3;

use super::optimizer::SwappedOptimizer;
use super::view::Decoder;
use crate::coord::agree;
use crate::error::Result;
use crate::optim::ParamElem;
use crate::units::BLOCK_ELEMS;

impl SwappedOptimizer {
    /// Collective: a 128-bit digest over master and moments in flat order, read back from the
    /// drives; 32 hexadecimal digits, the same on every rank, for any drives, engine, budget and
    /// number of ranks.
    ///
    /// Each block of 4,096 elements of the flat space is hashed together with its number (XXH3,
    /// 128 bits); the digest is the sum of all blocks' hashes, each half modulo 2^64.
    ///
    /// # Errors
    /// Agreed errors of the drives.
    pub fn state_digest(&mut self) -> Result<String> {
        self.state_digest_with::<()>(&[])
    }

    /// Collective: as [`Self::state_digest`], with parameters as in [`Self::inspect_with`].
    ///
    /// # Errors
    /// As [`Self::inspect_with`].
    pub fn state_digest_with<P: ParamElem>(&mut self, params: &[P]) -> Result<String> {
        let params = P::upper_halves(params);
        let mut decoder = Decoder::default();
        let mut halves = [0u64; 2];
        let usable = self.check_usable();
        let read = usable.and_then(|()| {
            self.read_all(params, |plan, resident, _| {
                let partition = plan.partition();
                let chunk = partition.chunk(resident.index());
                let arrays = decoder.decode(plan, resident.index(), resident, params);
                let first_block = (partition.flat().start + chunk.shard_offset) / BLOCK_ELEMS;
                let block_elems = BLOCK_ELEMS as usize;
                for (block, start) in (0..chunk.elems as usize).step_by(block_elems).enumerate() {
                    let end = (chunk.elems as usize).min(start + block_elems);
                    let mut hash = Xxh3::new();
                    hash.update(&(first_block + block as u64).to_le_bytes());
                    for array in &arrays {
                        hash.update(bytemuck::cast_slice(&array[start..end]));
                    }
                    let digest = hash.digest128();
                    halves[0] = halves[0].wrapping_add((digest >> 64) as u64);
                    halves[1] = halves[1].wrapping_add(digest as u64);
                }
                Ok(())
            })
        });
        agree(&*self.comm, read)?;
        self.comm.all_reduce_sum(&mut halves)?;
        Ok(format!("{:016x}{:016x}", halves[0], halves[1]))
    }
}
