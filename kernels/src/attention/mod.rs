//! Causal grouped-query attention over the documents of a packed batch (FlashAttention-2, arXiv 2307.08691; grouped
//! queries, arXiv 2305.13245).
//!
//! A row of `qkv_TQ` is `[q: H·K | k: G·K | v: G·K]`; query head `h` reads key/value head `⌊h·G/H⌋`. For tokens `i`, `j`
//! of one document with `j ≤ i`, and no others:
//!
//! ```text
//! s_ij  = q_i·k_j / √K          lse_i = ln Σ_j exp(s_ij)        p_ij = exp(s_ij − lse_i)      out_i = Σ_j p_ij·v_j
//! dv_j  = Σ_i p_ij·dout_i       δ_i = dout_i·out_i              ds_ij = p_ij·(dout_i·v_j − δ_i)/√K
//! dq_i  = Σ_j ds_ij·k_j         dk_j = Σ_i ds_ij·q_i            (dk, dv: summed over the query heads that share them)
//! ```
//!
//! Everything is f32 and row-major; scores and probabilities accumulate in f32. Saved for the backward pass besides
//! `qkv_TQ` and `out_T`: `lse_HT`, and the eager variant's probabilities. Results do not depend on the number of threads.

#![allow(non_snake_case)] // shape suffixes, see the crate's legend

pub mod bench;
pub mod cached;
pub mod cases;
pub mod cuda;
pub mod cuda_eager;
mod eager;
mod fused;
pub mod reference;
#[cfg(test)]
mod tests;
mod tile;
mod witness;

use crate::Variant;

/// Boundaries of documents of these lengths, from 0.
pub fn cu_seqlens(lengths: &[u32]) -> Vec<u32> {
    let ends = lengths.iter().scan(0, |end, len| {
        *end += len;
        Some(*end)
    });
    std::iter::once(0).chain(ends).collect()
}

/// Extent of a packed row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Query heads `H`, a multiple of `kv_heads`.
    pub heads: usize,
    /// Key/value heads `G`.
    pub kv_heads: usize,
    /// Head dimension `K`.
    pub head_dim: usize,
}

impl Shape {
    /// Elements `Q = (H + 2G)·K` of a row of `qkv_TQ`.
    pub fn packed(self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Elements `H·K` of a row of `out_T`.
    pub fn out(self) -> usize {
        self.heads * self.head_dim
    }

    /// Query heads of a key/value head, `H/G`.
    pub fn group(self) -> usize {
        self.heads / self.kv_heads
    }

    /// Factor of the scores, `1/√K`.
    pub fn scale(self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// Offset of key head `g` in a packed row.
    pub(crate) fn key(self, g: usize) -> usize {
        (self.heads + g) * self.head_dim
    }

    /// Offset of value head `g` in a packed row.
    pub(crate) fn value(self, g: usize) -> usize {
        (self.heads + self.kv_heads + g) * self.head_dim
    }
}

/// Which tokens see each other.
#[derive(Clone, Copy, Debug)]
pub struct Layout<'a> {
    /// Document boundaries: starts at 0, never falls, ends at `T`. Padding behind a row's last document is a document
    /// of its own. None crosses a row.
    pub cu_seqlens: &'a [u32],
    /// Rows of the micro-batch.
    pub rows: usize,
    /// Slots `S` of a row.
    pub row_slots: usize,
}

impl Layout<'_> {
    /// Slots `T` of the micro-batch.
    pub fn tokens(&self) -> usize {
        self.rows * self.row_slots
    }

    /// Start and length of every document that has tokens.
    pub(crate) fn documents(&self) -> impl Iterator<Item = (usize, usize)> {
        let ranges = self.cu_seqlens.array_windows::<2>().map(|&[a, b]| (a as usize, (b - a) as usize));
        ranges.filter(|&(_, len)| len > 0)
    }
}

