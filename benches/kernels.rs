//! The arithmetic alone, against what memory can do on the same cores in the same run.
//!
//! ```text
//! cargo bench --bench kernels
//! ```
//!
//! `copy` is the line: 8 bytes of traffic per element and nothing else. The update in fp32 moves 28
//! bytes per parameter: a bf16 gradient and three fp32 arrays in, three fp32 arrays and a bf16
//! parameter out; with other codecs fewer. Throughputs are in bytes of that traffic, so they
//! compare directly.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use optswap::internals::config::CodecsConfig;
use optswap::internals::optim::{
    Rounder, SPLIT_ELEMS, SectionMut, Segment, UpdateRule, UpdateTask, run_tasks, sum_of_squares,
};
use optswap::internals::state::{Rounding, StateTensor};
use optswap::internals::step::fill_synthetic_gradients;
use optswap::internals::storage::Placement;
use optswap::internals::units::ExtentIndex;
use optswap::{Codec, GradElem, Hyperparameters, OptimizerKind, ParamElem};

/// A chunk of the default size times sixteen: 64 MiB an array, beyond any cache.
const ELEMS: usize = 16 << 20;

fn pool() -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().build().expect("threads can be started")
}

fn kernels(criterion: &mut Criterion) {
    let pool = pool();
    let master = vec![0.1f32; ELEMS];
    let mut exp_avg = vec![0.01f32; ELEMS];
    let mut group = criterion.benchmark_group("memory");

    group.throughput(Throughput::Bytes(8 * ELEMS as u64));
    group.bench_function("copy", |bencher| {
        use rayon::prelude::*;
        bencher.iter(|| {
            pool.install(|| {
                let parts = exp_avg.par_chunks_mut(SPLIT_ELEMS).zip(master.par_chunks(SPLIT_ELEMS));
                parts.for_each(|(to, from)| to.copy_from_slice(from));
            });
        });
    });

    group.throughput(Throughput::Bytes(4 * ELEMS as u64));
    group.bench_function("norm, one thread", |bencher| {
        bencher.iter(|| master.chunks(4096).map(sum_of_squares).sum::<f64>());
    });
    group.finish();
}

/// The update with every codec. Bytes of traffic per parameter: a bf16 gradient in, the bf16
/// parameter out (and in, where it is half of the master), and the state in and out.
fn updates(criterion: &mut Criterion) {
    let pool = pool();
    let mut gradients = vec![bf16::ZERO; ELEMS];
    fill_synthetic_gradients(1, 1, 0, &mut gradients, bf16::from_f32);
    let mut params = vec![bf16::ZERO; ELEMS];
    let mut group = criterion.benchmark_group("update");
    for codecs in ["fp32", "remainder16", "bf16", "bf16+remainder16", "int8+remainder16"] {
        for rounding in [Rounding::Nearest, Rounding::Stochastic] {
            let chosen: CodecsConfig = codecs.parse().expect("known codecs");
            if chosen.exp_avg == Codec::Fp32 && rounding == Rounding::Stochastic {
                continue;
            }
            let tensors = chosen.state_tensors(OptimizerKind::AdamW);
            let mut state = State::new(&tensors, &mut params);
            let bytes: u64 = tensors.iter().map(|it| it.codec.section_bytes(ELEMS as u64)).sum();
            let halves = if chosen.master == Codec::Remainder16 { 2 } else { 0 };
            group.throughput(Throughput::Bytes(2 * bytes + (4 + halves) * ELEMS as u64));
            let rule = UpdateRule::new(OptimizerKind::AdamW, &Hyperparameters::default(), 10, 1.0);
            group.bench_function(format!("{codecs}, {rounding:?}").to_lowercase(), |bencher| {
                bencher.iter(|| {
                    let rounder = Rounder::new(rounding, 1, 1);
                    run_tasks(&pool, state.tasks(&tensors, rule, &gradients, &mut params, rounder));
                });
            });
        }
    }
    group.finish();
}

struct State {
    sections: Vec<Vec<u64>>,
}

impl State {
    fn new(tensors: &[StateTensor], params: &mut [bf16]) -> Self {
        let section = |tensor: &StateTensor| {
            let mut section = vec![0u64; tensor.codec.section_bytes(ELEMS as u64) as usize / 8];
            let bytes = bytemuck::cast_slice_mut(&mut section);
            SectionMut::new(tensor, bytes, ELEMS).encode_nearest(&vec![0.01; ELEMS], params);
            section
        };
        Self { sections: tensors.iter().map(section).collect() }
    }

    fn tasks<'a>(
        &'a mut self,
        tensors: &[StateTensor],
        rule: UpdateRule,
        gradients: &'a [bf16],
        params: &'a mut [bf16],
        rounder: Rounder,
    ) -> Vec<UpdateTask<'a>> {
        let sections = self.sections.iter_mut().zip(tensors);
        let mut sections = sections.map(|(section, tensor)| {
            SectionMut::new(tensor, bytemuck::cast_slice_mut(section), ELEMS)
        });
        let mut next = || sections.next().expect("three tensors");
        let (mut master, mut first, mut second) = (next(), next(), next());
        let pieces = gradients.chunks(SPLIT_ELEMS).zip(params.chunks_mut(SPLIT_ELEMS));
        let task = |(number, (grad, params)): (usize, (&'a [bf16], &'a mut [bf16]))| UpdateTask {
            master: master.cut(SPLIT_ELEMS),
            moments: [first.cut(SPLIT_ELEMS), second.cut(SPLIT_ELEMS)],
            params: ParamElem::slice_mut(params),
            kept: &mut [],
            segments: vec![Segment { at: 0..grad.len(), rule, grad: GradElem::slice(grad) }],
            rounder,
            flat: (number * SPLIT_ELEMS) as u64,
        };
        pieces.enumerate().map(task).collect()
    }
}

fn placement(criterion: &mut Criterion) {
    let extents = vec![12 << 20; 1000];
    let placement = Placement::weighted(&extents, 1 << 20, &[1.0, 2.0, 3.0, 4.0], 0, 0.25);
    criterion.bench_function("segments of a chunk", |bencher| {
        bencher.iter(|| placement.segments(ExtentIndex(500)));
    });
}

criterion_group!(benches, kernels, updates, placement);
criterion_main!(benches);
