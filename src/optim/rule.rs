//! Update rules: what happens to one element, with a parameter's numbers at a step. Every rule is
//! written once, of IEEE operations in a fixed order (no fused multiply-add). Its scalars are
//! computed in f64 and rounded to f32 once.

use crate::state::{Hyperparameters, OptimizerKind};

/// The update of one parameter at one step, by any of the rules.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum UpdateRule {
    /// See [`OptimizerKind::AdamW`].
    AdamW(AdamW),
    /// See [`OptimizerKind::Adam`].
    Adam(Adam),
    /// See [`OptimizerKind::Sgd`].
    Sgd(Sgd),
    /// See [`OptimizerKind::Lion`].
    Lion(Lion),
    /// See [`OptimizerKind::Adagrad`].
    Adagrad(Adagrad),
}

impl UpdateRule {
    /// Update number `step` (from 1) of a parameter. Gradients are multiplied by `grad_scale` (loss
    /// scale and clipping together) before anything else.
    pub fn new(kind: OptimizerKind, hyper: &Hyperparameters, step: u64, grad_scale: f32) -> Self {
        match kind {
            OptimizerKind::AdamW => Self::AdamW(Rule::new(hyper, step, grad_scale)),
            OptimizerKind::Adam => Self::Adam(Rule::new(hyper, step, grad_scale)),
            OptimizerKind::Sgd => Self::Sgd(Rule::new(hyper, step, grad_scale)),
            OptimizerKind::Lion => Self::Lion(Rule::new(hyper, step, grad_scale)),
            OptimizerKind::Adagrad => Self::Adagrad(Rule::new(hyper, step, grad_scale)),
        }
    }
}

/// An update rule, with the numbers of one parameter at one step.
pub(super) trait Rule: Copy {
    /// How many moments the rule keeps, one or two.
    const MOMENTS: usize;

    /// As [`UpdateRule::new`].
    fn new(hyper: &Hyperparameters, step: u64, grad_scale: f32) -> Self;

    /// New master and moments of an element; rules with one moment ignore the second.
    fn update(&self, grad: f32, master: f32, moments: [f32; 2]) -> (f32, [f32; 2]);
}

/// `base` to the power `exponent` by repeated squaring: the same bits on every machine, which the
/// standard library does not promise.
pub(super) fn power(base: f64, exponent: u64) -> f64 {
    let (mut result, mut square, mut left) = (1.0, base, exponent);
    while left > 0 {
        if left & 1 == 1 {
            result *= square;
        }
        square *= square;
        left >>= 1;
    }
    result
}

/// AdamW (arXiv 1711.05101) as torch computes it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    decay: f32,
    adam: AdamNumbers,
}

/// Adam (arXiv 1412.6980): weight decay is added to the gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adam {
    weight_decay: f32,
    adam: AdamNumbers,
}

/// The numbers that AdamW and Adam have in common.
#[derive(Clone, Copy, Debug, PartialEq)]
struct AdamNumbers {
    grad_scale: f32,
    beta1: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    step_size: f32,
    /// A factor and not a divisor, because divisions take most of the kernel's time when the state
    /// is in the cache.
    per_correction2_sqrt: f32,
    eps: f32,
}

impl AdamNumbers {
    fn new(hyper: &Hyperparameters, step: u64, grad_scale: f32) -> Self {
        let [beta1, beta2] = hyper.betas;
        let correction1 = 1.0 - power(beta1, step);
        let correction2 = 1.0 - power(beta2, step);
        Self {
            grad_scale,
            beta1: beta1 as f32,
            one_minus_beta1: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            one_minus_beta2: (1.0 - beta2) as f32,
            step_size: (hyper.lr / correction1) as f32,
            per_correction2_sqrt: (1.0 / correction2.sqrt()) as f32,
            eps: hyper.eps as f32,
        }
    }

