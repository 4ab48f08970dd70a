//! QKV bias, QK-norm and rotary position embedding (RoFormer, arXiv 2104.09864), in place on a packed projection.
//!
//! A row of `qkv_TQ` is `[q: H·K | k: G·K | v: G·K]`. For every query and key head `u_K` of token `t` at position `p`:
//!
//! ```text
//! u  ← u + bias                                   (v too)
//! u  ← u · r · w,  r = 1/sqrt(mean(u²) + eps)     (QK-norm, as in Qwen3; w differs between q and k)
//! u₁ ← u₁·cos(p·f) − u₂·sin(p·f)                  (u₁, u₂: first and second half of u, HF's `rotate_half`;
//! u₂ ← u₂·cos(p·f) + u₁·sin(p·f)                   f: K/2 inverse frequencies)
//! ```
//!
//! The rotation is orthogonal, so its backward is the rotation by the opposite angle. Everything is f32 and row-major.
//! Saved for the backward pass, only with QK-norm: the biased `q` and `k` before the norm, `T×(H+G)·K`, and `r`,
//! `T×(H+G)`. Results do not depend on the number of threads.

#![allow(non_snake_case)] // shape suffixes, see the crate's legend

pub mod bench;
pub mod cases;
pub mod cuda;
pub mod cuda_eager;
mod eager;
mod fused;
mod operators;
pub mod reference;
mod tables;
#[cfg(test)]
mod tests;

pub use tables::Tables;

use crate::Variant;

/// Extent of the operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Rows `T`.
    pub tokens: usize,
    /// Query heads `H`.
    pub heads: usize,
    /// Key/value heads `G`.
    pub kv_heads: usize,
    /// Head dimension `K`, even.
    pub head_dim: usize,
}

impl Shape {
    /// Elements `Q = (H + 2G)·K` of a packed row.
    pub fn packed(self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Heads that are rotated, `H + G`.
    pub fn rotated_heads(self) -> usize {
        self.heads + self.kv_heads
    }

    /// Leading elements of a packed row that are rotated, `(H + G)·K`.
    pub fn rotated(self) -> usize {
        self.rotated_heads() * self.head_dim
    }
}

/// The angle of every token.
#[derive(Clone, Copy, Debug)]
pub struct Rotation<'a> {
    /// Cosines and sines by position.
    pub tables: &'a Tables,
    /// Position of every token *in its document*, `T`.
    pub positions: &'a [u32],
}

/// QK-norm of the forward pass.
#[derive(Debug)]
pub struct NormForward<'a> {
    /// Weight of the query norm.
    pub q_weight_K: &'a [f32],
    /// Weight of the key norm.
    pub k_weight_K: &'a [f32],
    /// Added to the mean square.
    pub eps: f32,
    /// Saved: biased `q` and `k` before the norm, `T×(H+G)·K`; overwritten.
    pub pre_norm: &'a mut [f32],
    /// Saved: `r`, `T×(H+G)`; overwritten.
    pub rstd: &'a mut [f32],
}

/// QK-norm of the backward pass.
#[derive(Debug)]
pub struct NormBackward<'a> {
    /// Weight of the query norm.
    pub q_weight_K: &'a [f32],
    /// Weight of the key norm.
    pub k_weight_K: &'a [f32],
    /// What the forward saved, `T×(H+G)·K`.
    pub pre_norm: &'a [f32],
    /// What the forward saved, `T×(H+G)`.
    pub rstd: &'a [f32],
    /// Gradient of the query norm's weight; added to.
    pub dq_weight_K: Option<&'a mut [f32]>,
    /// Gradient of the key norm's weight; added to.
    pub dk_weight_K: Option<&'a mut [f32]>,
}

/// Bias, norm and rotation of `qkv_TQ` in place.
///
/// # Panics
/// When a length disagrees with `shape`, or a position lies outside the tables.
pub fn forward(
    variant: Variant,
    qkv_TQ: &mut [f32],
    bias_Q: Option<&[f32]>,
    norm: Option<NormForward>,
    rotation: Rotation,
    shape: Shape,
) {
    check(qkv_TQ, bias_Q, rotation, shape);
    if let Some(n) = &norm {
        check_norm([n.q_weight_K, n.k_weight_K], n.pre_norm, n.rstd, shape);
    }
    match variant {
        Variant::Fused => fused::forward(qkv_TQ, bias_Q, norm, rotation, shape),
        Variant::Eager => eager::forward(qkv_TQ, bias_Q, norm, rotation, shape),
    }
}

/// Turns the gradient of [`forward`]'s result into the gradient of its input, in place in `dqkv_TQ`; `dbias_Q` and the
/// norm weights' gradients, where wanted, are added to.
///
/// # Panics
/// When a length disagrees with `shape`, or a position lies outside the tables.
pub fn backward(
    variant: Variant,
    dqkv_TQ: &mut [f32],
    dbias_Q: Option<&mut [f32]>,
    norm: Option<NormBackward>,
    rotation: Rotation,
    shape: Shape,
) {
    check(dqkv_TQ, dbias_Q.as_deref(), rotation, shape);
    if let Some(n) = &norm {
        check_norm([n.q_weight_K, n.k_weight_K], n.pre_norm, n.rstd, shape);
        let gradients = [&n.dq_weight_K, &n.dk_weight_K];
        assert!(gradients.into_iter().flatten().all(|g| g.len() == shape.head_dim), "QK-norm gradients");
    }
    match variant {
        Variant::Fused => fused::backward(dqkv_TQ, dbias_Q, norm, rotation, shape),
        Variant::Eager => eager::backward(dqkv_TQ, dbias_Q, norm, rotation, shape),
    }
}

fn check(qkv_TQ: &[f32], bias_Q: Option<&[f32]>, rotation: Rotation, shape: Shape) {
    assert!(shape.packed() > 0 && shape.head_dim.is_multiple_of(2), "{shape:?}");
    assert_eq!(qkv_TQ.len(), shape.tokens * shape.packed(), "qkv_TQ");
    assert!(bias_Q.is_none_or(|b| b.len() == shape.packed()), "bias_Q");
    assert_eq!(rotation.positions.len(), shape.tokens, "positions");
    assert_eq!(rotation.tables.half(), shape.head_dim / 2, "frequencies of the tables");
    let end = rotation.positions.iter().max().map_or(0, |&p| p as usize + 1);
    assert!(end <= rotation.tables.positions(), "position {} is outside the tables", end - 1);
}

fn check_norm(weights: [&[f32]; 2], pre_norm: &[f32], rstd: &[f32], shape: Shape) {
    assert!(weights.iter().all(|w| w.len() == shape.head_dim), "QK-norm weights");
    assert_eq!(pre_norm.len(), shape.tokens * shape.rotated(), "pre_norm");
    assert_eq!(rstd.len(), shape.tokens * shape.rotated_heads(), "rstd");
}
