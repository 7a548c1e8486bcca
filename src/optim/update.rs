//! The update kernel: decode, unscale, clip, update, emit the low-precision parameter and encode,
//! in one pass over memory.
//!
//! The body is written once. Compiled for AVX2 and AVX-512 it uses wider registers but the same
//! IEEE operations in the same order (no fused multiply-add), so every build gives the same bits as
//! the scalar reference.

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::codec::SectionMut;
use super::element::{GradElem, ParamElem};
use super::rounding::{Rounder, TileRounder};
use super::rule::Rule;
use super::width::{Kernel, on_widest};

/// Elements of one task: fixed, so that the number of threads decides nothing but the time. 64 Ki
/// elements are 1.7 MB of memory traffic, some hundred microseconds.
pub const SPLIT_ELEMS: usize = 64 << 10;

/// Elements that are decoded at once: three arrays of them stay in the innermost cache.
const TILE_ELEMS: usize = 1024;

/// Elements of one parameter, with what its update needs.
#[derive(Clone, Debug)]
pub struct Segment<'a, R, G> {
    /// Where they are within the task.
    pub at: Range<usize>,
    /// The parameter's numbers at this step.
    pub rule: R,
    /// A gradient for each.
    pub grad: &'a [G],
}

/// A part of a chunk that one thread updates: at most [`SPLIT_ELEMS`] elements, from a multiple of
/// [`SPLIT_ELEMS`] of the chunk on.
pub struct UpdateTask<'a, R, G, P> {
    /// fp32 master.
    pub master: SectionMut<'a>,
    /// Its moments; the second is empty for rules that have one.
    pub moments: [SectionMut<'a>; 2],
    /// Parameters to emit, and to take upper halves of masters from: those of the live elements,
    /// which padding may follow.
    pub params: &'a mut [P],
    /// Where the parameters are to be kept beside the state, which they are the upper halves of: in
    /// a durable job. Otherwise empty.
    pub kept: &'a mut [bf16],
    /// The elements that have a gradient, in order.
    pub segments: Vec<Segment<'a, R, G>>,
    /// How moments are rounded.
    pub rounder: Rounder,
    /// The flat index of the first element.
    pub flat: u64,
}

impl<R: Rule, G: GradElem, P: ParamElem> UpdateTask<'_, R, G, P> {
    /// Updates the state in place and emits the parameters.
    pub fn run(self) {
        on_widest(self);
    }
}

impl<R: Rule, G: GradElem, P: ParamElem> Kernel for UpdateTask<'_, R, G, P> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { master, moments: [first, second], params, kept, segments, rounder, flat } = self;
        match (master, first, second) {
            (SectionMut::Fp32(master), SectionMut::Fp32(first), SectionMut::Fp32(second)) => {
                let mut arrays = Arrays { master, first, second, params: &mut *params };
                // A loop, not for_each: a closure that is not inlined would be compiled for the
                // plain target. The same below.
                for segment in &segments {
                    arrays.update(segment, 0);
                }
            }
            (master, first, second) => {
                let moments = [first, second];
                let tiles = Tiles { master, moments, params: &mut *params, rounder, flat };
                tiles.update(&segments);
            }
        }
        if !kept.is_empty() {
            kept.copy_from_slice(P::upper_halves(params));
        }
    }
}

/// Arrays of f32 in which segments are updated, from a common first element on.
struct Arrays<'a, P> {
    master: &'a mut [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
    params: &'a mut [P],
}

impl<P: ParamElem> Arrays<'_, P> {
    /// Updates those elements of a segment that lie in the arrays, which begin at element `start`.
    #[inline(always)]
    fn update<R: Rule, G: GradElem>(&mut self, segment: &Segment<'_, R, G>, start: usize) {
        let from = segment.at.start.max(start);
        let to = segment.at.end.min(start + self.master.len());
        let grad = &segment.grad[from - segment.at.start..to - segment.at.start];
        let rule = segment.rule;
        // Equal lengths, said once, so that the loop has no bounds checks and can be vectorised.
        let (at, len) = (from - start..to - start, grad.len());
        let master = &mut self.master[at.clone()][..len];
        let params = &mut self.params[at.clone()][..len];
        let first = &mut self.first[at.clone()][..len];
        if R::MOMENTS == 1 {
            for i in 0..len {
                let (p, [m, _]) = rule.update(grad[i].load(), master[i], [first[i], 0.0]);
                first[i] = m;
                master[i] = p;
                params[i] = P::emit(p);
            }
            return;
        }
        let second = &mut self.second[at][..len];
        for i in 0..len {
            let (p, [m, v]) = rule.update(grad[i].load(), master[i], [first[i], second[i]]);
            first[i] = m;
            second[i] = v;
            master[i] = p;
            params[i] = P::emit(p);
        }
    }
}

