//! One pass: a packed row is read once and written once.

use rayon::prelude::*;

use super::{NormBackward, NormForward, Rotation, Shape};
use crate::{
    passes::{add, rows_per_partial, rows_per_task, vectorised},
    rmsnorm::dot3,
    simd::dot,
};

pub(super) fn forward(
    qkv_TQ: &mut [f32],
    bias_Q: Option<&[f32]>,
    norm: Option<NormForward>,
    rotation: Rotation,
    shape: Shape,
) {
    let q = shape.packed();
    let rows = rows_per_task(q);
    let tasks = qkv_TQ.par_chunks_mut(rows * q).zip(rotation.positions.par_chunks(rows));
    match norm {
        None => tasks.for_each(|(qkv, positions)| {
            vectorised(
                #[inline(always)]
                || {
                    for (row, &p) in qkv.chunks_exact_mut(q).zip(positions) {
                        if let Some(bias) = bias_Q {
                            add(row, bias);
                        }
                        rotate_row::<1>(row, p, rotation, shape);
                    }
                },
            );
        }),
        Some(NormForward { q_weight_K, k_weight_K, eps, pre_norm, rstd }) => {
            let saved = pre_norm.par_chunks_mut(rows * shape.rotated());
            let saved = saved.zip(rstd.par_chunks_mut(rows * shape.rotated_heads()));
            tasks.zip(saved).for_each(|((qkv, positions), (pre_norm, rstd))| {
                vectorised(
                    #[inline(always)]
                    || {
                        let saved = pre_norm.chunks_exact_mut(shape.rotated());
                        let saved = saved.zip(rstd.chunks_exact_mut(shape.rotated_heads()));
                        for ((row, &p), (pre_norm, rstd)) in qkv.chunks_exact_mut(q).zip(positions).zip(saved)
                        {
                            if let Some(bias) = bias_Q {
                                add(row, bias);
                            }
                            pre_norm.copy_from_slice(&row[..shape.rotated()]);
                            norm_row(row, rstd, [q_weight_K, k_weight_K], eps, shape);
                            rotate_row::<1>(row, p, rotation, shape);
                        }
                    },
                );
            });
        }
    }
}

/// What one task adds to the gradients of bias and weights.
struct Partial {
    bias: Vec<f32>,
    weights: [Vec<f32>; 2],
}

pub(super) fn backward(
    dqkv_TQ: &mut [f32],
    dbias_Q: Option<&mut [f32]>,
    norm: Option<NormBackward>,
    rotation: Rotation,
    shape: Shape,
) {
    let (q, wants_bias) = (shape.packed(), dbias_Q.is_some());
    let rows = rows_per_partial(shape.tokens, q);
    let norm_view = norm.as_ref().map(|n| (n.pre_norm, n.rstd, [n.q_weight_K, n.k_weight_K]));
    let tasks = dqkv_TQ.par_chunks_mut(rows * q).zip(rotation.positions.par_chunks(rows)).enumerate();
    let task = |(task, (dqkv, positions)): (usize, (&mut [f32], &[u32]))| {
        let (bias_len, weight_len) =
            (if wants_bias { q } else { 0 }, if norm_view.is_some() { shape.head_dim } else { 0 });
        let mut partial =
            Partial { bias: vec![0.0; bias_len], weights: [(); 2].map(|()| vec![0.0; weight_len]) };
        vectorised(
            #[inline(always)]
            || {
                for (i, (row, &p)) in dqkv.chunks_exact_mut(q).zip(positions).enumerate() {
                    rotate_row::<-1>(row, p, rotation, shape);
                    if let Some((pre_norm, rstd, weights)) = norm_view {
                        let t = task * rows + i;
                        let pre_norm = &pre_norm[t * shape.rotated()..][..shape.rotated()];
                        let rstd = &rstd[t * shape.rotated_heads()..][..shape.rotated_heads()];
                        norm_row_backward(row, pre_norm, rstd, weights, &mut partial.weights, shape);
                    }
                    add(&mut partial.bias, row);
                }
            },
        );
        partial
    };
    let partials: Vec<Partial> = tasks.map(task).collect();
    if let Some(dbias) = dbias_Q {
        partials.iter().for_each(|p| add(dbias, &p.bias));
    }
    if let Some(NormBackward { dq_weight_K, dk_weight_K, .. }) = norm {
        for (side, gradient) in [dq_weight_K, dk_weight_K].into_iter().enumerate() {
            if let Some(dw) = gradient {
                partials.iter().for_each(|p| add(dw, &p.weights[side]));
            }
        }
    }
}

/// Rotates the query and key heads of a row by `SIGN` times their angle.
#[inline(always)]
fn rotate_row<const SIGN: i32>(row: &mut [f32], position: u32, rotation: Rotation, shape: Shape) {
    let (cos, sin) = rotation.tables.row(position);
    for head in row[..shape.rotated()].chunks_exact_mut(shape.head_dim) {
        let (first, second) = head.split_at_mut(shape.head_dim / 2);
        for (((a, b), &c), &s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            let s = SIGN as f32 * s;
            (*a, *b) = (a.mul_add(c, -(*b * s)), b.mul_add(c, *a * s));
        }
    }
}

/// Index of a head's weight: 0 for queries, 1 for keys.
#[inline(always)]
fn side(head: usize, shape: Shape) -> usize {
    usize::from(head >= shape.heads)
}

#[inline(always)]
fn norm_row(row: &mut [f32], rstd: &mut [f32], weights: [&[f32]; 2], eps: f32, shape: Shape) {
    let heads = row[..shape.rotated()].chunks_exact_mut(shape.head_dim);
    for (h, (head, r)) in heads.zip(rstd).enumerate() {
        *r = 1.0 / (dot(head, head) / shape.head_dim as f32 + eps).sqrt();
        let w = weights[side(h, shape)];
        head.iter_mut().zip(w).for_each(|(u, &w)| *u = *u * *r * w);
    }
}

#[inline(always)]
fn norm_row_backward(
    drow: &mut [f32],
    pre_norm: &[f32],
    rstd: &[f32],
    weights: [&[f32]; 2],
    dweights: &mut [Vec<f32>; 2],
    shape: Shape,
) {
    let k = shape.head_dim;
    let heads = drow[..shape.rotated()].chunks_exact_mut(k).zip(pre_norm.chunks_exact(k)).zip(rstd);
    for (h, ((du, u), &r)) in heads.enumerate() {
        let (w, dw) = (weights[side(h, shape)], &mut dweights[side(h, shape)]);
        let scale = r * r * r / k as f32 * dot3(du, w, u);
        for (((du, &u), &w), dw) in du.iter_mut().zip(u).zip(w).zip(dw) {
            *dw = (*du * r).mul_add(u, *dw);
            *du = r.mul_add(*du * w, -(u * scale));
        }
    }
}
