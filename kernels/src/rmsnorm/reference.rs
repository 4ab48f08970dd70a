//! The oracle: the forward equation in f64, as written. Gradients are checked by finite differences of it.

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
