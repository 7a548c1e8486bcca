//! The scalar reference follows torch's AdamW (`tests/data/adamw_torch.py` made the trajectory).
//!
//! Not bit for bit: torch rounds some products in another order. Each step starts from torch's own
//! state, so rounding does not add up, and the tolerance is a few units in the last place.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

use optswap::internals::optim::reference::Reference;
use optswap::{Hyperparameters, OptimizerKind};
use serde::Deserialize;

#[derive(Deserialize)]
struct Trajectory {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    lr: f64,
    betas: [f64; 2],
    eps: f64,
    weight_decay: f64,
    initial: Vec<f32>,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    grad: Vec<f32>,
    master: Vec<f32>,
    exp_avg: Vec<f32>,
    exp_avg_sq: Vec<f32>,
}

fn assert_close(name: &str, step: usize, ours: &[f32], torch: &[f32], scale: &[f32]) {
    for ((ours, torch), scale) in ours.iter().zip(torch).zip(scale) {
        let tolerance = 4.0 * f32::EPSILON * torch.abs().max(*scale);
        assert!((ours - torch).abs() <= tolerance, "{name}, step {step}: {ours:e}, {torch:e}");
    }
}

#[test]
fn the_reference_follows_torch() {
    let text = include_str!("data/adamw_torch.json");
    let trajectory: Trajectory = serde_json::from_str(text).unwrap();
    for group in trajectory.groups {
        let Group { lr, betas, eps, weight_decay, .. } = group;
        let hyper = Hyperparameters { lr, betas, eps, weight_decay };
        let elems = group.initial.len();
        let mut alone = Reference::new(OptimizerKind::AdamW, group.initial.clone());
        let mut guided = alone.clone();
        for (index, step) in group.steps.iter().enumerate() {
            let count = index as u64 + 1;
            let before = guided.clone();
            guided.update(&hyper, count, 1.0, 0..elems, &step.grad);
            // Sums are compared at the size of what was added up.
            let sizes = |values: &[f32], others: &[f32]| -> Vec<f32> {
                values.iter().zip(others).map(|(a, b)| a.abs().max(b.abs())).collect()
            };
            let squares: Vec<f32> = step.grad.iter().map(|grad| grad * grad).collect();
            let added = [&vec![lr as f32; elems], &step.grad, &squares];
            let torch = [&step.master, &step.exp_avg, &step.exp_avg_sq];
            for (number, name) in ["master", "exp_avg", "exp_avg_sq"].iter().enumerate() {
                let scale = sizes(&before.arrays()[number], added[number]);
                let ours = &guided.arrays()[number];
                assert_close(name, count as usize, ours, torch[number], &scale);
            }
            guided.arrays_mut().iter_mut().zip(torch).for_each(|(ours, it)| ours.clone_from(it));
            alone.update(&hyper, count, 1.0, 0..elems, &step.grad);
        }
        for (ours, torch) in alone.arrays()[0].iter().zip(&group.steps.last().unwrap().master) {
            assert!((ours - torch).abs() < 1e-5, "left alone: {ours:e}, {torch:e}");
        }
    }
}