/// What the forward pass leaves for the backward pass.
#[derive(Clone, Copy, Debug)]
pub struct Saved<'a> {
    /// Its input.
    pub qkv_TQ: &'a [f32],
    /// Its output.
    pub out_T: &'a [f32],
    /// Logarithm of every softmax denominator.
    pub lse_HT: &'a [f32],
    /// Eager only: probabilities, `rows×H×S×S`.
    pub probs: Option<&'a [f32]>,
}

/// Bytes that [`forward`] leaves for [`backward`] besides its input and output.
pub fn saved_bytes(variant: Variant, rows: usize, row_slots: usize, shape: Shape) -> u64 {
    let lse = rows * row_slots * shape.heads;
    let probs = match variant {
        Variant::Fused => 0,
        Variant::Eager => lse * row_slots,
    };
    4 * (lse + probs) as u64
}

/// `out_T` (`T×H·K`) and `lse_HT` of `qkv_TQ`; both overwritten.
///
/// The eager variant also writes its probabilities to `probs` (`rows×H×S×S`) when given; nothing else reads them.
///
/// # Panics
/// When a length disagrees with `layout` and `shape`, the documents break the rules of [`Layout`], or `probs` is given
/// to the fused variant, which has none.
pub fn forward(
    variant: Variant,
    qkv_TQ: &[f32],
    layout: Layout,
    shape: Shape,
    out_T: &mut [f32],
    lse_HT: &mut [f32],
    probs: Option<&mut [f32]>,
) {
    check(layout, shape, qkv_TQ, out_T, lse_HT, probs.as_deref());
    match variant {
        Variant::Fused => {
            assert!(probs.is_none(), "fused attention has no probabilities to save");
            fused::forward::run(qkv_TQ, layout, shape, out_T, lse_HT);
        }
        Variant::Eager => eager::forward(qkv_TQ, layout, shape, out_T, lse_HT, probs),
    }
}

/// `dqkv_TQ`, overwritten, from `dout_T` and what the forward pass of the same variant saved.
///
/// # Panics
/// As [`forward`]; also when the eager variant's probabilities are missing.
pub fn backward(
    variant: Variant,
    dout_T: &[f32],
    saved: Saved,
    layout: Layout,
    shape: Shape,
    dqkv_TQ: &mut [f32],
) {
    check(layout, shape, saved.qkv_TQ, saved.out_T, saved.lse_HT, saved.probs);
    assert_eq!(dout_T.len(), saved.out_T.len(), "dout_T");
    assert_eq!(dqkv_TQ.len(), saved.qkv_TQ.len(), "dqkv_TQ");
    match variant {
        Variant::Fused => {
            assert!(saved.probs.is_none(), "fused attention has no saved probabilities");
            fused::backward::run(dout_T, saved, layout, shape, dqkv_TQ);
        }
        Variant::Eager => {
            let probs = saved.probs.expect("eager attention reads the probabilities that its forward saved");
            eager::backward(dout_T, saved.qkv_TQ, probs, layout, shape, dqkv_TQ);
        }
    }
}

fn check(layout: Layout, shape: Shape, qkv: &[f32], out: &[f32], lse: &[f32], probs: Option<&[f32]>) {
    let tokens = layout.tokens();
    assert!(
        shape.head_dim > 0 && shape.kv_heads > 0 && shape.heads.is_multiple_of(shape.kv_heads),
        "{shape:?}"
    );
    assert_eq!(qkv.len(), tokens * shape.packed(), "qkv_TQ");
    assert_eq!(out.len(), tokens * shape.out(), "out_T");
    assert_eq!(lse.len(), tokens * shape.heads, "lse_HT");
    assert!(probs.is_none_or(|p| p.len() == lse.len() * layout.row_slots), "probs");
    let cu = layout.cu_seqlens;
    assert_eq!((cu.first().copied(), cu.last().map(|&e| e as usize)), (Some(0), Some(tokens)), "cu_seqlens");
    assert!(cu.is_sorted(), "cu_seqlens falls");
    let crosses = |(start, len)| start / layout.row_slots != (start + len - 1) / layout.row_slots;
    assert!(!layout.documents().any(crosses), "a document crosses a row");
}
