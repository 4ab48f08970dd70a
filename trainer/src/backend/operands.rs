//! What the seams work on: views, by the part of the model that they belong to.

use std::ops::Range;

use chronicals_kernels::lora::Segment;

use super::View;

/// A parameter and, when it trains, its gradient.
#[derive(Clone, Copy, Debug)]
pub struct Param {
    /// Values.
    pub value: View,
    /// Gradient, `None` when frozen.
    pub grad: Option<View>,
}

/// A projection `y_TN = x_TK · w_NKᵀ`, several of Hugging Face's side by side where they share an input.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `[N, K]`.
    pub weight: Param,
    /// `N`.
    pub outputs: usize,
    /// `K`.
    pub inputs: usize,
    /// Adapters on this projection: a batch for each size that they have.
    pub adapters: Vec<Adapter>,
    /// Magnitudes of outputs with adapters, under DoRA.
    pub dora: Option<Dora>,
    /// SwiGLU, where it is next to this projection.
    pub beside: Beside,
}

/// Where SwiGLU is, seen from a [`Linear`]. What lies between the two may be short of the adapters' part, which SwiGLU then adds:
/// it has the projection at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beside {
    /// Elsewhere.
    Nothing,
    /// It reads the output.
    ReaderOfOutput,
    /// It writes the input.
    WriterOfInput,
}

/// LoRA adapters of one [`Linear`], of one rank and scale.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// All `A`, stacked: `[S, K]`, `S` the sum of the ranks.
    pub a: Param,
    /// All `B`, one after the other: `[N_i, r_i]` each.
    pub b: Param,
    /// Where each adapter writes.
    pub segments: Vec<Segment>,
    /// Factor on `B·A`.
    pub scale: f32,
    /// Saved product `x·Aᵀ`, `[T, S]`, with room for rows that end at a multiple of 8.
    pub xa: View,
    /// Its gradient.
    pub dxa: View,
}

impl Adapter {
    /// `S`: the sum of the ranks.
    pub fn ranks(&self) -> usize {
        self.segments.iter().map(|s| s.r).sum()
    }
}

/// DoRA's magnitudes of one [`Linear`]: `y = gain ⊙ (W + s·B·A)·x` with `gain = m/‖W + s·B·A‖`, row by row.
#[derive(Clone, Debug)]
pub struct Dora {
    /// `m`, of all columns with an adapter, one after another.
    pub magnitude: Param,
    /// Those columns of the packed output.
    pub columns: Vec<Range<usize>>,
    /// Saved, `[N]`: 1 where there is no adapter.
    pub gain: View,
    /// Saved, `[N]`: lengths of the rows of `W + s·B·A`.
    pub norms: View,
    /// Of the backward pass, `[T, N]`: the output before it is scaled, then its gradient.
    pub scaled: View,
}

/// RMSNorm of the residual stream.
#[derive(Clone, Copy, Debug)]
pub struct Norm {
    /// `[D]`.
    pub weight: Param,
    /// Saved reciprocal root mean square, `[T]`.
    pub rstd: View,
}

/// Bias, QK-norm and rotary embedding of one block.
#[derive(Clone, Copy, Debug)]
pub struct QkRope {
    /// `[Q]`, Qwen2 only.
    pub bias: Option<Param>,
    /// Qwen3 only.
    pub norm: Option<QkNorm>,
}

/// RMSNorm on every query and key head.
#[derive(Clone, Copy, Debug)]
pub struct QkNorm {
    /// `[K]`.
    pub q_weight: Param,
    /// `[K]`.
    pub k_weight: Param,
    /// Saved queries and keys before the norm, `[T, (H+G)·K]`.
    pub pre: View,
    /// Saved reciprocal root mean squares, `[T, H+G]`.
    pub rstd: View,
}

/// Attention's buffers of one block.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Rotated queries and keys, and values: `[T, Q]`.
    pub qkv: View,
    /// `[T, H·K]`.
    pub out: View,
    /// Saved log-sum-exp, `[H, T]`.
    pub lse: View,
    /// Saved probabilities, of the unfused variant where [they are the model's](super::Allocator::keeps_probabilities).
    pub probs: Option<View>,
}