/// A task whose state is not fp32 throughout: decoded, updated and encoded tile by tile.
struct Tiles<'a, P> {
    master: SectionMut<'a>,
    moments: [SectionMut<'a>; 2],
    params: &'a mut [P],
    rounder: Rounder,
    flat: u64,
}

impl<P: ParamElem> Tiles<'_, P> {
    #[inline(always)]
    fn update<R: Rule, G: GradElem>(self, segments: &[Segment<'_, R, G>]) {
        let Self { mut master, moments: [mut first, mut second], mut params, rounder, flat } = self;
        let [mut a, mut b, mut c] = [[0.0f32; TILE_ELEMS]; 3];
        let elems = segments.last().map_or(0, |segment| segment.at.end);
        for start in (0..elems).step_by(TILE_ELEMS) {
            let mut master = master.cut(TILE_ELEMS);
            let (mut first, mut second) = (first.cut(TILE_ELEMS), second.cut(TILE_ELEMS));
            let live = params.len().min(TILE_ELEMS);
            let (tile_params, rest) = std::mem::take(&mut params).split_at_mut(live);
            params = rest;
            let from = segments.partition_point(|segment| segment.at.end <= start);
            let mut touching = segments[from..]
                .iter()
                .take_while(|segment| segment.at.start < start + TILE_ELEMS)
                .peekable();
            // What has no gradient keeps its bits.
            if touching.peek().is_none() {
                continue;
            }
            let is_halved = matches!(master, SectionMut::Remainder16(_));
            {
                let uppers = P::upper_halves(tile_params);
                let master = resident(&mut master, uppers, &mut a);
                let first = resident(&mut first, &[], &mut b);
                let second = resident(&mut second, &[], &mut c);
                if is_halved {
                    // The parameters are the upper halves: encoding emits them.
                    let params = &mut [(); TILE_ELEMS];
                    let mut arrays = Arrays { master, first, second, params };
                    for segment in touching {
                        arrays.update(segment, start);
                    }
                } else {
                    let mut arrays = Arrays { master, first, second, params: &mut *tile_params };
                    for segment in touching {
                        arrays.update(segment, start);
                    }
                }
            }
            let flat = flat + start as u64;
            let uppers = P::upper_halves_mut(tile_params);
            settle(&mut master, &a, uppers, rounder.tile(0, flat));
            settle(&mut first, &b, &mut [], rounder.tile(1, flat));
            settle(&mut second, &c, &mut [], rounder.tile(2, flat));
        }
    }
}

/// The elements of a section as f32: where they lie, or decoded.
#[inline(always)]
fn resident<'a>(
    section: &'a mut SectionMut<'_>,
    uppers: &[bf16],
    decoded: &'a mut [f32; TILE_ELEMS],
) -> &'a mut [f32] {
    match section {
        SectionMut::Fp32(values) => values,
        coded => {
            let values = &mut decoded[..coded.len()];
            coded.as_section().decode(uppers, values);
            values
        }
    }
}

/// Encodes what was decoded.
#[inline(always)]
fn settle(
    section: &mut SectionMut<'_>,
    decoded: &[f32; TILE_ELEMS],
    uppers: &mut [bf16],
    rounder: TileRounder,
) {
    if !matches!(section, SectionMut::Fp32(_)) {
        let len = section.len();
        section.encode(&decoded[..len], uppers, rounder);
    }
}

/// Runs all tasks on the pool.
pub fn run_tasks<R: Rule, G: GradElem, P: ParamElem>(
    pool: &rayon::ThreadPool,
    tasks: Vec<UpdateTask<'_, R, G, P>>,
) {
    pool.install(|| tasks.into_par_iter().with_max_len(1).for_each(UpdateTask::run));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::width::{on_width, widths};
    use super::*;
    use crate::optim::reference::Reference;
    use crate::optim::{Adagrad, Adam, AdamW, Lion, Sgd};
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
        fn check<R: Rule>(&self, kind: OptimizerKind) {
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
                        rule: R::new(&hyper, step, 0.5),
                        grad: &self.grads[at],
                    };
                    let mut views = sections.iter_mut().zip(&tensors).map(|(bytes, tensor)| {
                        SectionMut::new(tensor, bytemuck::cast_slice_mut(bytes), ELEMS)
                    });
                    let mut next = || views.next().unwrap_or(SectionMut::empty());
                    let task = UpdateTask {
                        master: next(),
                        moments: [next(), next()],
                        params: &mut params,
                        kept: &mut kept,
                        segments: vec![segment(0..cut), segment(cut..end)],
                        rounder,
                        flat: 77,
                    };
                    on_width(width, task);
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
            case.check::<AdamW>(OptimizerKind::AdamW);
            case.check::<Adam>(OptimizerKind::Adam);
            case.check::<Sgd>(OptimizerKind::Sgd);
            case.check::<Lion>(OptimizerKind::Lion);
            case.check::<Adagrad>(OptimizerKind::Adagrad);
        }
    }
}
