//! The passes of HF's `ForCausalLMLoss` and of its autograd graph over full logits.

use rayon::prelude::*;

use super::{IGNORE_INDEX, Options, Shape, Sums, row_loss};
use crate::{
    gemm::{linear_dgrad, linear_forward_into, linear_wgrad},
    passes::{row_sums, rows, temporary},
    simd,
};

pub(super) fn workspace_bytes(shape: Shape) -> u64 {
    // logits, log-probabilities, their gradient and the gradient of the logits; two sums a row
    4 * shape.tokens as u64 * (4 * shape.vocab as u64 + 2)
}

/// What the forward pass keeps for the backward pass.
struct Forward {
    log_probs_TV: Vec<f32>,
    lse_T: Vec<f32>,
    /// Held because the model's output holds them.
    logits_TV: Vec<f32>,
    sums: Sums,
}

pub(super) fn forward(x_TD: &[f32], w_VD: &[f32], labels: &[i32], shape: Shape, opts: Options) -> Sums {
    run_forward(x_TD, w_VD, labels, shape, opts).sums
}

fn run_forward(x_TD: &[f32], w_VD: &[f32], labels: &[i32], shape: Shape, opts: Options) -> Forward {
    let Shape { tokens: t, hidden: d, vocab: v } = shape;
    let mut logits_TV = Vec::new();
    linear_forward_into(&mut logits_TV, x_TD, w_VD, t, v, d);
    // log_softmax
    let mut lse_T = vec![0.0; t];
    rows(
        &mut lse_T,
        1,
        #[inline(always)]
        |row, lse| {
            let z = &logits_TV[row * v..][..v];
            let max = simd::max(z);
            lse[0] = max + simd::sum_exp(z, max).ln();
        },
    );
    let log_probs_TV = temporary(
        t,
        v,
        #[inline(always)]
        |row| {
            let lse = lse_T[row];
            logits_TV[row * v..][..v].iter().map(move |z| z - lse)
        },
    );
    // the mean over the vocabulary that smoothing needs
    let mut totals_T = vec![0.0; t];
    if opts.label_smoothing != 0.0 {
        row_sums(&mut totals_T, &log_probs_TV, v);
    }
    // gather
    let loss = (0..t).filter(|&row| labels[row] != IGNORE_INDEX).map(|row| {
        let (lse, target) = (lse_T[row], log_probs_TV[row * v + labels[row] as usize]);
        row_loss(lse, target + lse, totals_T[row] / v as f32 + lse, opts)
    });
    let tokens = labels.iter().filter(|y| **y != IGNORE_INDEX).count() as u64;
    let sums = Sums { loss: loss.sum(), tokens };
    Forward { log_probs_TV, lse_T, logits_TV, sums }
}

#[allow(clippy::too_many_arguments)] // the operands of the equation
pub(super) fn forward_backward(
    x_TD: &[f32],
    w_VD: &[f32],
    labels: &[i32],
    scale: f32,
    dx_TD: &mut [f32],
    dw_VD: Option<&mut [f32]>,
    shape: Shape,
    opts: Options,
) -> Sums {
    let Shape { tokens: t, hidden: d, vocab: v } = shape;
    let forward = run_forward(x_TD, w_VD, labels, shape, opts);
    // of gather and of the mean, with respect to the log-probabilities
    let mut dlog_probs_TV = vec![0.0; t * v];
    let uniform = scale * opts.label_smoothing / v as f32;
    let counted = dlog_probs_TV.par_chunks_exact_mut(v).zip(labels).filter(|(_, y)| **y != IGNORE_INDEX);
    counted.for_each(|(row, &y)| {
        if uniform != 0.0 {
            row.fill(-uniform);
        }
        row[y as usize] -= scale * (1.0 - opts.label_smoothing);
    });
    // of log_softmax
    let mut totals_T = vec![0.0; t];
    row_sums(&mut totals_T, &dlog_probs_TV, v);
    let mut dlogits_TV = temporary(
        t,
        v,
        #[inline(always)]
        |row| {
            let (g, log_p) = (&dlog_probs_TV[row * v..][..v], &forward.log_probs_TV[row * v..][..v]);
            let total = totals_T[row];
            g.iter().zip(log_p).map(
                #[inline(always)]
                move |(g, &log_p)| g - simd::exp(log_p) * total,
            )
        },
    );
    // of the z-loss, whose logsumexp has its own backward pass
    if opts.z_loss != 0.0 {
        rows(
            &mut dlogits_TV,
            v,
            #[inline(always)]
            |row, out| {
                let (lse, counts) = (forward.lse_T[row], labels[row] != IGNORE_INDEX);
                let weight = if counts { scale * 2.0 * opts.z_loss * lse } else { 0.0 };
                for (o, &z) in out.iter_mut().zip(&forward.logits_TV[row * v..][..v]) {
                    *o += weight * simd::exp(z - lse);
                }
            },
        );
    }
    linear_dgrad(dx_TD, &dlogits_TV, w_VD, t, v, d, 0.0);
    if let Some(dw) = dw_VD {
        linear_wgrad(dw, &dlogits_TV, x_TD, t, v, d, 1.0);
    }
    forward.sums
}
