//! The passes of HF's `RMSNorm` module and its autograd backward, each with its own temporary.

use super::Shape;
use crate::passes::{add_assign, add_column_sums, row_sums, rows, temporary};

pub(super) fn forward(
    x_TD: &[f32],
    weight_D: &[f32],
    eps: f32,
    y_TD: &mut [f32],
    rstd_T: &mut [f32],
    shape: Shape,
) {
    let d = shape.hidden;
    let square_TD = temporary(
        shape.tokens,
        d,
        #[inline(always)]
        |t| row(x_TD, d, t).iter().map(|&x| x * x),
    );
    row_sums(rstd_T, &square_TD, d);
    for r in rstd_T.iter_mut() {
        *r = 1.0 / (*r / d as f32 + eps).sqrt();
    }
    let normed_TD = scale_rows(x_TD, rstd_T, d);
    rows(
        y_TD,
        d,
        #[inline(always)]
        |t, y| {
            for ((y, &x), &w) in y.iter_mut().zip(row(&normed_TD, d, t)).zip(weight_D) {
                *y = x * w;
            }
        },
    );
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
    write_sum(sum_TD, residual_TD, delta_TD, shape.hidden);
    forward(sum_TD, weight_D, eps, y_TD, rstd_T, shape);
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
    let (tokens, d) = (shape.tokens, shape.hidden);
    if let Some(dw) = dweight_D {
        // Autograd would have saved x·r; recomputing it here reads and writes as much as reading it back.
        let product_TD = temporary(
            tokens,
            d,
            #[inline(always)]
            |t| row(dy_TD, d, t).iter().zip(row(x_TD, d, t)).map(move |(&dy, &x)| dy * (x * rstd_T[t])),
        );
        add_column_sums(dw, &product_TD);
    }
    let dnormed_TD = temporary(
        tokens,
        d,
        #[inline(always)]
        |t| row(dy_TD, d, t).iter().zip(weight_D).map(|(&dy, &w)| dy * w),
    );
    // through r: sum over the row, r = (mean + eps)^-1/2, mean, square
    let product_TD = temporary(
        tokens,
        d,
        #[inline(always)]
        |t| row(&dnormed_TD, d, t).iter().zip(row(x_TD, d, t)).map(|(&g, &x)| g * x),
    );
    let mut dsquare_T = vec![0.0; tokens];
    row_sums(&mut dsquare_T, &product_TD, d);
    for (g, &r) in dsquare_T.iter_mut().zip(rstd_T) {
        *g *= -r * r * r / d as f32; // ½ of the root times 2 of the square
    }
    let through_r_TD = scale_rows(x_TD, &dsquare_T, d);
    // straight, and the sum of both ways
    let straight_TD = scale_rows(&dnormed_TD, rstd_T, d);
    if accumulate {
        let sum_TD = temporary(
            tokens,
            d,
            #[inline(always)]
            |t| row(&straight_TD, d, t).iter().zip(row(&through_r_TD, d, t)).map(|(&a, &b)| a + b),
        );
        add_assign(dx_TD, &sum_TD);
    } else {
        write_sum(dx_TD, &straight_TD, &through_r_TD, d);
    }
}

#[inline(always)]
fn row(x_TD: &[f32], d: usize, t: usize) -> &[f32] {
    &x_TD[t * d..][..d]
}

fn write_sum(dst_TD: &mut [f32], a_TD: &[f32], b_TD: &[f32], d: usize) {
    rows(
        dst_TD,
        d,
        #[inline(always)]
        |t, dst| {
            for ((s, &a), &b) in dst.iter_mut().zip(row(a_TD, d, t)).zip(row(b_TD, d, t)) {
                *s = a + b;
            }
        },
    );
}

fn scale_rows(x_TD: &[f32], scale_T: &[f32], d: usize) -> Vec<f32> {
    temporary(
        scale_T.len(),
        d,
        #[inline(always)]
        |t| {
            let scale = scale_T[t];
            row(x_TD, d, t).iter().map(move |&x| x * scale)
        },
    )
}
