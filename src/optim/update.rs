//! The update kernel: decode, unscale, clip, update, emit the low-precision parameter and encode,
//! in one pass over memory.
//!
//! State that is not fp32 is updated in tiles that stay in the innermost cache: decoded, updated
//! and encoded again by a loop each. So the codecs do not multiply the loops of the update.

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::apply::Arrays;
use super::element::{GradSlice, ParamSliceMut};
use super::rounding::{Rounder, TileRounder};
use super::rule::UpdateRule;
use super::section::SectionMut;
use super::width::Width;

/// Elements of one task. The number is fixed, so that the number of threads decides nothing but the
/// time. 64 Ki elements are 1.7 MB of memory traffic, which takes some hundred microseconds.
pub const SPLIT_ELEMS: usize = 64 << 10;

/// Elements that are decoded at once: three arrays of them stay in the innermost cache.
const TILE_ELEMS: usize = 1024;

/// Elements of one parameter, with what their update needs.
#[derive(Clone, Debug)]
pub struct Segment<'a> {
    /// Where the elements are within the task.
    pub at: Range<usize>,
    /// The parameter's numbers at this step.
    pub rule: UpdateRule,
    /// A gradient for each element.
    pub grad: GradSlice<'a>,
}

/// A part of a chunk that one thread updates: at most [`SPLIT_ELEMS`] elements, from a multiple of
/// [`SPLIT_ELEMS`] of the chunk on.
pub struct UpdateTask<'a> {
    /// The master.
    pub master: SectionMut<'a>,
    /// The moments; the second is empty for rules that keep one.
    pub moments: [SectionMut<'a>; 2],
    /// Parameters of the live elements (padding may follow them), to be emitted. They are also the
    /// upper halves of masters of which the state holds only the lower ones.
    pub params: ParamSliceMut<'a>,
    /// In a durable job whose parameters are the upper halves of its masters: where they are kept
    /// beside the state. Otherwise empty.
    pub kept: &'a mut [bf16],
    /// The elements that have a gradient, in order.
    pub segments: Vec<Segment<'a>>,
    /// How moments are rounded.
    pub rounder: Rounder,
    /// The flat index of the first element.
    pub flat: u64,
}

impl UpdateTask<'_> {
    /// Updates the state in place and emits the parameters.
    pub fn run(self) {
        self.run_on(Width::widest());
    }

    fn run_on(mut self, width: Width) {
        let [first, second] = &mut self.moments;
        let elems = self.segments.last().map_or(0, |segment| segment.at.end);
        let tile_elems = if self.master.is_fp32() && first.is_fp32() && second.is_fp32() {
            // Nothing is decoded, so longer loops are faster.
            SPLIT_ELEMS
        } else {
            TILE_ELEMS
        };
        let mut buffers = [[0.0; TILE_ELEMS]; 3];
        for start in (0..elems).step_by(tile_elems) {
            let end = start + tile_elems;
            let live = start..self.params.len().min(end);
            let tile = Tile {
                width,
                start,
                master: self.master.cut(tile_elems),
                moments: [first.cut(tile_elems), second.cut(tile_elems)],
                params: self.params.part(live),
            };
            let from = self.segments.partition_point(|segment| segment.at.end <= start);
            let to = self.segments.partition_point(|segment| segment.at.start < end);
            // A tile without a gradient keeps its bits.
            if from < to {
                let flat = self.flat + start as u64;
                let rounders = [0, 1, 2].map(|tensor| self.rounder.tile(tensor, flat));
                tile.update(&self.segments[from..to], rounders, &mut buffers);
            }
        }
        if !self.kept.is_empty() {
            self.kept.copy_from_slice(self.params.upper_halves());
        }
    }
}

/// Elements of a task that are updated together.
struct Tile<'a> {
    width: Width,
    /// Where the tile begins within the task.
    start: usize,
    master: SectionMut<'a>,
    moments: [SectionMut<'a>; 2],
    /// Those of the live elements.
    params: ParamSliceMut<'a>,
}

