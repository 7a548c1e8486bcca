//! The update kernel: decode, unscale, clip, update, emit the low-precision parameter and encode,
//! in one pass over memory.
//!
//! A task goes through its elements in tiles that stay in the innermost cache. For every tile, one
//! short loop each converts the gradients, decodes the state, applies the rule, emits parameters
//! and encodes the state. So each loop is compiled for one rule or one number format, and never for
//! all combinations of them.
//!
//! Every loop is written once. Compiled for AVX2 and AVX-512 it uses wider registers but the same
//! IEEE operations in the same order (no fused multiply-add), so every build gives the same bits as
//! the scalar reference.

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::codec::SectionMut;
use super::element::{GradSlice, ParamSliceMut};
use super::rounding::{Rounder, TileRounder};
use super::rule::{Rule, UpdateRule};
use super::width::{Kernel, Width, on_width};

/// Elements of one task. The number is fixed, so that the number of threads decides nothing but the
/// time. 64 Ki elements are 1.7 MB of memory traffic, which takes some hundred microseconds.
pub const SPLIT_ELEMS: usize = 64 << 10;

/// Elements that are updated together: four arrays of them stay in the innermost cache.
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
        let mut buffers = Buffers::new();
        let [first, second] = &mut self.moments;
        let elems = self.segments.last().map_or(0, |segment| segment.at.end);
        for start in (0..elems).step_by(TILE_ELEMS) {
            let live = start..self.params.len().min(start + TILE_ELEMS);
            let tile = Tile {
                width,
                start,
                master: self.master.cut(TILE_ELEMS),
                moments: [first.cut(TILE_ELEMS), second.cut(TILE_ELEMS)],
                params: self.params.part(live),
            };
            let from = self.segments.partition_point(|segment| segment.at.end <= start);
            let to = self.segments.partition_point(|it| it.at.start < start + TILE_ELEMS);
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

/// Room for a tile's values as f32, where they lie in another format.
struct Buffers {
    grads: [f32; TILE_ELEMS],
    master: [f32; TILE_ELEMS],
    moments: [[f32; TILE_ELEMS]; 2],
}

impl Buffers {
    fn new() -> Self {
        let zeros = [0.0; TILE_ELEMS];
        Self { grads: zeros, master: zeros, moments: [zeros; 2] }
    }
}

/// The elements of a task that are updated together.
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
    /// Updates the elements of these segments that lie in the tile, at least one each.
    fn update(
        mut self,
        segments: &[Segment<'_>],
        rounders: [TileRounder; 3],
        buffers: &mut Buffers,
    ) {
        let width = self.width;
        // Parameters that are the upper halves of masters are emitted by encoding them.
        let is_halved = matches!(self.master, SectionMut::Remainder16(_));
        let [first, second] = &mut self.moments;
        let [first_buffer, second_buffer] = &mut buffers.moments;
        let uppers = self.params.upper_halves();
        let master = resident(width, &mut self.master, uppers, &mut buffers.master);
        let first_values = resident(width, first, &[], first_buffer);
        let second_values = resident(width, second, &[], second_buffer);
        for segment in segments {
            let from = segment.at.start.max(self.start);
            let to = segment.at.end.min(self.start + master.len());
            let grad = segment.grad.part(from - segment.at.start..to - segment.at.start);
            let at = from - self.start..to - self.start;
            let arrays = Arrays {
                grads: grad.load(width, &mut buffers.grads),
                master: &mut master[at.clone()],
                first: &mut first_values[at.clone()],
                // Empty for rules that keep one moment.
                second: second_values.get_mut(at.clone()).unwrap_or_default(),
            };
            arrays.update(width, segment.rule);
            if !is_halved {
                self.params.part(at.clone()).emit(width, &master[at]);
            }
        }
        let uppers = self.params.upper_halves();
        settle(width, &mut self.master, &buffers.master, uppers, rounders[0]);
        settle(width, first, first_buffer, &mut [], rounders[1]);
        settle(width, second, second_buffer, &mut [], rounders[2]);
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
    if !matches!(section, SectionMut::Fp32(_)) {
        let len = section.len();
        section.encode_on(width, &buffer[..len], uppers, rounder);
    }
}

/// As many gradients as masters and moments.
struct Arrays<'a> {
    grads: &'a [f32],
    master: &'a mut [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
}

impl Arrays<'_> {
    fn update(self, width: Width, rule: UpdateRule) {
        match rule {
            UpdateRule::AdamW(rule) => on_width(width, Apply { rule, arrays: self }),
            UpdateRule::Adam(rule) => on_width(width, Apply { rule, arrays: self }),
            UpdateRule::Sgd(rule) => on_width(width, Apply { rule, arrays: self }),
            UpdateRule::Lion(rule) => on_width(width, Apply { rule, arrays: self }),
            UpdateRule::Adagrad(rule) => on_width(width, Apply { rule, arrays: self }),
        }
    }
}

/// Applies a rule to every element.
struct Apply<'a, R> {
    rule: R,
    arrays: Arrays<'a>,
}

impl<R: Rule> Kernel for Apply<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { rule, arrays: Arrays { grads, master, first, second } } = self;
        // The lengths are equal. Slicing shows this to the compiler, which leaves out the bounds
        // checks and uses vector registers.
        let len = grads.len();
        let (master, first) = (&mut master[..len], &mut first[..len]);
        if R::MOMENTS == 1 {
            for i in 0..len {
                (master[i], [first[i], _]) = rule.update(grads[i], master[i], [first[i], 0.0]);
            }
            return;
        }
        let second = &mut second[..len];
        for i in 0..len {
            (master[i], [first[i], second[i]]) =
                rule.update(grads[i], master[i], [first[i], second[i]]);
        }
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
                    let nearest = match keeps {
                        true => crate::optim::split_halves(*master).0,
                        false => bf16::from_f32(*master),
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
