//! Attention of new tokens of one document to themselves and to those before them, whose keys and values were kept (the KV cache of
//! generation).
//!
//! `kv` has a row `[k: G·K | v: G·K]` for each token of the document so far, the new ones included; it is the end of their rows of
//! `qkv_TQ`. Forward only, f32; the equations are those of [`super`]. Results do not depend on the number of threads.

use rayon::prelude::*;

use super::Shape;

/// Rows of `kv` for packed rows, put behind those that are there.
pub fn append(qkv_TQ: &[f32], shape: Shape, kv: &mut Vec<f32>) {
    for row in qkv_TQ.chunks_exact(shape.packed()) {
        kv.extend_from_slice(&row[shape.out()..]);
    }
}

/// `out_T` (`T×H·K`, overwritten) of the last `T` tokens of `kv`, whose packed rows are `qkv_TQ`.
///
/// # Panics
/// When a length disagrees with `shape`, or `kv` has fewer rows than there are new tokens.
pub fn forward(qkv_TQ: &[f32], kv: &[f32], shape: Shape, out_T: &mut [f32]) {
    let width = shape.packed() - shape.out();
    let (new, all) = (qkv_TQ.len() / shape.packed(), kv.len() / width);
    assert_eq!((qkv_TQ.len(), kv.len()), (new * shape.packed(), all * width), "qkv_TQ and kv");
    assert_eq!(out_T.len(), new * shape.out(), "out_T");
    assert!(all >= new, "{all} rows of kv, {new} new tokens");
    let k = shape.head_dim;
    out_T.par_chunks_mut(k).enumerate().for_each_init(Vec::new, |scores, (n, out)| {
        let (token, head) = (n / shape.heads, n % shape.heads);
        let q = &qkv_TQ[token * shape.packed() + head * k..][..k];
        let g = head / shape.group();
        let seen = kv.chunks_exact(width).take(all - new + token + 1);
        scores.clear();
        scores.extend(seen.clone().map(|row| shape.scale() * dot(q, &row[g * k..][..k])));
        let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        scores.iter_mut().for_each(|s| *s = (*s - max).exp());
        let sum: f32 = scores.iter().sum();
        out.fill(0.0);
        for (p, row) in scores.iter().zip(seen) {
            let v = &row[(shape.kv_heads + g) * k..][..k];
            out.iter_mut().zip(v).for_each(|(o, v)| *o += p / sum * v);
        }
    });
}

/// In eight sums, which the compiler keeps in one register.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((a8, a_rest), (b8, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut sums = [0.0f32; 8];
    for (a, b) in a8.iter().zip(b8) {
        (0..8).for_each(|i| sums[i] += a[i] * b[i]);
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Layout, forward as whole},
        *,
    };
    use crate::{Variant, cases::values};

    /// In pieces of any size the outcome is that of the document at once.
    #[test]
    fn pieces_are_the_whole() {
        for (heads, kv_heads, head_dim) in [(4, 2, 16), (3, 3, 6), (6, 1, 10)] {
            let shape = Shape { heads, kv_heads, head_dim };
            let tokens = 37;
            let qkv = values(7, tokens * shape.packed());
            let cu = [0, tokens as u32];
            let layout = Layout { cu_seqlens: &cu, rows: 1, row_slots: tokens };
            let (mut expected, mut lse) = (vec![0.0; tokens * shape.out()], vec![0.0; tokens * heads]);
            whole(Variant::Fused, &qkv, layout, shape, &mut expected, &mut lse, None);
            for piece in [1, 5, 37] {
                let (mut kv, mut got) = (Vec::new(), vec![f32::NAN; tokens * shape.out()]);
                let parts = qkv.chunks(piece * shape.packed()).zip(got.chunks_mut(piece * shape.out()));
                for (new, out) in parts {
                    append(new, shape, &mut kv);
                    forward(new, &kv, shape, out);
                }
                for (a, b) in got.iter().zip(&expected) {
                    // Sums of 37 terms in another order.
                    assert!((a - b).abs() <= 2e-6 * (1.0 + b.abs()), "{shape:?} by {piece}: {a} {b}");
                }
            }
        }
    }
}
