//! Digests of the whole state that do not depend on where it lies.

use std::ops::Range;

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::super::optimizer::SwappedOptimizer;
use super::super::view::Decoder;
use crate::coord::agree;
use crate::error::Result;
use crate::optim::ParamElem;
use crate::partition::{Cut, Run};
use crate::plan::Plan;
use crate::swap::ResidentChunk;
use crate::units::{BLOCK_ELEMS, mix64};

impl SwappedOptimizer {
    /// Collective: a 128-bit digest over master and moments, read back from the drives; 32
    /// hexadecimal digits, the same on every rank, for any drives, engine and budget, and with the
    /// default cut for any number of ranks. Where the caller has brought pieces of its own, this is
    /// [`Self::element_digest`], which is another number for the same state.
    ///
    /// Each block of 4,096 elements of the flat space is hashed together with its number (XXH3,
    /// 128 bits); the digest is the sum of all blocks' hashes, each half modulo 2^64. Blocks of
    /// inventory number g are numbered from g times 2^48 on.
    ///
    /// `params` are the parameters of the shard, in shard order, as they were emitted last. Only a
    /// scratch job with the codec remainder16 needs them, since they hold the upper halves of its
    /// masters; [`NO_PARAMETERS`](crate::NO_PARAMETERS) does for all others.
    ///
    /// # Errors
    /// Agreed: errors of the drives; usage if `params` are needed and missing.
    pub fn state_digest<P: ParamElem>(&mut self, params: &[P]) -> Result<String> {
        let _call = self.enter("state_digest");
        match self.shard.plan.allotment().cut {
            Cut::Contiguous { .. } => self.sum_digests(params, add_blocks),
            Cut::Own(_) => self.sum_digests(params, add_elements),
        }
    }

    /// Collective: a 128-bit digest of the same kind that is the same however the parameters are
    /// dealt to ranks: in contiguous ranges or in any pieces. It takes longer, since every element
    /// is hashed by itself, with the name of its parameter, its place in the parameter, and the
    /// number of its inventory. Of the copies of a replicated parameter only the one that counts in
    /// the norm is hashed.
    ///
    /// `params` are the parameters of the shard, in shard order, as they were emitted last. Only a
    /// scratch job with the codec remainder16 needs them, since they hold the upper halves of its
    /// masters; [`NO_PARAMETERS`](crate::NO_PARAMETERS) does for all others.
    ///
    /// # Errors
    /// Agreed: errors of the drives; usage if `params` are needed and missing.
    pub fn element_digest<P: ParamElem>(&mut self, params: &[P]) -> Result<String> {
        let _call = self.enter("element_digest");
        self.sum_digests(params, add_elements)
    }

    fn sum_digests<P: ParamElem>(
        &mut self,
        params: &[P],
        add: impl Fn(&Plan, &ResidentChunk, &[&[f32]]) -> [u64; 2],
    ) -> Result<String> {
        let params = P::upper_halves(params);
        let mut decoder = Decoder::default();
        let mut halves = [0u64; 2];
        let usable = self.check_usable();
        let read = usable.and_then(|()| {
            self.read_all(params, |plan, resident, _| {
                let arrays = decoder.decode(plan, resident.index(), resident, params);
                halves = sum(halves, add(plan, resident, &arrays));
                Ok(())
            })
        });
        agree(&*self.comm, read)?;
        self.comm.all_reduce_sum(&mut halves)?;
        Ok(format!("{:016x}{:016x}", halves[0], halves[1]))
    }
}

fn sum(a: [u64; 2], b: [u64; 2]) -> [u64; 2] {
    [a[0].wrapping_add(b[0]), a[1].wrapping_add(b[1])]
}

/// The digests of a chunk's blocks of the flat space.
fn add_blocks(plan: &Plan, resident: &ResidentChunk, arrays: &[&[f32]]) -> [u64; 2] {
    let partition = plan.partition();
    let chunk = partition.chunk(resident.index());
    let first_block = (partition.flat().start + chunk.shard_offset) / BLOCK_ELEMS;
    let first_block = first_block + (u64::from(plan.allotment().group) << 48);
    let block_elems = BLOCK_ELEMS as usize;
    let mut halves = [0; 2];
    for (block, start) in (0..chunk.elems as usize).step_by(block_elems).enumerate() {
        let end = (chunk.elems as usize).min(start + block_elems);
        let mut hash = Xxh3::new();
        hash.update(&(first_block + block as u64).to_le_bytes());
        for array in arrays {
            hash.update(bytemuck::cast_slice(&array[start..end]));
        }
        let digest = hash.digest128();
        halves = sum(halves, [(digest >> 64) as u64, digest as u64]);
    }
    halves
}

/// The digests of a chunk's elements.
fn add_elements(plan: &Plan, resident: &ResidentChunk, arrays: &[&[f32]]) -> [u64; 2] {
    let chunk = plan.partition().chunk(resident.index());
    let mut halves = [0; 2];
    for run in plan.partition().runs_of(resident.index()) {
        let name = &plan.inventory().parameter(run.param).name;
        let key = mix64(xxh3_64(name.as_bytes()) ^ u64::from(plan.allotment().group) << 32);
        let shift = run.in_chunk(chunk).start;
        // Only what lies between the copies that count elsewhere.
        let mut start = run.in_shard().start;
        let end = run.in_shard().end..run.in_shard().end;
        let gaps = plan.norm_blocks().uncounted_within(run.in_shard());
        for gap in gaps.chain([end]) {
            let at = start - run.in_shard().start..gap.start - run.in_shard().start;
            halves = sum(halves, of_elements(key, run, at, shift, arrays));
            start = gap.end;
        }
    }
    halves
}

fn of_elements(
    key: u64,
    run: &Run,
    in_run: Range<usize>,
    shift: usize,
    arrays: &[&[f32]],
) -> [u64; 2] {
    let of_element = |at: usize| {
        let place = key.wrapping_add(run.param_offset + at as u64);
        let values = arrays.iter().map(|array| u64::from(array[shift + at].to_bits()));
        let hash = values.fold(mix64(place), |hash, bits| mix64(hash ^ bits));
        [hash, mix64(hash ^ key)]
    };
    in_run.map(of_element).fold([0; 2], sum)
}
