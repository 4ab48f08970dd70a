//! The passes of HF's attention module between projection and attention, queries and keys apart, each with its own
//! temporary: bias, QK-norm (`pow`, `mean`, `rsqrt`, two products), and `q·cos + rotate_half(q)·sin`.

use super::{NormBackward, NormForward, Rotation, Shape};
use crate::passes::{Row, add, add_column_sums, row_sums, rows, temporary_rows};

/// The query heads or the key heads of a packed row. A temporary has them one after another, token by token.
#[derive(Clone, Copy)]
struct Side {
    first_head: usize,
    heads: usize,
    shape: Shape,
}

impl Side {
    fn both(shape: Shape) -> [Side; 2] {
        [
            Side { first_head: 0, heads: shape.heads, shape },
            Side { first_head: shape.heads, heads: shape.kv_heads, shape },
        ]
    }

    /// A temporary of which `f(t, h, row)` writes head `h` of token `t`.
    fn temporary(self, f: impl Fn(usize, usize, &mut Row) + Sync) -> Vec<f32> {
        temporary_rows(
            self.shape.tokens,
            self.heads * self.shape.head_dim,
            #[inline(always)]
            |t, row| {
                for h in 0..self.heads {
                    f(t, h, row);
                }
            },
        )
    }

    /// Head `h` of token `t` in a temporary.
    #[inline(always)]
    fn own(self, data: &[f32], t: usize, h: usize) -> &[f32] {
        &data[(t * self.heads + h) * self.shape.head_dim..][..self.shape.head_dim]
    }

    /// The same in a matrix with rows of `width` elements, queries first, then keys.
    #[inline(always)]
    fn of(self, matrix: &[f32], width: usize, t: usize, h: usize) -> &[f32] {
        &matrix[t * width + (self.first_head + h) * self.shape.head_dim..][..self.shape.head_dim]
    }

    /// Its `r`.
    #[inline(always)]
    fn rstd(self, rstd: &[f32], t: usize, h: usize) -> f32 {
        rstd[t * self.shape.rotated_heads() + self.first_head + h]
    }

    /// Writes every head of this side: `f(t, h, head)`.
    fn write(self, packed_TQ: &mut [f32], f: impl Fn(usize, usize, &mut [f32]) + Sync) {
        let (k, n) = (self.shape.head_dim, self.heads);
        rows(
            packed_TQ,
            self.shape.packed(),
            #[inline(always)]
            |t, row| {
                for (h, head) in row[self.first_head * k..][..n * k].chunks_exact_mut(k).enumerate() {
                    f(t, h, head);
                }
            },
        );
    }

    /// Writes the element-wise sum of two temporaries.
    fn write_sum(self, packed_TQ: &mut [f32], a: &[f32], b: &[f32]) {
        self.write(
            packed_TQ,
            #[inline(always)]
            |t, h, head| {
                for ((x, &a), &b) in head.iter_mut().zip(self.own(a, t, h)).zip(self.own(b, t, h)) {
                    *x = a + b;
                }
            },
        );
    }

    /// Rotates in place: `x·cos + rotate_half(x)·sin`, or its transpose with `sign = -1`.
    fn rotate(self, packed_TQ: &mut [f32], rotation: Rotation, sign: f32) {
        let (half, q) = (self.shape.head_dim / 2, self.shape.packed());
        let angle = |t: usize| rotation.tables.row(rotation.positions[t]);
        let rotated = self.temporary(
            #[inline(always)]
            |t, h, row| {
                let (first, second) = self.of(packed_TQ, q, t, h).split_at(half);
                row.extend(second.iter().map(move |&x| -sign * x));
                row.extend(first.iter().map(move |&x| sign * x));
            },
        );
        let by_cos = self.temporary(
            #[inline(always)]
            |t, h, row| {
                for x in self.of(packed_TQ, q, t, h).chunks_exact(half) {
                    row.extend(x.iter().zip(angle(t).0).map(|(&x, &c)| x * c));
                }
            },
        );
        let by_sin = self.temporary(
            #[inline(always)]
            |t, h, row| {
                for x in self.own(&rotated, t, h).chunks_exact(half) {
                    row.extend(x.iter().zip(angle(t).1).map(|(&x, &s)| x * s));
                }
            },
        );
        self.write_sum(packed_TQ, &by_cos, &by_sin);
    }

