//! The scalar reference follows torch's AdamW (`tests/data/adamw_torch.py` made the trajectory).
//!
//! Not bit for bit: torch rounds some products in another order. Each step starts from torch's own
//! state, so rounding does not add up, and the tolerance is a few units in the last place.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

use optswap::optim::reference::ReferenceAdamW;
use optswap::state::Hyperparameters;
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
        let mut alone = ReferenceAdamW::new(group.initial.clone());
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
            let scale = sizes(&before.exp_avg, &step.grad);
            assert_close("exp_avg", count as usize, &guided.exp_avg, &step.exp_avg, &scale);
            let scale = sizes(&before.exp_avg_sq, &squares);
            assert_close(
                "exp_avg_sq",
                count as usize,
                &guided.exp_avg_sq,
                &step.exp_avg_sq,
                &scale,
            );
            let scale = sizes(&before.master, &vec![lr as f32; elems]);
            assert_close("master", count as usize, &guided.master, &step.master, &scale);
            guided = ReferenceAdamW {
                master: step.master.clone(),
                exp_avg: step.exp_avg.clone(),
                exp_avg_sq: step.exp_avg_sq.clone(),
            };
            alone.update(&hyper, count, 1.0, 0..elems, &step.grad);
        }
        for (ours, torch) in alone.master.iter().zip(&group.steps.last().unwrap().master) {
            assert!((ours - torch).abs() < 1e-5, "left alone: {ours:e}, {torch:e}");
        }
    }
}
