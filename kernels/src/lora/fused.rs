//! Few products, each with its sum as epilogue.

use super::{Segment, Shape, placed, stacked_rank};
use crate::gemm::{Dims, MatMut, MatRef, gemm, linear_dgrad, linear_forward, linear_wgrad};

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
    linear_forward(xa_TS, x_TD, a_SD, t, s, d, 0.0);
    for p in placed(segments).filter(|_| t > 0) {
        let r = p.segment.r;
        let xa = MatRef::rows(&xa_TS[p.s..], s);
        let b = MatRef::rows(&b[p.b_range()], r).t();
        let y = MatMut::rows(&mut y_TN[p.segment.offset..], n);
        gemm(scale, xa, b, 1.0, y, Dims { m: t, n: p.segment.width, k: r });
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
    dx_TD: Option<&mut [f32]>,
    dxa_TS: &mut [f32],
    shape: Shape,
) {
    let (Shape { tokens: t, inputs: d, outputs: n }, s) = (shape, stacked_rank(segments));
    for p in placed(segments).filter(|_| t > 0) {
        let Segment { offset, width, r } = p.segment;
        let dy = MatRef::rows(&dy_TN[offset..], n);
        let dxa = MatMut::rows(&mut dxa_TS[p.s..], s);
        gemm(scale, dy, MatRef::rows(&b[p.b_range()], r), 0.0, dxa, Dims { m: t, n: r, k: width });
        let (xa, db) = (MatRef::rows(&xa_TS[p.s..], s), MatMut::rows(&mut db[p.b_range()], r));
        gemm(scale, dy.t(), xa, 1.0, db, Dims { m: width, n: r, k: t });
    }
    linear_wgrad(da_SD, dxa_TS, x_TD, t, s, d, 1.0);
    if let Some(dx) = dx_TD {
        linear_dgrad(dx, dxa_TS, a_SD, t, s, d, 1.0);
    }
}
