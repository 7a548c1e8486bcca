//! A chunk that the caller updates: its state as f32 values, where they lie or decoded, and back.

use std::time::Instant;

use half::bf16;
use rayon::prelude::*;

use super::super::view::sections_mut;
use crate::optim::{ParamElem, Rounder, SPLIT_ELEMS, Section, SectionMut};
use crate::plan::Plan;
use crate::state::Codec;
use crate::swap::ResidentChunk;

/// A resident chunk, and the values of its state tensors that do not lie as fp32.
pub(in crate::step) struct LentChunk {
    pub resident: ResidentChunk,
    /// One for each state tensor; empty for those that lie as fp32.
    decoded: Vec<Vec<f32>>,
    /// Whether the caller may have changed something.
    pub has_changed: bool,
    /// Whether the caller knows the addresses of its state.
    pub is_exposed: bool,
    pub since: Instant,
}

/// The parts of a lent chunk that the caller may see.
pub(in crate::step) struct OpenChunk<'a> {
    /// The live values of every state tensor, to be changed.
    pub arrays: Vec<&'a mut [f32]>,
    /// Its spilled gradient, as it came from the drives.
    pub spilled: &'a [u8],
    /// To be set if the caller may change something.
    pub has_changed: &'a mut bool,
}

impl LentChunk {
    /// Decodes the state tensors that are not fp32 into `decoded`, the memory of an earlier chunk.
    /// `uppers` are the upper halves of the chunk's live masters, where those are parameters.
    pub fn new(
        plan: &Plan,
        pool: &rayon::ThreadPool,
        resident: ResidentChunk,
        uppers: &[bf16],
        mut decoded: Vec<Vec<f32>>,
    ) -> Self {
        let layout = plan.layout(resident.index());
        let elems = plan.partition().chunk(resident.index()).padded_elems as usize;
        decoded.resize_with(plan.tensors().len(), Vec::new);
        let tensors = plan.tensors().iter().zip(layout.sections()).zip(&mut decoded);
        let coded = tensors.filter(|((tensor, _), _)| tensor.codec != Codec::Fp32);
        let coded: Vec<_> = coded.collect();
        pool.install(|| {
            coded.into_par_iter().for_each(|((tensor, section), values)| {
                values.resize(elems, 0.0);
                Section::new(tensor, &resident[section.clone()], elems).decode(uppers, values);
            });
        });
        Self { resident, decoded, has_changed: false, is_exposed: false, since: Instant::now() }
    }

    /// The parts of the chunk that the caller may see.
    pub fn open(&mut self, plan: &Plan) -> OpenChunk<'_> {
        let chunk = self.resident.index();
        let live = plan.partition().chunk(chunk).elems as usize;
        let (bytes, spilled) = self.resident.with_gradient();
        let (sections, _) = sections_mut(plan, chunk, bytes);
        let arrays = sections.into_iter().zip(&mut self.decoded);
        let arrays = arrays.map(|(section, decoded)| match section {
            SectionMut::Fp32(values) => &mut values[..live],
            _ => &mut decoded[..live],
        });
        OpenChunk { arrays: arrays.collect(), spilled, has_changed: &mut self.has_changed }
    }

    /// Encodes what is not fp32 and emits the parameters of the chunk's live elements.
    pub fn encode<P: ParamElem>(
        &mut self,
        plan: &Plan,
        pool: &rayon::ThreadPool,
        rounder: Rounder,
        params: &mut [P],
    ) {
        let chunk = self.resident.index();
        let live = plan.partition().chunk(chunk).elems as usize;
        let offset = plan.rounding_offset(plan.partition().chunk(chunk).shard_offset);
        let (mut sections, mut uppers) = sections_mut(plan, chunk, &mut self.resident);
        if let (SectionMut::Fp32(master), false) = (&sections[0], plan.is_halved()) {
            let pieces = params.par_chunks_mut(SPLIT_ELEMS);
            let pieces = pieces.zip(master[..live].par_chunks(SPLIT_ELEMS));
            pool.install(|| {
                pieces.for_each(|(params, masters)| {
                    let pairs = params.iter_mut().zip(masters);
                    pairs.for_each(|(param, master)| *param = P::emit(*master));
                });
            });
        }
        let mut tasks = Vec::new();
        let mut all_halves = P::upper_halves_mut(params);
        for (number, (section, values)) in sections.iter_mut().zip(&self.decoded).enumerate() {
            for (piece, values) in values.chunks(SPLIT_ELEMS).enumerate() {
                let len = if number == 0 { all_halves.len().min(SPLIT_ELEMS) } else { 0 };
                let (halves, rest) = std::mem::take(&mut all_halves).split_at_mut(len);
                all_halves = rest;
                let keeps = if uppers.is_empty() { 0 } else { len };
                let (kept, rest) = std::mem::take(&mut uppers).split_at_mut(keeps);
                uppers = rest;
                let at = offset + (piece * SPLIT_ELEMS) as u64;
                tasks.push((section.cut(SPLIT_ELEMS), values, halves, kept, number as u64, at));
            }
        }
        pool.install(|| {
            tasks.into_par_iter().for_each(|(mut section, values, halves, kept, number, at)| {
                section.encode_at(values, halves, rounder, number, at);
                if !kept.is_empty() {
                    kept.copy_from_slice(halves);
                }
            });
        });
    }

    /// The chunk, and memory for the next one's values.
    pub fn into_parts(self) -> (ResidentChunk, Vec<Vec<f32>>) {
        (self.resident, self.decoded)
    }
}
