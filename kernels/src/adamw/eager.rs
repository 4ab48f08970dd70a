//! The passes of `clip_grad_norm_` and `torch.optim.AdamW(foreach=True)`, in their order.

use rayon::prelude::*;

use super::{Factors, TASK_ELEMENTS};
use crate::passes::{unary, vectorised};

pub(super) fn update(
    p: &mut [f32],
    g: &mut [f32],
    m: &mut [f32],
    v: &mut [f32],
    f: Factors,
    grad_scale: f32,
) {
    mul(g, grad_scale);
    mul(p, f.decay);
    // lerp_
    in_place(
        m,
        g,
        #[inline(always)]
        |m, g| m + f.one_minus_beta1 * (g - m),
    );
    mul(v, f.beta2);
    // addcmul_
    in_place(
        v,
        g,
        #[inline(always)]
        |v, g| v + f.one_minus_beta2 * g * g,
    );
    let mut denominator = vec![0.0; v.len()];
    unary(
        &mut denominator,
        v,
        #[inline(always)]
        |v| v.sqrt(),
    );
    mul(&mut denominator, 1.0 / f.bias_correction2_sqrt);
    add(&mut denominator, f.eps);
    addcdiv(p, m, &denominator, -f.step_size);
}

/// `x = f(x, y)`
fn in_place(x: &mut [f32], y: &[f32], f: impl Fn(f32, f32) -> f32 + Sync) {
    x.par_chunks_mut(TASK_ELEMENTS).zip(y.par_chunks(TASK_ELEMENTS)).for_each(|(x, y)| {
        vectorised(
            #[inline(always)]
            || {
                for (x, &y) in x.iter_mut().zip(y) {
                    *x = f(*x, y);
                }
            },
        );
    });
}

/// `x = x·c`
fn mul(x: &mut [f32], c: f32) {
    x.par_chunks_mut(TASK_ELEMENTS).for_each(|x| {
        vectorised(
            #[inline(always)]
            || {
                for x in &mut *x {
                    *x *= c;
                }
            },
        );
    });
}

/// `x = x + c`
fn add(x: &mut [f32], c: f32) {
    x.par_chunks_mut(TASK_ELEMENTS).for_each(|x| {
        vectorised(
            #[inline(always)]
            || {
                for x in &mut *x {
                    *x += c;
                }
            },
        );
    });
}

/// `p = p + c·m/d`
fn addcdiv(p: &mut [f32], m: &[f32], d: &[f32], c: f32) {
    let n = TASK_ELEMENTS;
    p.par_chunks_mut(n).zip(m.par_chunks(n)).zip(d.par_chunks(n)).for_each(|((p, m), d)| {
        vectorised(
            #[inline(always)]
            || {
                for ((p, &m), &d) in p.iter_mut().zip(m).zip(d) {
                    *p += c * m / d;
                }
            },
        );
    });
}
