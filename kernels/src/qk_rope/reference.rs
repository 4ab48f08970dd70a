//! The oracle: the forward equation in f64, as written. Gradients are checked by finite differences of it.

use super::Shape;

/// QK-norm weights of queries and keys, and eps.
pub type Norm<'a> = (&'a [f64], &'a [f64], f64);

/// Bias, norm and rotation of a copy of `qkv_TQ`.
pub fn forward(
    qkv_TQ: &[f64],
    bias_Q: Option<&[f64]>,
    norm: Option<Norm>,
    inverse_frequencies: &[f64],
    positions: &[u32],
    shape: Shape,
) -> Vec<f64> {
    let (k, half) = (shape.head_dim, shape.head_dim / 2);
    let mut out = qkv_TQ.to_vec();
    for (row, &p) in out.chunks_mut(shape.packed()).zip(positions) {
        if let Some(bias) = bias_Q {
            row.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
        }
        for h in 0..shape.rotated_heads() {
            let u = &mut row[h * k..][..k];
            if let Some((q_weight, k_weight, eps)) = norm {
                let w = if h < shape.heads { q_weight } else { k_weight };
                let r = 1.0 / (u.iter().map(|x| x * x).sum::<f64>() / k as f64 + eps).sqrt();
                u.iter_mut().zip(w).for_each(|(x, w)| *x *= r * w);
            }
            for i in 0..half {
                let (sin, cos) = (f64::from(p) * inverse_frequencies[i]).sin_cos();
                (u[i], u[half + i]) = (u[i] * cos - u[half + i] * sin, u[half + i] * cos + u[i] * sin);
            }
        }
    }
    out
}
