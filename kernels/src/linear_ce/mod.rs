//! Linear cross-entropy: the LM head and its loss as one operation, with logits in row chunks only (Wijmans et al.,
//! "Cut Your Losses in Large-Vocabulary Language Models", arXiv 2411.09009, section 4; the loss and its gradient in one
//! visit of the logits as in Hsu et al., "Liger Kernel", arXiv 2410.10989, section 3.2).
//!
//! With `z = x·Wᵀ` of a row, its label `y`, `lse = ln Σ exp z`, smoothing ε and z-loss weight c:
//!
//! ```text
//! loss  = (1 − ε)·(lse − z_y) + ε·(lse − mean z) + c·lse²
//! dz_j  = scale·((1 + 2·c·lse)·exp(z_j − lse) − ε/V − (1 − ε)·[j = y])
//! dx    = dz·W        dW += dzᵀ·x
//! ```
//!
//! * Shapes: `x_TD` T × D, `w_VD` V × D, `labels` T; rows whose label is [`IGNORE_INDEX`] have no loss and a zero `dx`.
//! * dtypes: f32; the loss of a row is combined in f64 and summed in f64, in the order of the rows.
//! * `dx_TD` is overwritten (`=`), `dw_VD` is accumulated into (`+=`). Nothing is saved: forward and backward are one.
//! * `scale` is one over the loss tokens of the whole optimiser step, so that micro-batches add up to the mean.
//! * Fused: ignored rows are left out of all three products; logits exist for [`chunk_rows`] rows at a time, become
//!   their own gradient in place, and each is exponentiated once. Eager: as `logits.float()` and
//!   `F.cross_entropy(...)` in HF: full logits, log-softmax, gather and the backward passes of each.
//! * Deterministic for any number of threads.
#![allow(non_snake_case)] // x_TD is tokens × hidden; see the legend in the crate documentation

pub mod bench;
pub mod cases;
pub mod cuda;
pub mod cuda_eager;
mod eager;
mod fused;
mod online;
pub mod reference;
#[cfg(test)]
mod tests;
mod witness;

pub use fused::chunk_rows;
pub use online::MaxSum;

use crate::Variant;

/// Label of a row without loss, as in PyTorch.
pub const IGNORE_INDEX: i32 = -100;

/// Extents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// T.
    pub tokens: usize,
    /// D.
    pub hidden: usize,
    /// V.
    pub vocab: usize,
}

/// Terms of the loss beside the negative log-likelihood.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Options {
    /// ε: weight of the uniform distribution in the target.
    pub label_smoothing: f32,
    /// c: weight of `lse²`.
    pub z_loss: f32,
    /// Rows whose logits exist at a time in the fused variant; None for a number by the vocabulary.
    pub chunk_rows: Option<usize>,
}

impl Options {
    /// The cross-entropy alone, which is what an evaluation tells and perplexity is made of.
    pub fn plain(self) -> Self {
        Self { label_smoothing: 0.0, z_loss: 0.0, ..self }
    }
}

/// What a call adds to the loss of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sums {
    /// Sum over the rows with a loss of their whole loss, not scaled.
    pub loss: f64,
    /// Rows with a loss.
    pub tokens: u64,
}

/// Loss, `dx_TD` (`=`) and `dw_VD` (`+=`; `None` where the head does not train).
///
/// # Panics
/// If a length does not fit the shape, or a label is neither [`IGNORE_INDEX`] nor below V.
#[allow(clippy::too_many_arguments)] // the operands of the equation
pub fn forward_backward(
    variant: Variant,
    x_TD: &[f32],
    w_VD: &[f32],
    labels: &[i32],
    scale: f32,
    dx_TD: &mut [f32],
    dw_VD: Option<&mut [f32]>,
    shape: Shape,
    opts: Options,
) -> Sums {
    check(x_TD, w_VD, labels, shape);
    assert_eq!(dx_TD.len(), x_TD.len(), "dx_TD");
    assert!(dw_VD.as_ref().is_none_or(|dw| dw.len() == w_VD.len()), "dw_VD");
    match variant {
        Variant::Fused => fused::forward_backward(x_TD, w_VD, labels, scale, dx_TD, dw_VD, shape, opts),
        Variant::Eager => eager::forward_backward(x_TD, w_VD, labels, scale, dx_TD, dw_VD, shape, opts),
    }
}

/// Loss alone.
///
/// # Panics
/// As [`forward_backward`].
pub fn forward(
    variant: Variant,
    x_TD: &[f32],
    w_VD: &[f32],
    labels: &[i32],
    shape: Shape,
    opts: Options,
) -> Sums {
    check(x_TD, w_VD, labels, shape);
    match variant {
        Variant::Fused => fused::forward(x_TD, w_VD, labels, shape, opts),
        Variant::Eager => eager::forward(x_TD, w_VD, labels, shape, opts),
    }
}

/// Most temporary bytes that [`forward_backward`] holds at once, when every row has a loss.
pub fn workspace_bytes(variant: Variant, shape: Shape, opts: Options) -> u64 {
    match variant {
        Variant::Fused => fused::workspace_bytes(shape, opts),
        Variant::Eager => eager::workspace_bytes(shape),
    }
}

fn check(x: &[f32], w: &[f32], labels: &[i32], shape: Shape) {
    let Shape { tokens, hidden, vocab } = shape;
    assert!(hidden > 0 && vocab > 0, "an LM head has at least one feature and one token");
    assert_eq!(x.len(), tokens * hidden, "x_TD");
    assert_eq!(w.len(), vocab * hidden, "w_VD");
    assert_eq!(labels.len(), tokens, "labels");
    let known = |&y: &i32| y == IGNORE_INDEX || usize::try_from(y).is_ok_and(|y| y < vocab);
    assert!(labels.iter().all(known), "a label is neither {IGNORE_INDEX} nor in 0..{vocab}");
}

/// Loss of a row from what its logits sum to.
fn row_loss(lse: f32, target_logit: f32, mean_logit: f32, opts: Options) -> f64 {
    let [lse, target, mean, smoothing, z] =
        [lse, target_logit, mean_logit, opts.label_smoothing, opts.z_loss].map(f64::from);
    (1.0 - smoothing) * (lse - target) + smoothing * (lse - mean) + z * lse * lse
}
