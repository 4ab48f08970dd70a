//! Logits of a chunk of rows at a time, which become their own gradient in place.

use rayon::prelude::*;

use super::{IGNORE_INDEX, MaxSum, Options, Shape, Sums, row_loss};
use crate::{
    gemm::{linear_dgrad, linear_forward_into, linear_wgrad},
    passes::vectorised,
    simd,
};

/// Logits of a chunk: they stay in a shared cache between the products. The fastest of 1 to 32 MiB at a vocabulary of 4096.
const CHUNK_BYTES: usize = 4 << 20;

/// Rows that a chunk has at least: fewer would make the products narrow and re-read W and dW too often.
const MIN_CHUNK_ROWS: usize = 256;

/// Logits that are read, reduced and exponentiated while they are in L1.
const BLOCK: usize = 2048;

/// Rows of logits that exist at a time.
pub fn chunk_rows(shape: Shape, opts: Options) -> usize {
    let by_size = (CHUNK_BYTES / 4 / shape.vocab).max(MIN_CHUNK_ROWS);
    opts.chunk_rows.unwrap_or(by_size).min(shape.tokens).max(1)
}

pub(super) fn workspace_bytes(shape: Shape, opts: Options) -> u64 {
    // logits, gathered x, its gradient; row indices and row losses
    let rows = chunk_rows(shape, opts) as u64;
    4 * rows * (shape.vocab as u64 + 2 * shape.hidden as u64) + 8 * (rows + shape.tokens as u64)
}

#[allow(clippy::too_many_arguments)] // the operands of the equation
pub(super) fn forward_backward(
    x_TD: &[f32],
    w_VD: &[f32],
    labels: &[i32],
    scale: f32,
    dx_TD: &mut [f32],
    mut dw_VD: Option<&mut [f32]>,
    shape: Shape,
    opts: Options,
) -> Sums {
    let Shape { hidden: d, vocab: v, .. } = shape;
    for (dx, _) in dx_TD.chunks_exact_mut(d).zip(labels).filter(|(_, y)| **y == IGNORE_INDEX) {
        dx.fill(0.0);
    }
    let mut dx_RD = vec![0.0; chunk_rows(shape, opts) * d];
    chunks(
        x_TD,
        w_VD,
        labels,
        (shape, opts),
        #[inline(always)]
        |logits, label| row_gradient(logits, label, scale, opts),
        |rows, x_RD, dlogits_RV| {
            let r = rows.len();
            let dx_RD = &mut dx_RD[..r * d];
            linear_dgrad(dx_RD, dlogits_RV, w_VD, r, v, d, 0.0);
            for (&row, dx) in rows.iter().zip(dx_RD.chunks_exact(d)) {
                dx_TD[row * d..][..d].copy_from_slice(dx);
            }
            if let Some(dw) = &mut dw_VD {
                linear_wgrad(dw, dlogits_RV, x_RD, r, v, d, 1.0);
            }
        },
    )
}

pub(super) fn forward(x_TD: &[f32], w_VD: &[f32], labels: &[i32], shape: Shape, opts: Options) -> Sums {
    chunks(
        x_TD,
        w_VD,
        labels,
        (shape, opts),
        #[inline(always)]
        |logits, label| row_forward(logits, label, opts),
        |_, _, _| (),
    )
}

/// For every chunk of rows with a loss: gathers x, computes its logits, calls `row` on each row of logits and its label
/// in parallel, and then `chunk` with the rows' indices, x and whatever `row` left of the logits.
fn chunks(
    x_TD: &[f32],
    w_VD: &[f32],
    labels: &[i32],
    (shape, opts): (Shape, Options),
    row: impl Fn(&mut [f32], usize) -> f64 + Sync,
    mut chunk: impl FnMut(&[usize], &[f32], &[f32]),
) -> Sums {
    let Shape { hidden: d, vocab: v, .. } = shape;
    let rows: Vec<usize> = (0..shape.tokens).filter(|&t| labels[t] != IGNORE_INDEX).collect();
    let per_chunk = chunk_rows(shape, opts).min(rows.len());
    let (mut x_RD, mut logits_RV) = (vec![0.0; per_chunk * d], Vec::new());
    let mut losses = vec![0f64; per_chunk];
    let mut loss = 0.0;
    for rows in rows.chunks(per_chunk.max(1)) {
        let r = rows.len();
        let (x, losses) = (&mut x_RD[..r * d], &mut losses[..r]);
        for (&row, x) in rows.iter().zip(x.chunks_exact_mut(d)) {
            x.copy_from_slice(&x_TD[row * d..][..d]);
        }
        linear_forward_into(&mut logits_RV, x, w_VD, r, v, d);
        logits_RV.par_chunks_exact_mut(v).zip(rows).zip(&mut *losses).for_each(|((logits, &t), loss)| {
            *loss = vectorised(
                #[inline(always)]
                || row(logits, labels[t] as usize),
            );
        });
        loss += losses.iter().sum::<f64>();
        chunk(rows, x, &logits_RV);
    }
    Sums { loss, tokens: rows.len() as u64 }
}

/// Loss of a row; the logits are read once.
#[inline(always)]
fn row_forward(logits: &[f32], label: usize, opts: Options) -> f64 {
    let mut stats = MaxSum::EMPTY;
    let mut total = 0.0; // only smoothing needs the mean logit
    for block in logits.chunks(BLOCK) {
        let max = simd::max(block);
        let sum = simd::sum_exp(block, max);
        stats = stats.combine(MaxSum { max, sum });
        if opts.label_smoothing != 0.0 {
            total += simd::sum(block);
        }
    }
    row_loss(stats.lse(), logits[label], total / logits.len() as f32, opts)
}

/// Loss of a row, whose logits become their gradient: one visit exponentiates every block against its own maximum, a
/// second scales by `exp(block maximum − lse)`.
#[inline(always)]
fn row_gradient(logits: &mut [f32], label: usize, scale: f32, opts: Options) -> f64 {
    let (v, target) = (logits.len(), logits[label]);
    let mut stats = MaxSum::EMPTY;
    let mut total = 0.0; // only smoothing needs the mean logit
    let mut maxima = Vec::with_capacity(v.div_ceil(BLOCK));
    for block in logits.chunks_mut(BLOCK) {
        let max = simd::max(block);
        if opts.label_smoothing != 0.0 {
            total += simd::sum(block);
        }
        stats = stats.combine(MaxSum { max, sum: simd::exp_in_place(block, max) });
        maxima.push(max);
    }
    let lse = stats.lse();
    let weight = scale * (2.0 * opts.z_loss).mul_add(lse, 1.0);
    let uniform = scale * opts.label_smoothing / v as f32;
    for (block, max) in logits.chunks_mut(BLOCK).zip(maxima) {
        let weight = weight * simd::exp(max - stats.max) / stats.sum;
        for p in block {
            *p = p.mul_add(weight, -uniform);
        }
    }
    logits[label] -= scale * (1.0 - opts.label_smoothing);
    row_loss(lse, target, total / v as f32, opts)
}
