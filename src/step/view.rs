//! State as f32 values, decoded from a resident chunk.

use half::bf16;

use crate::optim::{Section, SectionMut};
use crate::partition::Run;
use crate::plan::Plan;
use crate::state::Parameter;
use crate::storage::ExtentLayout;
use crate::units::ChunkIndex;

/// The state of one run of a parameter, as f32 values.
#[derive(Clone, Copy, Debug)]
pub struct StateView<'a> {
    /// The elements: `run.elems` of parameter `run.param`, from element `run.param_offset` on.
    pub run: &'a Run,
    /// The parameter that they belong to.
    pub parameter: &'a Parameter,
    /// The masters, one for each element.
    pub master: &'a [f32],
    /// The other state tensors, in the order in which the optimizer declares them, each with one
    /// value for each element; for AdamW `exp_avg` and `exp_avg_sq`.
    pub moments: &'a [&'a [f32]],
}

/// Decodes chunks, and reuses its memory from one chunk to the next.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    decoded: Vec<Vec<f32>>,
}

impl Decoder {
    /// The f32 values of every state tensor of a chunk, padding included. `params` are those of the
    /// whole shard, for a master whose upper halves are not on the drives.
    pub fn decode<'a>(
        &'a mut self,
        plan: &Plan,
        chunk: ChunkIndex,
        bytes: &'a [u8],
        params: &[bf16],
    ) -> Vec<&'a [f32]> {
        let layout = plan.layout(chunk);
        let elems = plan.partition().chunk(chunk).padded_elems as usize;
        let uppers = upper_halves(plan, chunk, &layout, bytes, params);
        self.decoded.resize_with(plan.tensors().len(), Vec::new);
        let tensors = plan.tensors().iter().zip(layout.sections()).zip(&mut self.decoded);
        let values = tensors.map(|((tensor, section), decoded)| {
            let section = Section::new(tensor, &bytes[section.clone()], elems);
            if let Section::Fp32(values) = section {
                return values;
            }
            decoded.resize(elems, 0.0);
            section.decode(uppers, decoded);
            decoded.as_slice()
        });
        values.collect()
    }
}

/// The upper halves of a chunk's live masters, from the extent or from the shard's parameters;
/// empty unless the codec is remainder16.
pub(crate) fn upper_halves<'a>(
    plan: &Plan,
    chunk: ChunkIndex,
    layout: &ExtentLayout,
    bytes: &'a [u8],
    params: &'a [bf16],
) -> &'a [bf16] {
    let chunk = plan.partition().chunk(chunk);
    let (start, elems) = (chunk.shard_offset as usize, chunk.elems as usize);
    match layout.upper_halves() {
        Some(section) => &bytemuck::cast_slice(&bytes[section])[..elems],
        None if plan.is_halved() => &params[start..start + elems],
        None => &[],
    }
}

/// The sections of a chunk's state tensors, to be changed, and that of its upper halves.
pub(crate) fn sections_mut<'a>(
    plan: &Plan,
    chunk: ChunkIndex,
    bytes: &'a mut [u8],
) -> (Vec<SectionMut<'a>>, &'a mut [bf16]) {
    let layout = plan.layout(chunk);
    let elems = plan.partition().chunk(chunk).padded_elems as usize;
    let mut rest = bytes;
    let mut cut = |len: usize| {
        let (front, back) = std::mem::take(&mut rest).split_at_mut(len);
        rest = back;
        front
    };
    let tensors = plan.tensors().iter().zip(layout.sections());
    let sections = tensors.map(|(it, section)| SectionMut::new(it, cut(section.len()), elems));
    let sections = sections.collect();
    let uppers = layout.upper_halves().map_or(0, |section| section.len());
    (sections, bytemuck::cast_slice_mut(cut(uppers)))
}
