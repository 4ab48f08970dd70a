//! The equations in f64: the oracle of the tests.

use super::Hyper;

/// One update of one element: the new `(p, m, v)`.
pub fn update(p: f64, g: f64, m: f64, v: f64, hyper: Hyper, grad_scale: f64) -> (f64, f64, f64) {
    let [lr, beta1, beta2, eps, decay] =
        [hyper.lr, hyper.beta1, hyper.beta2, hyper.eps, hyper.weight_decay].map(f64::from);
    let (g, t) = (g * grad_scale, hyper.step as i32);
    let m = beta1 * m + (1.0 - beta1) * g;
    let v = beta2 * v + (1.0 - beta2) * g * g;
    let (m_hat, v_hat) = (m / (1.0 - beta1.powi(t)), v / (1.0 - beta2.powi(t)));
    (p - lr * (m_hat / (v_hat.sqrt() + eps) + decay * p), m, v)
}
