//! Low-rank adapters (LoRA, arXiv 2106.09685, section 4.1): `y_i += s · (x·A_iᵀ)·B_iᵀ` for a group of adapters with one
//! input: q/k/v, gate/up, or o or down alone.
//!
//! | array | shape | contents |
//! |---|---|---|
//! | `x_TD` | T × D | input of the layer |
//! | `a_SD` | S × D | the A_i (r_i × D) stacked; S = Σ r_i |
//! | `b` | Σ N_i·r_i | the B_i (N_i × r_i), one after another |
//! | `y_TN` | T × N | packed output; adapter i adds to columns `offset..offset + width` |
//! | `xa_TS` | T × S | `x·Aᵀ`, saved for the backward pass |
//!
//! Backward, with `dy_i` the segment's columns of `dy_TN`:
//!
//! ```text
//! dxa_i = s·dy_i·B_i     dB_i += s·dy_iᵀ·xa_i     dA += dxaᵀ·x     dx += dxa·A
//! ```
//!
//! * dtypes: f32. `xa_TS` and the scratch `dxa_TS` are overwritten (`=`); `y_TN`, `da`, `db` and `dx_TD` are accumulated
//!   into (`+=`).
//! * Fused: the A of a group are one product, `s·dy·B` is computed once for dA and dx, and every sum is the epilogue of
//!   a product (β = 1). Eager: each adapter alone, with products, scaling and additions as separate passes, as PEFT's
//!   `Linear.forward` and its autograd graph do.
//! * Deterministic for any number of threads.
#![allow(non_snake_case)] // x_TD is tokens × input features; see the table above

pub mod bench;
pub mod cases;
pub mod cuda;
pub mod cuda_eager;
mod eager;
mod fused;
pub mod magnitude;
pub mod reference;
#[cfg(test)]
mod tests;

use crate::Variant;

/// Where an adapter adds to the packed output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First column of `y_TN`.
    pub offset: usize,
    /// Columns: N_i.
    pub width: usize,
    /// Rank r_i.
    pub r: usize,
}

/// Extents of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// T.
    pub tokens: usize,
    /// D: input features.
    pub inputs: usize,
    /// N: columns of the packed output.
    pub outputs: usize,
}

/// A segment with the places of its adapter in the stacked arrays.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed {
    pub segment: Segment,
    /// First row of `a_SD`, first column of `xa_TS`.
    pub s: usize,
    /// First element of `b`.
    pub b: usize,
}

impl Placed {
    /// Elements of B_i.
    fn b_range(&self) -> std::ops::Range<usize> {
        self.b..self.b + self.segment.width * self.segment.r
    }
}

pub(crate) fn placed(segments: &[Segment]) -> impl Iterator<Item = Placed> {
    segments.iter().scan((0, 0), |(s, b), &segment| {
        let place = Placed { segment, s: *s, b: *b };
        (*s, *b) = (*s + segment.r, *b + segment.width * segment.r);
        Some(place)
    })
}

/// S: the sum of the ranks, the rows of `a_SD`.
pub fn stacked_rank(segments: &[Segment]) -> usize {
    segments.iter().map(|s| s.r).sum()
}

/// Elements of `b`.
pub fn b_len(segments: &[Segment]) -> usize {
    segments.iter().map(|s| s.width * s.r).sum()
}

/// `xa_TS = x·Aᵀ` and `y_i += scale·xa_i·B_iᵀ`.
///
/// # Panics
/// If a length does not fit the shape, or a segment ends beyond the packed output.
#[allow(clippy::too_many_arguments)] // the operands of the equation
pub fn forward(
    variant: Variant,
    x_TD: &[f32],
    a_SD: &[f32],
    b: &[f32],
    scale: f32,
    segments: &[Segment],
    xa_TS: &mut [f32],
    y_TN: &mut [f32],
    shape: Shape,
) {
    check(x_TD.len(), a_SD.len(), b.len(), xa_TS.len(), y_TN.len(), segments, shape);
    match variant {
        Variant::Fused => fused::forward(x_TD, a_SD, b, scale, segments, xa_TS, y_TN, shape),
        Variant::Eager => eager::forward(x_TD, a_SD, b, scale, segments, xa_TS, y_TN, shape),
    }
}

/// Gradients of [`forward`]; `dx_TD` is `None` where nothing before the layer trains.
///
/// # Panics
/// As [`forward`].
#[allow(clippy::too_many_arguments)] // the operands of the equation
pub fn backward(
    variant: Variant,
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
    check(x_TD.len(), a_SD.len(), b.len(), xa_TS.len(), dy_TN.len(), segments, shape);
    let dx_len = dx_TD.as_ref().map_or(x_TD.len(), |dx| dx.len());
    check(dx_len, da_SD.len(), db.len(), dxa_TS.len(), dy_TN.len(), segments, shape);
    let f = match variant {
        Variant::Fused => fused::backward,
        Variant::Eager => eager::backward,
    };
    f(dy_TN, x_TD, xa_TS, a_SD, b, scale, segments, da_SD, db, dx_TD, dxa_TS, shape);
}

fn check(x: usize, a: usize, b: usize, xa: usize, y: usize, segments: &[Segment], shape: Shape) {
    let (Shape { tokens, inputs, outputs }, s) = (shape, stacked_rank(segments));
    assert_eq!(x, tokens * inputs, "x_TD");
    assert_eq!(a, s * inputs, "a_SD");
    assert_eq!(b, b_len(segments), "b");
    assert_eq!(xa, tokens * s, "xa_TS");
    assert_eq!(y, tokens * outputs, "y_TN");
    assert!(
        segments.iter().all(|s| s.offset + s.width <= outputs),
        "a segment ends beyond {outputs} columns"
    );
}
