//! The oracle: the forward equation in f64, as written. Gradients are checked by finite differences of it.

use super::{Layout, Shape};

/// `(out_T, lse_HT)` of `qkv_TQ`.
pub fn forward(qkv_TQ: &[f64], layout: Layout, shape: Shape) -> (Vec<f64>, Vec<f64>) {
    let (k, q, tokens) = (shape.head_dim, shape.packed(), layout.tokens());
    let (mut out, mut lse) = (vec![0.0; tokens * shape.out()], vec![0.0; tokens * shape.heads]);
    let columns = |t: usize, offset: usize| &qkv_TQ[t * q + offset..][..k];
    for window in layout.cu_seqlens.windows(2) {
        let (start, end) = (window[0] as usize, window[1] as usize);
        for (h, i) in (0..shape.heads).flat_map(|h| (start..end).map(move |i| (h, i))) {
            let g = h * shape.kv_heads / shape.heads;
            let score = |j: usize| -> f64 {
                let key = columns(j, (shape.heads + g) * k);
                columns(i, h * k).iter().zip(key).map(|(a, b)| a * b).sum::<f64>() / (k as f64).sqrt()
            };
            let scores: Vec<f64> = (start..=i).map(score).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            lse[h * tokens + i] = max + sum.ln();
            for (j, s) in (start..=i).zip(&scores) {
                let value = columns(j, (shape.heads + shape.kv_heads + g) * k);
                let out = &mut out[i * shape.out() + h * k..][..k];
                out.iter_mut().zip(value).for_each(|(o, v)| *o += (s - max).exp() / sum * v);
            }
        }
    }
    (out, lse)
}
