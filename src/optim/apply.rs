//! The loops that apply update rules, for every combination of rule, gradient format and parameter
//! format. The combination is chosen at run time, so that these loops are compiled here, once, and
//! not in every program that takes a step.
//!
//! Each loop is written once. Compiled for AVX2 and AVX-512 it uses wider registers but the same
//! IEEE operations in the same order (no fused multiply-add), so every build gives the same bits as
//! the scalar reference.

use super::element::{GradElem, GradSlice, ParamElem, ParamSliceMut};
use super::rule::{Rule, UpdateRule};
use super::width::{Kernel, Width, on_width};

/// State as f32: as many moments as masters.
pub(super) struct Arrays<'a> {
    pub master: &'a mut [f32],
    pub first: &'a mut [f32],
    /// Empty for rules that keep one moment.
    pub second: &'a mut [f32],
}

impl Arrays<'_> {
    /// Updates every element with its gradient and emits its parameter.
    pub fn update(
        self,
        width: Width,
        rule: UpdateRule,
        grads: GradSlice<'_>,
        params: ParamSliceMut<'_>,
    ) {
        match rule {
            UpdateRule::AdamW(rule) => self.by_rule(width, rule, grads, params),
            UpdateRule::Adam(rule) => self.by_rule(width, rule, grads, params),
            UpdateRule::Sgd(rule) => self.by_rule(width, rule, grads, params),
            UpdateRule::Lion(rule) => self.by_rule(width, rule, grads, params),
            UpdateRule::Adagrad(rule) => self.by_rule(width, rule, grads, params),
        }
    }

    fn by_rule<R: Rule>(
        self,
        width: Width,
        rule: R,
        grads: GradSlice<'_>,
        params: ParamSliceMut<'_>,
    ) {
        match grads {
            GradSlice::F32(grads) => self.by_format(width, rule, grads, params),
            GradSlice::Bf16(grads) => self.by_format(width, rule, grads, params),
            GradSlice::F16(grads) => self.by_format(width, rule, grads, params),
        }
    }

    fn by_format<R: Rule, G: GradElem>(
        self,
        width: Width,
        rule: R,
        grads: &[G],
        params: ParamSliceMut<'_>,
    ) {
        let arrays = self;
        match params {
            ParamSliceMut::Units(params) => on_width(width, Apply { rule, grads, arrays, params }),
            ParamSliceMut::F32(params) => on_width(width, Apply { rule, grads, arrays, params }),
            ParamSliceMut::Bf16(params) => on_width(width, Apply { rule, grads, arrays, params }),
            ParamSliceMut::F16(params) => on_width(width, Apply { rule, grads, arrays, params }),
        }
    }
}

/// Applies a rule to every element and emits its parameter.
struct Apply<'a, R, G, P> {
    rule: R,
    grads: &'a [G],
    arrays: Arrays<'a>,
    params: &'a mut [P],
}

impl<R: Rule, G: GradElem, P: ParamElem> Kernel for Apply<'_, R, G, P> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { rule, grads, arrays: Arrays { master, first, second }, params } = self;
        // The lengths are equal. Slicing shows this to the compiler, which then leaves out the
        // bounds checks and uses vector registers.
        let len = grads.len();
        let (master, first, params) = (&mut master[..len], &mut first[..len], &mut params[..len]);
        if R::MOMENTS == 1 {
            for i in 0..len {
                let (p, [m, _]) = rule.update(grads[i].load(), master[i], [first[i], 0.0]);
                first[i] = m;
                master[i] = p;
                params[i] = P::emit(p);
            }
            return;
        }
        let second = &mut second[..len];
        for i in 0..len {
            let (p, [m, v]) = rule.update(grads[i].load(), master[i], [first[i], second[i]]);
            first[i] = m;
            second[i] = v;
            master[i] = p;
            params[i] = P::emit(p);
        }
    }
}
