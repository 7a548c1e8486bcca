//! The fp32 update as a program, for comparisons with other programs (benches/peers/run): passes
//! over state in memory, their seconds as one line of JSON.
//!
//! ```text
//! cargo bench --bench update -- --params 16777216 --passes 5
//! ```
//!
//! The state lies in the swapper's own buffers, as it does in a step; gradients and parameters in
//! ordinary memory. A pass moves 28 bytes per parameter: a bf16 gradient and three fp32 arrays in,
//! three fp32 arrays and a bf16 parameter out.

use std::time::Instant;

use half::bf16;
use optswap::internals::config::CodecsConfig;
use optswap::internals::io::allocate_buffers;
use optswap::internals::optim::{
    Rounder, SPLIT_ELEMS, SectionMut, Segment, UpdateRule, UpdateTask, run_tasks,
};
use optswap::internals::state::Rounding;
use optswap::internals::step::fill_synthetic_gradients;
use optswap::{GradElem, Hyperparameters, OptimizerKind, ParamElem};

fn argument(name: &str, default: usize) -> usize {
    let mut arguments = std::env::args().skip_while(|argument| argument != name).skip(1);
    arguments.next().map_or(default, |value| value.parse().expect("a number"))
}

fn main() {
    let params = argument("--params", 16 << 20);
    let passes = argument("--passes", 5);
    let pool = rayon::ThreadPoolBuilder::new().build().expect("threads can be started");

    let tensors = CodecsConfig::default().state_tensors(OptimizerKind::AdamW);
    let mut state = allocate_buffers(tensors.len(), params * 4).expect("memory");
    for (section, value) in state.iter_mut().zip([0.1f32, 0.01, 0.001]) {
        bytemuck::cast_slice_mut(section).fill(value);
    }
    let mut gradients = vec![bf16::ZERO; params];
    fill_synthetic_gradients(1, 1, 0, &mut gradients, bf16::from_f32);
    let mut emitted = vec![bf16::ZERO; params];

    let mut seconds = Vec::new();
    // The first pass touches memory for the first time and does not count.
    for pass in 0..=passes {
        let hyper = Hyperparameters::default();
        let rule = UpdateRule::new(OptimizerKind::AdamW, &hyper, 10 + pass as u64, 1.0);
        let start = Instant::now();
        let mut sections = state
            .iter_mut()
            .zip(&tensors)
            .map(|(section, tensor)| SectionMut::new(tensor, section, params));
        let mut next = || sections.next().expect("three tensors");
        let (mut master, mut exp_avg, mut exp_avg_sq) = (next(), next(), next());
        let pieces = gradients.chunks(SPLIT_ELEMS).zip(emitted.chunks_mut(SPLIT_ELEMS));
        let mut tasks = Vec::new();
        for (number, (grad, params)) in pieces.enumerate() {
            tasks.push(UpdateTask {
                master: master.cut(SPLIT_ELEMS),
                moments: [exp_avg.cut(SPLIT_ELEMS), exp_avg_sq.cut(SPLIT_ELEMS)],
                params: ParamElem::slice_mut(params),
                kept: &mut [],
                segments: vec![Segment { at: 0..grad.len(), rule, grad: GradElem::slice(grad) }],
                rounder: Rounder::new(Rounding::Nearest, 1, 1),
                flat: (number * SPLIT_ELEMS) as u64,
            });
        }
        run_tasks(&pool, tasks);
        if pass > 0 {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    let threads = pool.current_num_threads();
    println!("{}", serde_json::json!({"params": params, "threads": threads, "seconds": seconds}));
}
