//! The oracle: the equations in f64, as written. Gradients of the kernels are checked by finite differences of the forward.

use super::Shape;

/// `(y_TD, rstd_T)` of `x_TD`.
pub fn forward(x_TD: &[f64], weight_D: &[f64], eps: f64, shape: Shape) -> (Vec<f64>, Vec<f64>) {
    let (mut y, mut rstd) = (Vec::new(), Vec::new());
    for x in x_TD.chunks(shape.hidden) {
        let r = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / shape.hidden as f64 + eps).sqrt();
        y.extend(x.iter().zip(weight_D).map(|(x, w)| x * r * w));
        rstd.push(r);
    }
    (y, rstd)
}

/// `dx_TD` of `dy_TD`, with what the forward saved.
pub fn backward(dy_TD: &[f64], x_TD: &[f64], rstd_T: &[f64], weight_D: &[f64], shape: Shape) -> Vec<f64> {
    let d = shape.hidden;
    let rows = dy_TD.chunks(d).zip(x_TD.chunks(d)).zip(rstd_T);
    let row = |((dy, x), r): ((&[f64], &[f64]), &f64)| -> Vec<f64> {
        let dot: f64 = (0..d).map(|j| dy[j] * weight_D[j] * x[j]).sum();
        (0..d).map(|j| r * dy[j] * weight_D[j] - x[j] * r.powi(3) / d as f64 * dot).collect()
    };
    rows.flat_map(row).collect()
}
