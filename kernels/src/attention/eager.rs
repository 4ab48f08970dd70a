//! The passes of HF's eager attention and its autograd backward: repeated keys and values, full `S×S` scores of every
//! row and head, an additive mask, a softmax, and whole-tensor temporaries between them.

use rayon::prelude::*;

use super::{Layout, Shape};
use crate::{
    gemm::{Dims, MatRef, gemm_single_into},
    passes::{rows, temporary, vectorised},
    simd,
};

/// The operation of a batch: temporaries are blocks of `S` rows, one block for every row and head.
#[derive(Clone, Copy)]
struct Batch {
    rows: usize,
    slots: usize,
    shape: Shape,
}

impl Batch {
    fn new(layout: Layout, shape: Shape) -> Self {
        Self { rows: layout.rows, slots: layout.row_slots, shape }
    }

    /// A temporary whose blocks are products: `f(row, head)` gives operands and inner extent.
    fn products<'a>(
        self,
        columns: usize,
        f: impl Fn(usize, usize) -> (MatRef<'a>, MatRef<'a>, usize) + Sync,
    ) -> Vec<f32> {
        let (heads, len) = (self.shape.heads, self.rows * self.shape.heads * self.slots * columns);
        let mut out = Vec::with_capacity(len);
        let blocks = out.spare_capacity_mut()[..len].par_chunks_mut(self.slots * columns);
        blocks.enumerate().for_each(|(i, block)| {
            let (a, b, inner) = f(i / heads, i % heads);
            gemm_single_into(block, a, b, Dims { m: self.slots, n: columns, k: inner });
        });
        // SAFETY: the capacity is at least `len`, and a product wrote all of every block.
        unsafe { out.set_len(len) };
        out
    }

    /// A temporary whose row `i` (slot by slot, head by head, row by row) is what `f(i)` yields.
    fn temporary<I: Iterator<Item = f32>>(self, columns: usize, f: impl Fn(usize) -> I + Sync) -> Vec<f32> {
        temporary(self.rows * self.shape.heads * self.slots, columns, f)
    }

    /// The block of a row and head in a temporary.
    fn block(self, data: &[f32], columns: usize, row: usize, head: usize) -> MatRef<'_> {
        let size = self.slots * columns;
        MatRef::rows(&data[(row * self.shape.heads + head) * size..][..size], columns)
    }

    /// Columns at `offset` of a row's slots in a packed matrix.
    fn packed(self, data: &[f32], width: usize, row: usize, offset: usize) -> MatRef<'_> {
        MatRef::rows(&data[row * self.slots * width + offset..], width)
    }

    /// Row, head and slot of row `i` of a temporary.
    #[inline(always)]
    fn place(self, i: usize) -> (usize, usize, usize) {
        (i / self.slots / self.shape.heads, i / self.slots % self.shape.heads, i % self.slots)
    }

    /// `repeat_kv`: the key or value head of every query head, copied.
    fn repeat(self, qkv_TQ: &[f32], offset: impl Fn(usize) -> usize + Sync) -> Vec<f32> {
        let (k, q) = (self.shape.head_dim, self.shape.packed());
        self.temporary(k, |i| {
            let (row, head, slot) = self.place(i);
            let start = (row * self.slots + slot) * q + offset(head / self.shape.group());
            qkv_TQ[start..][..k].iter().copied()
        })
    }

    fn scaled(self, scores: &[f32]) -> Vec<f32> {
        let (s, scale) = (self.slots, self.shape.scale());
        self.temporary(
            s,
            #[inline(always)]
            |i| scores[i * s..][..s].iter().map(move |&x| x * scale),
        )
    }
}

pub(super) fn forward(
    qkv_TQ: &[f32],
    layout: Layout,
    shape: Shape,
    out_T: &mut [f32],
    lse_HT: &mut [f32],
    probs: Option<&mut [f32]>,
) {
    let (batch, k, s) = (Batch::new(layout, shape), shape.head_dim, layout.row_slots);
    let keys = batch.repeat(qkv_TQ, |g| shape.key(g));
    let values = batch.repeat(qkv_TQ, |g| shape.value(g));
    let scores = batch.products(s, |row, head| {
        let query = batch.packed(qkv_TQ, shape.packed(), row, head * k);
        (query, batch.block(&keys, k, row, head).t(), k)
    });
    let scaled = batch.scaled(&scores);
    let mask = additive_mask(layout);
    let masked = batch.temporary(
        s,
        #[inline(always)]
        |i| {
            let (row, _, slot) = batch.place(i);
            let mask = &mask[(row * s + slot) * s..][..s];
            scaled[i * s..][..s].iter().zip(mask).map(|(&x, &m)| x + m)
        },
    );
    let mut own_probs = Vec::new();
    let probs = probs.unwrap_or_else(|| {
        own_probs = vec![0.0; masked.len()];
        &mut own_probs
    });
    let lse = softmax(probs, &masked, s);
    for (i, lse) in lse.chunks_exact(s).enumerate() {
        let (row, head, _) = batch.place(i * s);
        lse_HT[head * layout.tokens() + row * s..][..s].copy_from_slice(lse);
    }
    let heads_first = batch
        .products(k, |row, head| (batch.block(probs, s, row, head), batch.block(&values, k, row, head), s));
    rows(out_T, shape.out(), |t, out| {
        for (head, out) in out.chunks_exact_mut(k).enumerate() {
            out.copy_from_slice(&batch.block(&heads_first, k, t / s, head).data[t % s * k..][..k]);
        }
    });
}

