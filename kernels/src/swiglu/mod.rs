//! SwiGLU (arXiv 2002.05202), `silu(gate)·up`, on a packed projection.
//!
//! A row of `gate_up_T2F` is `[gate: F | up: F]`. With the sigmoid `σ`:
//!
//! ```text
//! act   = gate·σ(gate) · up
//! dgate = dact · up · σ(gate)·(1 + gate·(1 − σ(gate)))
//! dup   = dact · gate·σ(gate)
//! ```
//!
//! Everything is f32 and row-major. Saved for the backward pass: `gate_up_T2F` alone, which the backward overwrites
//! with its gradient. Element-wise, so results do not depend on the number of threads.

#![allow(non_snake_case)] // shape suffixes, see the crate's legend

pub mod bench;
pub mod bench_adapted;
pub mod cases;
pub mod cuda;
pub mod cuda_adapted;
pub mod cuda_eager;
mod eager;
mod fused;
pub mod reference;
#[cfg(test)]
mod tests;

use crate::{Variant, simd};

/// `act_TF` of `gate_up_T2F`; overwritten.
///
/// # Panics
/// When a length disagrees with `tokens` and `ffn`.
pub fn forward(variant: Variant, gate_up_T2F: &[f32], act_TF: &mut [f32], tokens: usize, ffn: usize) {
    check(gate_up_T2F, act_TF, tokens, ffn);
    match variant {
        Variant::Fused => fused::forward(gate_up_T2F, act_TF, ffn),
        Variant::Eager => eager::forward(gate_up_T2F, act_TF, ffn),
    }
}

/// Replaces `gate_up_T2F` by its gradient, given the gradient of the activation.
///
/// # Panics
/// When a length disagrees with `tokens` and `ffn`.
pub fn backward(variant: Variant, gate_up_T2F: &mut [f32], dact_TF: &[f32], tokens: usize, ffn: usize) {
    check(gate_up_T2F, dact_TF, tokens, ffn);
    match variant {
        Variant::Fused => fused::backward(gate_up_T2F, dact_TF, ffn),
        Variant::Eager => eager::backward(gate_up_T2F, dact_TF, ffn),
    }
}

fn check(gate_up_T2F: &[f32], act_TF: &[f32], tokens: usize, ffn: usize) {
    assert!(ffn > 0, "rows are empty");
    assert_eq!(gate_up_T2F.len(), 2 * tokens * ffn, "gate_up_T2F");
    assert_eq!(act_TF.len(), tokens * ffn, "a T×F operand");
}

/// `σ(x) = 1/(1 + e⁻ˣ)`; 0 and 1 at the extremes.
#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + simd::exp(-x))
}
