//! Root mean square normalisation (arXiv 1910.07467), with and without the residual addition before it.
//!
//! With `x_TD`, `w_D`, and `D` the row length:
//!
//! ```text
//! r_t   = 1 / sqrt(mean_j(x_tj²) + eps)
//! y_tj  = (x_tj · r_t) · w_j
//! dx_tj = r_t · (dy_tj · w_j) − x_tj · r_t³/D · Σ_k dy_tk · w_k · x_tk
//! dw_j += Σ_t dy_tj · x_tj · r_t
//! ```
//!
//! Everything is f32 and row-major. Saved for the backward pass: `x_TD` (the sum, where the residual is added) and
//! `rstd_T = r`. No operand may alias. Results do not depend on the number of threads.

#![allow(non_snake_case)] // shape suffixes, see the crate's legend

pub mod bench;
pub mod cases;
pub mod cuda;
pub mod cuda_eager;
mod eager;
mod fused;
pub(crate) mod operators;
pub mod reference;
#[cfg(test)]
mod tests;

pub(crate) use fused::dot3;

use crate::Variant;

/// Extent of the operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Rows `T`.
    pub tokens: usize,
    /// Row length `D`.
    pub hidden: usize,
}

impl Shape {
    /// Elements of `x_TD`.
    pub fn elements(self) -> usize {
        self.tokens * self.hidden
    }
}

/// `y_TD = norm(x_TD) · weight_D` and `rstd_T`, both overwritten.
///
/// # Panics
/// When a length disagrees with `shape`.
pub fn forward(
    variant: Variant,
    x_TD: &[f32],
    weight_D: &[f32],
    eps: f32,
    y_TD: &mut [f32],
    rstd_T: &mut [f32],
    shape: Shape,
) {
    check(shape, &[x_TD, y_TD], weight_D, rstd_T);
    match variant {
        Variant::Fused => fused::forward(x_TD, weight_D, eps, y_TD, rstd_T, shape),
        Variant::Eager => eager::forward(x_TD, weight_D, eps, y_TD, rstd_T, shape),
    }
}

/// `sum_TD = residual_TD + delta_TD`, then [`forward`] of the sum; `sum_TD`, `y_TD` and `rstd_T` are overwritten.
///
/// # Panics
/// When a length disagrees with `shape`.
#[allow(clippy::too_many_arguments)] // the operands of the equation
pub fn add_forward(
    variant: Variant,
    residual_TD: &[f32],
    delta_TD: &[f32],
    sum_TD: &mut [f32],
    weight_D: &[f32],
    eps: f32,
    y_TD: &mut [f32],
    rstd_T: &mut [f32],
    shape: Shape,
) {
    check(shape, &[residual_TD, delta_TD, sum_TD, y_TD], weight_D, rstd_T);
    match variant {
        Variant::Fused => {
            fused::add_forward(residual_TD, delta_TD, sum_TD, weight_D, eps, y_TD, rstd_T, shape)
        }
        Variant::Eager => {
            eager::add_forward(residual_TD, delta_TD, sum_TD, weight_D, eps, y_TD, rstd_T, shape)
        }
    }
}

/// Gradients from `dy_TD`, the forward's input `x_TD` and its `rstd_T`.
///
/// `dx_TD` is overwritten, or added to when `accumulate`; `dweight_D`, where wanted, is added to.
///
/// # Panics
/// When a length disagrees with `shape`.
#[allow(clippy::too_many_arguments)] // the operands of the equation
pub fn backward(
    variant: Variant,
    dy_TD: &[f32],
    x_TD: &[f32],
    rstd_T: &[f32],
    weight_D: &[f32],
    dx_TD: &mut [f32],
    accumulate: bool,
    dweight_D: Option<&mut [f32]>,
    shape: Shape,
) {
    check(shape, &[dy_TD, x_TD, dx_TD], weight_D, rstd_T);
    if let Some(dw) = &dweight_D {
        assert_eq!(dw.len(), shape.hidden, "dweight_D");
    }
    match variant {
        Variant::Fused => fused::backward(dy_TD, x_TD, rstd_T, weight_D, dx_TD, accumulate, dweight_D, shape),
        Variant::Eager => eager::backward(dy_TD, x_TD, rstd_T, weight_D, dx_TD, accumulate, dweight_D, shape),
    }
}

fn check(shape: Shape, matrices: &[&[f32]], weight_D: &[f32], rstd_T: &[f32]) {
    assert!(shape.hidden > 0, "rows are empty");
    assert!(matrices.iter().all(|m| m.len() == shape.elements()), "a T×D operand is not {shape:?}");
    assert_eq!(weight_D.len(), shape.hidden, "weight_D");
    assert_eq!(rstd_T.len(), shape.tokens, "rstd_T");
}
