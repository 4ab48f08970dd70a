//! The equation in f64: the oracle of the tests.

use super::{IGNORE_INDEX, Options, Shape};

/// Sum of the loss over the rows that have one, and their number.
pub fn forward(x_TD: &[f64], w_VD: &[f64], labels: &[i32], shape: Shape, opts: Options) -> (f64, u64) {
    let (d, v) = (shape.hidden, shape.vocab);
    let (smoothing, z_loss) = (f64::from(opts.label_smoothing), f64::from(opts.z_loss));
    let mut sums = (0.0, 0);
    for (x, &label) in x_TD.chunks_exact(d).zip(labels).filter(|(_, y)| **y != IGNORE_INDEX) {
        let z: Vec<f64> =
            w_VD.chunks_exact(d).map(|w| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>()).collect();
        let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lse = max + z.iter().map(|z| (z - max).exp()).sum::<f64>().ln();
        let mean = z.iter().sum::<f64>() / v as f64;
        let nll = lse - z[label as usize];
        sums.0 += (1.0 - smoothing) * nll + smoothing * (lse - mean) + z_loss * lse * lse;
        sums.1 += 1;
    }
    sums
}

/// `(lse − z_y, dz)` of a row of logits: its loss, and its gradient times `scale`, without smoothing and z-loss.
pub fn row(z_V: &[f64], label: usize, scale: f64) -> (f64, Vec<f64>) {
    let max = z_V.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let lse = max + z_V.iter().map(|z| (z - max).exp()).sum::<f64>().ln();
    let target = |j: usize| if j == label { 1.0 } else { 0.0 };
    let gradient = z_V.iter().enumerate().map(|(j, z)| scale * ((z - lse).exp() - target(j))).collect();
    (lse - z_V[label], gradient)
}
