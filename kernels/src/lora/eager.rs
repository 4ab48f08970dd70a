//! The passes of PEFT's `Linear.forward` and of its autograd graph, one adapter after another.

use super::{Segment, Shape, placed, stacked_rank};
use crate::{
    gemm::{Dims, MatMut, MatRef, gemm, linear_dgrad, linear_wgrad},
    passes::{add, add_assign, rows, temporary},
};

#[allow(clippy::too_many_arguments)] // the operands of the equation
pub(super) fn forward(
    x_TD: &[f32],
    a_SD: &[f32],
    b: &[f32],
    scale: f32,
    segments: &[Segment],
    xa_TS: &mut [f32],
    y_TN: &mut [f32],
    shape: Shape,
) {
    let (Shape { tokens: t, inputs: d, outputs: n }, s) = (shape, stacked_rank(segments));
    for p in placed(segments).filter(|_| t > 0) {
        let Segment { offset, width, r } = p.segment;
        // lora_A(x)
        let a = MatRef::rows(&a_SD[p.s * d..], d).t();
        let dims = Dims { m: t, n: r, k: d };
        gemm(1.0, MatRef::rows(x_TD, d), a, 0.0, MatMut::rows(&mut xa_TS[p.s..], s), dims);
        // lora_B(·)
        let (xa, b) = (MatRef::rows(&xa_TS[p.s..], s), MatRef::rows(&b[p.b_range()], r).t());
        let mut out = vec![0.0; t * width];
        gemm(1.0, xa, b, 0.0, MatMut::rows(&mut out, width), Dims { m: t, n: width, k: r });
        // · * scaling
        let scaled = temporary(
            t,
            width,
            #[inline(always)]
            |row| out[row * width..][..width].iter().map(move |y| y * scale),
        );
        // result + ·
        rows(
            y_TN,
            n,
            #[inline(always)]
            |row, y| add(&mut y[offset..][..width], &scaled[row * width..][..width]),
        );
    }
}

#[allow(clippy::too_many_arguments)] // the operands of the equation
pub(super) fn backward(
    dy_TN: &[f32],
    x_TD: &[f32],
    xa_TS: &[f32],
    a_SD: &[f32],
    b: &[f32],
    scale: f32,
    segments: &[Segment],
    da_SD: &mut [f32],
    db: &mut [f32],
    mut dx_TD: Option<&mut [f32]>,
    dxa_TS: &mut [f32],
    shape: Shape,
) {
    let (Shape { tokens: t, inputs: d, outputs: n }, s) = (shape, stacked_rank(segments));
    for p in placed(segments).filter(|_| t > 0) {
        let Segment { offset, width, r } = p.segment;
        // of · * scaling
        let dout = temporary(
            t,
            width,
            #[inline(always)]
            |row| dy_TN[row * n + offset..][..width].iter().map(move |dy| dy * scale),
        );
        // of lora_B
        let (xa, mut product) = (MatRef::rows(&xa_TS[p.s..], s), vec![0.0; width * r]);
        let dims = Dims { m: width, n: r, k: t };
        gemm(1.0, MatRef::rows(&dout, width).t(), xa, 0.0, MatMut::rows(&mut product, r), dims);
        add_assign(&mut db[p.b_range()], &product);
        let mut dxa = vec![0.0; t * r];
        linear_dgrad(&mut dxa, &dout, &b[p.b_range()], t, width, r, 0.0);
        rows(
            dxa_TS,
            s,
            #[inline(always)]
            |row, dst| dst[p.s..][..r].copy_from_slice(&dxa[row * r..][..r]),
        );
        // of lora_A
        let mut product = vec![0.0; r * d];
        linear_wgrad(&mut product, &dxa, x_TD, t, r, d, 0.0);
        add_assign(&mut da_SD[p.s * d..][..r * d], &product);
        if let Some(dx) = &mut dx_TD {
            let mut product = vec![0.0; t * d];
            linear_dgrad(&mut product, &dxa, &a_SD[p.s * d..][..r * d], t, r, d, 0.0);
            add_assign(dx, &product);
        }
    }
}
