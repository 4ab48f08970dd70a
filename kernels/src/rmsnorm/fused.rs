//! One pass over memory: a row is read once and stays in L1 until its outputs are written.

use rayon::prelude::*;

use super::Shape;
use crate::{
    passes::{add, rows_per_partial, rows_per_task, vectorised},
    simd::{self, LANES},
};

pub(super) fn forward(
    x_TD: &[f32],
    weight_D: &[f32],
    eps: f32,
    y_TD: &mut [f32],
    rstd_T: &mut [f32],
    shape: Shape,
) {
    let (d, rows) = (shape.hidden, rows_per_task(shape.hidden));
    let tasks = x_TD.par_chunks(rows * d).zip(y_TD.par_chunks_mut(rows * d)).zip(rstd_T.par_chunks_mut(rows));
    tasks.for_each(|((x, y), rstd)| {
        vectorised(
            #[inline(always)]
            || {
                for ((x, y), r) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)).zip(&mut *rstd) {
                    *r = normalise(x, weight_D, eps, y);
                }
            },
        );
    });
}

#[allow(clippy::too_many_arguments)] // the operands of the equation
pub(super) fn add_forward(
    residual_TD: &[f32],
    delta_TD: &[f32],
    sum_TD: &mut [f32],
    weight_D: &[f32],
    eps: f32,
    y_TD: &mut [f32],
    rstd_T: &mut [f32],
    shape: Shape,
) {
    let (d, rows) = (shape.hidden, rows_per_task(shape.hidden));
    let inputs = residual_TD.par_chunks(rows * d).zip(delta_TD.par_chunks(rows * d));
    let outputs = sum_TD.par_chunks_mut(rows * d).zip(y_TD.par_chunks_mut(rows * d));
    inputs.zip(outputs).zip(rstd_T.par_chunks_mut(rows)).for_each(|(((res, delta), (sum, y)), rstd)| {
        vectorised(
            #[inline(always)]
            || {
                let inputs = res.chunks_exact(d).zip(delta.chunks_exact(d));
                let outputs = sum.chunks_exact_mut(d).zip(y.chunks_exact_mut(d));
                for (((res, delta), (sum, y)), r) in inputs.zip(outputs).zip(&mut *rstd) {
                    for ((s, &a), &b) in sum.iter_mut().zip(res).zip(delta) {
                        *s = a + b;
                    }
                    *r = normalise(sum, weight_D, eps, y);
                }
            },
        );
    });
}

#[allow(clippy::too_many_arguments)] // the operands of the equation
pub(super) fn backward(
    dy_TD: &[f32],
    x_TD: &[f32],
    rstd_T: &[f32],
    weight_D: &[f32],
    dx_TD: &mut [f32],
    accumulate: bool,
    dweight_D: Option<&mut [f32]>,
    shape: Shape,
) {
    let d = shape.hidden;
    let rows = rows_per_partial(shape.tokens, d);
    let partial_len = if dweight_D.is_some() { d } else { 0 };
    let inputs = dy_TD.par_chunks(rows * d).zip(x_TD.par_chunks(rows * d)).zip(rstd_T.par_chunks(rows));
    let partials: Vec<Vec<f32>> = inputs
        .zip(dx_TD.par_chunks_mut(rows * d))
        .map(|(((dy, x), rstd), dx)| {
            let mut dw = vec![0.0; partial_len];
            vectorised(
                #[inline(always)]
                || {
                    let inputs = dy.chunks_exact(d).zip(x.chunks_exact(d)).zip(rstd);
                    for (((dy, x), &r), dx) in inputs.zip(dx.chunks_exact_mut(d)) {
                        let scale = r * r * r / d as f32 * dot3(dy, weight_D, x);
                        match accumulate {
                            true => input_gradient::<true>(dy, x, weight_D, r, scale, dx),
                            false => input_gradient::<false>(dy, x, weight_D, r, scale, dx),
                        }
                        for ((dw, &dy), &x) in dw.iter_mut().zip(dy).zip(x) {
                            *dw = (dy * r).mul_add(x, *dw);
                        }
                    }
                },
            );
            dw
        })
        .collect();
    if let Some(dw) = dweight_D {
        partials.iter().for_each(|partial| add(dw, partial));
    }
}

/// Writes `y = x·r·w`; returns `r`.
#[inline(always)]
fn normalise(x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) -> f32 {
    let r = 1.0 / (simd::dot(x, x) / x.len() as f32 + eps).sqrt();
    for ((y, &x), &w) in y.iter_mut().zip(x).zip(w) {
        *y = (x * r) * w;
    }
    r
}

#[inline(always)]
fn input_gradient<const ACCUMULATE: bool>(
    dy: &[f32],
    x: &[f32],
    w: &[f32],
    r: f32,
    scale: f32,
    dx: &mut [f32],
) {
    for (((dx, &dy), &x), &w) in dx.iter_mut().zip(dy).zip(x).zip(w) {
        let g = r.mul_add(dy * w, -(x * scale));
        *dx = if ACCUMULATE { *dx + g } else { g };
    }
}

/// `Σ a·b·c`
#[inline(always)]
pub(crate) fn dot3(a: &[f32], b: &[f32], c: &[f32]) -> f32 {
    let mut acc = [0f32; LANES];
    let ((a, at), (b, bt), (c, ct)) =
        (a.as_chunks::<LANES>(), b.as_chunks::<LANES>(), c.as_chunks::<LANES>());
    for ((a, b), c) in a.iter().zip(b).zip(c) {
        for i in 0..LANES {
            acc[i] = (a[i] * b[i]).mul_add(c[i], acc[i]);
        }
    }
    // Apart from the accumulators, which an index that is not constant would push out of their registers.
    let mut tail = 0.0;
    for ((&a, &b), &c) in at.iter().zip(bt).zip(ct) {
        tail = (a * b).mul_add(c, tail);
    }
    simd::fold(acc) + tail
}