impl Tile<'_> {
    /// Updates the elements of these segments that lie in the tile. The buffers are for what must
    /// be decoded.
    fn update(
        mut self,
        segments: &[Segment<'_>],
        rounders: [TileRounder; 3],
        buffers: &mut [[f32; TILE_ELEMS]; 3],
    ) {
        let width = self.width;
        // Where the parameters are the upper halves of the masters, encoding emits them.
        let is_halved = matches!(self.master, SectionMut::Remainder16(_));
        let mut units = [(); TILE_ELEMS];
        let [first, second] = &mut self.moments;
        let [a, b, c] = buffers;
        let master_values = resident(width, &mut self.master, self.params.upper_halves(), a);
        let first_values = resident(width, first, &[], b);
        let second_values = resident(width, second, &[], c);
        for segment in segments {
            let from = segment.at.start.max(self.start);
            let to = segment.at.end.min(self.start + master_values.len());
            let grads = segment.grad.part(from - segment.at.start..to - segment.at.start);
            let at = from - self.start..to - self.start;
            let params = if is_halved {
                ParamSliceMut::Units(&mut units[at.clone()])
            } else {
                self.params.part(at.clone())
            };
            let arrays = Arrays {
                master: &mut master_values[at.clone()],
                first: &mut first_values[at.clone()],
                // Empty for rules that keep one moment.
                second: second_values.get_mut(at).unwrap_or_default(),
            };
            arrays.update(width, segment.rule, grads, params);
        }
        settle(width, &mut self.master, a, self.params.upper_halves(), rounders[0]);
        settle(width, first, b, &mut [], rounders[1]);
        settle(width, second, c, &mut [], rounders[2]);
    }
}

/// The elements of a section as f32: where they lie, or decoded.
fn resident<'a>(
    width: Width,
    section: &'a mut SectionMut<'_>,
    uppers: &[bf16],
    buffer: &'a mut [f32; TILE_ELEMS],
) -> &'a mut [f32] {
    match section {
        SectionMut::Fp32(values) => values,
        coded => {
            let values = &mut buffer[..coded.len()];
            coded.as_section().decode_on(width, uppers, values);
            values
        }
    }
}

/// Encodes what [`resident`] decoded.
fn settle(
    width: Width,
    section: &mut SectionMut<'_>,
    buffer: &[f32; TILE_ELEMS],
    uppers: &mut [bf16],
    rounder: TileRounder,
) {
    if !section.is_fp32() {
        let len = section.len();
        section.encode_on(width, &buffer[..len], uppers, rounder);
    }
}

