//! The arithmetic alone, against what memory can do on the same cores in the same run.
//!
//! ```text
//! cargo bench --bench kernels
//! ```
//!
//! `copy` is the line: 8 bytes of traffic per element and nothing else. The update moves 28 bytes
//! per parameter: a bf16 gradient and three fp32 arrays in, three fp32 arrays and a bf16 parameter
//! out. Throughputs are in bytes of that traffic, so they compare directly.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use optswap::optim::{AdamW, SPLIT_ELEMS, UpdateTask, run_tasks, sum_of_squares};
use optswap::state::Hyperparameters;
use optswap::step::fill_synthetic_gradients;
use optswap::storage::Placement;
use optswap::units::ExtentIndex;

/// A chunk of the default size times sixteen: 64 MiB an array, beyond any cache.
const ELEMS: usize = 16 << 20;

fn pool() -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().build().expect("threads can be started")
}

fn kernels(criterion: &mut Criterion) {
    let pool = pool();
    let mut gradients = vec![bf16::ZERO; ELEMS];
    fill_synthetic_gradients(1, 1, 0, &mut gradients, bf16::from_f32);
    let mut master = vec![0.1f32; ELEMS];
    let mut exp_avg = vec![0.01f32; ELEMS];
    let mut exp_avg_sq = vec![0.001f32; ELEMS];
    let mut params = vec![bf16::ZERO; ELEMS];
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

    group.throughput(Throughput::Bytes(28 * ELEMS as u64));
    group.bench_function("adamw", |bencher| {
        let adamw = AdamW::new(&Hyperparameters::default(), 10, 1.0);
        bencher.iter(|| {
            let state = master
                .chunks_mut(SPLIT_ELEMS)
                .zip(exp_avg.chunks_mut(SPLIT_ELEMS))
                .zip(exp_avg_sq.chunks_mut(SPLIT_ELEMS));
            let edges = gradients.chunks(SPLIT_ELEMS).zip(params.chunks_mut(SPLIT_ELEMS));
            let tasks = state.zip(edges).map(|(((master, exp_avg), exp_avg_sq), (grad, param))| {
                UpdateTask { adamw, grad, master, exp_avg, exp_avg_sq, param }
            });
            run_tasks(&pool, tasks.collect());
        });
    });

    group.throughput(Throughput::Bytes(4 * ELEMS as u64));
    group.bench_function("norm, one thread", |bencher| {
        bencher.iter(|| master.chunks(4096).map(sum_of_squares).sum::<f64>());
    });
    group.finish();
}

fn placement(criterion: &mut Criterion) {
    let extents = vec![12 << 20; 1000];
    let placement = Placement::weighted(&extents, 1 << 20, &[1.0, 2.0, 3.0, 4.0], 0);
    criterion.bench_function("segments of a chunk", |bencher| {
        bencher.iter(|| placement.segments(ExtentIndex(500)));
    });
}

criterion_group!(benches, kernels, placement);
criterion_main!(benches);