/// `rows×S×S`: 0 where a query sees a key, the lowest number elsewhere.
fn additive_mask(layout: Layout) -> Vec<f32> {
    let s = layout.row_slots;
    let mut mask = vec![f32::MIN; layout.tokens() * s];
    for (start, len) in layout.documents() {
        for i in start..start + len {
            mask[i * s + start % s..][..i + 1 - start].fill(0.0);
        }
    }
    mask
}

/// Softmax of every row of `s` elements; returns the logarithms of the denominators.
fn softmax(probs: &mut [f32], scores: &[f32], s: usize) -> Vec<f32> {
    let mut lse = vec![0.0; scores.len() / s];
    let row = |((probs, scores), lse): ((&mut [f32], &[f32]), &mut f32)| {
        vectorised(
            #[inline(always)]
            || {
                let maximum = simd::max(scores);
                for (p, &x) in probs.iter_mut().zip(scores) {
                    *p = simd::exp(x - maximum);
                }
                let sum = simd::sum(probs);
                probs.iter_mut().for_each(|p| *p /= sum);
                *lse = maximum + sum.ln();
            },
        );
    };
    probs
        .par_chunks_exact_mut(s)
        .zip(scores.par_chunks_exact(s))
        .zip(&mut lse)
        .with_min_len(16)
        .for_each(row);
    lse
}

pub(super) fn backward(
    dout_T: &[f32],
    qkv_TQ: &[f32],
    probs: &[f32],
    layout: Layout,
    shape: Shape,
    dqkv_TQ: &mut [f32],
) {
    let (batch, k, s, q) = (Batch::new(layout, shape), shape.head_dim, layout.row_slots, shape.packed());
    let dout = |row, head: usize| batch.packed(dout_T, shape.out(), row, head * k);
    let dvalues = batch.products(k, |row, head| (batch.block(probs, s, row, head).t(), dout(row, head), s));
    let dprobs = batch.products(s, |row, head| {
        let value = batch.packed(qkv_TQ, q, row, shape.value(head / shape.group()));
        (dout(row, head), value.t(), k)
    });
    let dmasked = batch.temporary(
        s,
        #[inline(always)]
        |i| {
            let (p, dp) = (&probs[i * s..][..s], &dprobs[i * s..][..s]);
            let delta = simd::dot(p, dp);
            p.iter().zip(dp).map(move |(&p, &dp)| p * (dp - delta))
        },
    );
    let dscores = batch.scaled(&dmasked);
    let dqueries = batch.products(k, |row, head| {
        let key = batch.packed(qkv_TQ, q, row, shape.key(head / shape.group()));
        (batch.block(&dscores, s, row, head), key, s)
    });
    let dkeys = batch.products(k, |row, head| {
        let query = batch.packed(qkv_TQ, q, row, head * k);
        (batch.block(&dscores, s, row, head).t(), query, s)
    });
    rows(dqkv_TQ, q, |t, out| {
        let part = |all, head: usize| &batch.block(all, k, t / s, head).data[t % s * k..][..k];
        let (dq, dkv) = out.split_at_mut(shape.out());
        let (dk, dv) = dkv.split_at_mut(shape.kv_heads * k);
        for (head, dq) in dq.chunks_exact_mut(k).enumerate() {
            dq.copy_from_slice(part(&dqueries, head));
        }
        for (repeated, dst) in [(&dkeys, dk), (&dvalues, dv)] {
            for (g, dst) in dst.chunks_exact_mut(k).enumerate() {
                dst.fill(0.0);
                for head in g * shape.group()..(g + 1) * shape.group() {
                    dst.iter_mut().zip(part(repeated, head)).for_each(|(d, &x)| *d += x);
                }
            }
        }
    });
}