    /// The update with a gradient without loss scale and a master that has already decayed.
    #[inline(always)]
    fn update(&self, grad: f32, master: f32, [m, v]: [f32; 2]) -> (f32, [f32; 2]) {
        let m = self.beta1 * m + self.one_minus_beta1 * grad;
        let v = self.beta2 * v + self.one_minus_beta2 * (grad * grad);
        let denominator = v.sqrt() * self.per_correction2_sqrt + self.eps;
        (master - self.step_size * (m / denominator), [m, v])
    }
}

impl Rule for AdamW {
    const MOMENTS: usize = 2;

    fn new(hyper: &Hyperparameters, step: u64, grad_scale: f32) -> Self {
        let decay = (1.0 - hyper.lr * hyper.weight_decay) as f32;
        Self { decay, adam: AdamNumbers::new(hyper, step, grad_scale) }
    }

    #[inline(always)]
    fn update(&self, grad: f32, master: f32, moments: [f32; 2]) -> (f32, [f32; 2]) {
        self.adam.update(grad * self.adam.grad_scale, master * self.decay, moments)
    }
}

impl Rule for Adam {
    const MOMENTS: usize = 2;

    fn new(hyper: &Hyperparameters, step: u64, grad_scale: f32) -> Self {
        let weight_decay = hyper.weight_decay as f32;
        Self { weight_decay, adam: AdamNumbers::new(hyper, step, grad_scale) }
    }

    #[inline(always)]
    fn update(&self, grad: f32, master: f32, moments: [f32; 2]) -> (f32, [f32; 2]) {
        let grad = grad * self.adam.grad_scale + self.weight_decay * master;
        self.adam.update(grad, master, moments)
    }
}

/// Stochastic gradient descent with momentum, as torch has it: the buffer begins with the first
/// gradient and is not dampened. The first of `betas` is the momentum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    grad_scale: f32,
    weight_decay: f32,
    momentum: f32,
    lr: f32,
}

impl Rule for Sgd {
    const MOMENTS: usize = 1;

    fn new(hyper: &Hyperparameters, _step: u64, grad_scale: f32) -> Self {
        Self {
            grad_scale,
            weight_decay: hyper.weight_decay as f32,
            momentum: hyper.betas[0] as f32,
            lr: hyper.lr as f32,
        }
    }

    #[inline(always)]
    fn update(&self, grad: f32, master: f32, [buffer, _]: [f32; 2]) -> (f32, [f32; 2]) {
        let grad = grad * self.grad_scale + self.weight_decay * master;
        let buffer = self.momentum * buffer + grad;
        (master - self.lr * buffer, [buffer, 0.0])
    }
}

/// Lion (arXiv 2302.06675, algorithm 2): the sign of an interpolation, decoupled weight decay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lion {
    grad_scale: f32,
    decay: f32,
    beta1: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    lr: f32,
}

impl Rule for Lion {
    const MOMENTS: usize = 1;

    fn new(hyper: &Hyperparameters, _step: u64, grad_scale: f32) -> Self {
        let [beta1, beta2] = hyper.betas;
        Self {
            grad_scale,
            decay: (1.0 - hyper.lr * hyper.weight_decay) as f32,
            beta1: beta1 as f32,
            one_minus_beta1: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            one_minus_beta2: (1.0 - beta2) as f32,
            lr: hyper.lr as f32,
        }
    }

    #[inline(always)]
    fn update(&self, grad: f32, master: f32, [m, _]: [f32; 2]) -> (f32, [f32; 2]) {
        let grad = grad * self.grad_scale;
        let direction = self.beta1 * m + self.one_minus_beta1 * grad;
        let step = if direction == 0.0 { 0.0 } else { self.lr.copysign(direction) };
        let m = self.beta2 * m + self.one_minus_beta2 * grad;
        (master * self.decay - step, [m, 0.0])
    }
}

/// Adagrad (JMLR 12, 2011) as torch computes it, without decay of the learning rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adagrad {
    grad_scale: f32,
    weight_decay: f32,
    lr: f32,
    eps: f32,
}

impl Rule for Adagrad {
    const MOMENTS: usize = 1;