    fn norm(self, packed_TQ: &mut [f32], rstd: &mut [f32], w_K: &[f32], eps: f32) {
        let (k, q, all) = (self.shape.head_dim, self.shape.packed(), self.shape.rotated_heads());
        let square = self.temporary(
            #[inline(always)]
            |t, h, row| row.extend(self.of(packed_TQ, q, t, h).iter().map(|&x| x * x)),
        );
        let mut sums = vec![0.0; self.shape.tokens * self.heads];
        row_sums(&mut sums, &square, k);
        for (i, sum) in sums.into_iter().enumerate() {
            let at = i / self.heads * all + self.first_head + i % self.heads;
            rstd[at] = 1.0 / (sum / k as f32 + eps).sqrt();
        }
        let normed = self.temporary(
            #[inline(always)]
            |t, h, row| {
                let r = self.rstd(rstd, t, h);
                row.extend(self.of(packed_TQ, q, t, h).iter().map(move |&x| x * r));
            },
        );
        self.write(
            packed_TQ,
            #[inline(always)]
            |t, h, head| {
                for ((x, &n), &w) in head.iter_mut().zip(self.own(&normed, t, h)).zip(w_K) {
                    *x = n * w;
                }
            },
        );
    }

    fn norm_backward(
        self,
        dpacked_TQ: &mut [f32],
        pre_norm: &[f32],
        rstd: &[f32],
        w_K: &[f32],
        dw_K: Option<&mut [f32]>,
    ) {
        let (k, q, saved) = (self.shape.head_dim, self.shape.packed(), self.shape.rotated());
        if let Some(dw) = dw_K {
            let product = self.temporary(
                #[inline(always)]
                |t, h, row| {
                    let (r, x) = (self.rstd(rstd, t, h), self.of(pre_norm, saved, t, h));
                    let dy = self.of(dpacked_TQ, q, t, h);
                    row.extend(dy.iter().zip(x).map(move |(&dy, &x)| dy * (x * r)));
                },
            );
            add_column_sums(dw, &product);
        }
        let dnormed = self.temporary(
            #[inline(always)]
            |t, h, row| row.extend(self.of(dpacked_TQ, q, t, h).iter().zip(w_K).map(|(&dy, &w)| dy * w)),
        );
        let product = self.temporary(
            #[inline(always)]
            |t, h, row| {
                let x = self.of(pre_norm, saved, t, h);
                row.extend(self.own(&dnormed, t, h).iter().zip(x).map(|(&g, &x)| g * x));
            },
        );
        let mut drstd = vec![0.0; self.shape.tokens * self.heads];
        row_sums(&mut drstd, &product, k);
        let through_r = self.temporary(
            #[inline(always)]
            |t, h, row| {
                let r = self.rstd(rstd, t, h);
                // ½ of the root times 2 of the square
                let factor = -drstd[t * self.heads + h] * r * r * r / k as f32;
                row.extend(self.of(pre_norm, saved, t, h).iter().map(move |&x| x * factor));
            },
        );
        let straight = self.temporary(
            #[inline(always)]
            |t, h, row| {
                let r = self.rstd(rstd, t, h);
                row.extend(self.own(&dnormed, t, h).iter().map(move |&g| g * r));
            },
        );
        self.write_sum(dpacked_TQ, &straight, &through_r);
    }
}

pub(super) fn forward(
    qkv_TQ: &mut [f32],
    bias_Q: Option<&[f32]>,
    norm: Option<NormForward>,
    rotation: Rotation,
    shape: Shape,
) {
    let (q, saved) = (shape.packed(), shape.rotated());
    if let Some(bias) = bias_Q {
        rows(
            qkv_TQ,
            q,
            #[inline(always)]
            |_, row| add(row, bias),
        );
    }
    let sides = Side::both(shape);
    if let Some(NormForward { q_weight_K, k_weight_K, eps, pre_norm, rstd }) = norm {
        rows(pre_norm, saved, |t, out| out.copy_from_slice(&qkv_TQ[t * q..][..saved]));
        for (side, w) in sides.into_iter().zip([q_weight_K, k_weight_K]) {
            side.norm(qkv_TQ, rstd, w, eps);
        }
    }
    sides.into_iter().for_each(|side| side.rotate(qkv_TQ, rotation, 1.0));
}

pub(super) fn backward(
    dqkv_TQ: &mut [f32],
    dbias_Q: Option<&mut [f32]>,
    norm: Option<NormBackward>,
    rotation: Rotation,
    shape: Shape,
) {
    let sides = Side::both(shape);
    sides.into_iter().for_each(|side| side.rotate(dqkv_TQ, rotation, -1.0));
    if let Some(NormBackward { q_weight_K, k_weight_K, pre_norm, rstd, dq_weight_K, dk_weight_K }) = norm {
        let operands = [(q_weight_K, dq_weight_K), (k_weight_K, dk_weight_K)];
        for (side, (w, dw)) in sides.into_iter().zip(operands) {
            side.norm_backward(dqkv_TQ, pre_norm, rstd, w, dw);
        }
    }
    if let Some(dbias) = dbias_Q {
        add_column_sums(dbias, dqkv_TQ);
    }
}