/// Runs all tasks on the pool.
pub fn run_tasks(pool: &rayon::ThreadPool, tasks: Vec<UpdateTask<'_>>) {
    pool.install(|| tasks.into_par_iter().with_max_len(1).for_each(UpdateTask::run));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::width::widths;
    use super::*;
    use crate::optim::reference::Reference;
    use crate::optim::{GradElem, ParamElem};
    use crate::state::{Codec, Hyperparameters, OptimizerKind, Rounding, StateTensor};

    const ELEMS: usize = 4096;

    struct Case {
        masters: Vec<f32>,
        grads: Vec<f32>,
        /// Where the second parameter begins, where its gradient ends.
        cuts: [usize; 2],
        steps: u64,
        rounding: Rounding,
        codecs: [Codec; 2],
    }

    impl Case {
        fn tensors(&self, kind: OptimizerKind) -> Vec<StateTensor> {
            let [master, moments] = self.codecs;
            kind.state_tensors(|name| if name == "master" { master } else { moments })
        }

        /// Updates by the kernel, on registers of every width, must be those of the reference.
        fn check(&self, kind: OptimizerKind) {
            let hyper = Hyperparameters::default();
            let tensors = self.tensors(kind);
            for width in widths() {
                let mut reference = Reference::new(kind, self.masters.clone());
                let mut sections: Vec<Vec<u64>> = tensors
                    .iter()
                    .map(|it| vec![0; it.codec.section_bytes(ELEMS as u64) as usize / 8])
                    .collect();
                let live = self.masters.len();
                let keeps = self.codecs[0] == Codec::Remainder16;
                let mut kept = vec![bf16::ZERO; if keeps { live } else { 0 }];
                let mut params = vec![bf16::ZERO; live];
                let mut padded = self.masters.clone();
                padded.resize(ELEMS, 0.0);
                let bytes = bytemuck::cast_slice_mut(&mut sections[0]);
                SectionMut::new(&tensors[0], bytes, ELEMS).encode_nearest(&padded, &mut params);
                for step in 1..=self.steps {
                    let rounder = Rounder::new(self.rounding, 3, step);
                    let [cut, end] = self.cuts;
                    for at in [0..cut, cut..end] {
                        reference.update(&hyper, step, 0.5, at.clone(), &self.grads[at]);
                    }
                    reference.round(&tensors, rounder, 77);
                    let segment = |at: Range<usize>| Segment {
                        at: at.clone(),
                        rule: UpdateRule::new(kind, &hyper, step, 0.5),
                        grad: GradElem::slice(&self.grads[at]),
                    };
                    let mut views = sections.iter_mut().zip(&tensors).map(|(bytes, tensor)| {
                        SectionMut::new(tensor, bytemuck::cast_slice_mut(bytes), ELEMS)
                    });
                    let mut next = || views.next().unwrap_or(SectionMut::empty());
                    let task = UpdateTask {
                        master: next(),
                        moments: [next(), next()],
                        params: ParamElem::slice_mut(&mut params),
                        kept: &mut kept,
                        segments: vec![segment(0..cut), segment(cut..end)],
                        rounder,
                        flat: 77,
                    };
                    task.run_on(width);
                }
                for (tensor, (bytes, expected)) in
                    tensors.iter().zip(sections.iter().zip(reference.arrays()))
                {
                    let section =
                        super::super::Section::new(tensor, bytemuck::cast_slice(bytes), ELEMS);
                    let mut found = vec![0.0; ELEMS];
                    section.decode(&params, &mut found);
                    let bits = |values: &[f32]| -> Vec<u32> {
                        values.iter().map(|value| value.to_bits()).collect()
                    };
                    assert_eq!(bits(&found[..live]), bits(expected), "{kind:?} {}", tensor.name);
                }
                assert!(!keeps || kept == params);
                for (param, master) in params[..self.cuts[1]].iter().zip(&reference.arrays()[0]) {
                    let nearest = if keeps {
                        crate::optim::split_halves(*master).0
                    } else {
                        bf16::from_f32(*master)
                    };
                    assert_eq!(param.to_bits(), nearest.to_bits());
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn every_width_gives_the_bits_of_the_scalar_reference(
            values in prop::collection::vec((-1e3f32..1e3, any::<u32>()), 1..ELEMS),
            cuts in prop::array::uniform2(any::<prop::sample::Index>()),
            steps in 1u64..4,
            is_stochastic: bool,
            master in prop::sample::select(vec![Codec::Fp32, Codec::Remainder16]),
            moments in prop::sample::select(vec![Codec::Fp32, Codec::Bf16, Codec::Int8]),
        ) {
            let grads = values.iter().map(|(_, bits)| {
                let grad = f32::from_bits(*bits);
                if grad.is_finite() && grad.abs() < 1e12 { grad } else { 0.0 }
            });
            let mut cuts = cuts.map(|cut| cut.index(values.len() + 1));
            cuts.sort_unstable();
            let case = Case {
                grads: grads.collect(),
                masters: values.iter().map(|(master, _)| *master).collect(),
                cuts,
                steps,
                rounding: if is_stochastic { Rounding::Stochastic } else { Rounding::Nearest },
                codecs: [master, moments],
            };
            case.check(OptimizerKind::AdamW);
            case.check(OptimizerKind::Adam);
            case.check(OptimizerKind::Sgd);
            case.check(OptimizerKind::Lion);
            case.check(OptimizerKind::Adagrad);
        }
    }
}