    fn new(hyper: &Hyperparameters, _step: u64, grad_scale: f32) -> Self {
        Self {
            grad_scale,
            weight_decay: hyper.weight_decay as f32,
            lr: hyper.lr as f32,
            eps: hyper.eps as f32,
        }
    }

    #[inline(always)]
    fn update(&self, grad: f32, master: f32, [sum, _]: [f32; 2]) -> (f32, [f32; 2]) {
        let grad = grad * self.grad_scale + self.weight_decay * master;
        let sum = sum + grad * grad;
        (master - self.lr * (grad / (sum.sqrt() + self.eps)), [sum, 0.0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_are_exact_where_they_can_be() {
        assert_eq!(power(0.5, 10), 1.0 / 1024.0);
        assert_eq!(power(3.0, 0), 1.0);
        assert_eq!(power(0.0, 5), 0.0);
        assert!((power(0.999, 1000) - 0.367_695_424_770_964).abs() < 1e-12);
    }

    /// The published formulas in f64, for a few steps.
    #[test]
    fn one_moment_rules_follow_their_formulas() {
        let (lr, decay, beta1, beta2) = (0.01, 0.1, 0.9, 0.99);
        let hyper = Hyperparameters { lr, betas: [beta1, beta2], eps: 1e-8, weight_decay: decay };
        let grads = [0.5, -0.25, 0.125, 1.0, -2.0];
        let close = |ours: f32, formula: f64| {
            assert!((f64::from(ours) - formula).abs() < 1e-6 * formula.abs().max(1e-3), "{ours}");
        };

        let (mut p, mut b) = (1.0f64, 0.0f64);
        let (mut ours, mut moments) = (1.0f32, [0.0f32; 2]);
        for (step, g) in (1..).zip(grads) {
            b = beta1 * b + (g + decay * p);
            p -= lr * b;
            (ours, moments) = Sgd::new(&hyper, step, 1.0).update(g as f32, ours, moments);
            close(ours, p);
            close(moments[0], b);
        }

        let (mut p, mut m) = (1.0f64, 0.0f64);
        let (mut ours, mut moments) = (1.0f32, [0.0f32; 2]);
        for (step, g) in (1..).zip(grads) {
            let direction = (beta1 * m + (1.0 - beta1) * g).signum();
            p = p * (1.0 - lr * decay) - lr * direction;
            m = beta2 * m + (1.0 - beta2) * g;
            (ours, moments) = Lion::new(&hyper, step, 1.0).update(g as f32, ours, moments);
            close(ours, p);
            close(moments[0], m);
        }

        let (mut p, mut sum) = (1.0f64, 0.0f64);
        let (mut ours, mut moments) = (1.0f32, [0.0f32; 2]);
        for (step, g) in (1..).zip(grads) {
            let g = g + decay * p;
            sum += g * g;
            p -= lr * g / (sum.sqrt() + 1e-8);
            let grad = grads[step as usize - 1] as f32;
            (ours, moments) = Adagrad::new(&hyper, step, 1.0).update(grad, ours, moments);
            close(ours, p);
            close(moments[0], sum);
        }

        let (mut p, mut m, mut v) = (1.0f64, 0.0f64, 0.0f64);
        let (mut ours, mut moments) = (1.0f32, [0.0f32; 2]);
        for (step, g) in (1..).zip(grads) {
            let g = g + decay * p;
            m = beta1 * m + (1.0 - beta1) * g;
            v = beta2 * v + (1.0 - beta2) * g * g;
            let corrected = m / (1.0 - beta1.powi(step as i32));
            p -= lr * corrected / ((v / (1.0 - beta2.powi(step as i32))).sqrt() + 1e-8);
            let grad = grads[step as usize - 1] as f32;
            (ours, moments) = Adam::new(&hyper, step, 1.0).update(grad, ours, moments);
            close(ours, p);
        }
    }

    #[test]
    fn lion_takes_no_step_in_no_direction() {
        let hyper = Hyperparameters { weight_decay: 0.0, ..Hyperparameters::default() };
        assert_eq!(Lion::new(&hyper, 1, 1.0).update(0.0, 1.0, [0.0; 2]).0, 1.0);
    }
}
