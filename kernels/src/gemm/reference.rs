//! The equation in f64: the oracle of the tests.

use super::Dims;

/// `α·A·B + β·C` of row-major, dense A (m × k), B (k × n) and C (m × n).
pub fn gemm(alpha: f64, a_MK: &[f64], b_KN: &[f64], beta: f64, c_MN: &[f64], dims: Dims) -> Vec<f64> {
    let Dims { m, n, k } = dims;
    let element = |i: usize, j: usize| -> f64 {
        let sum: f64 = (0..k).map(|l| a_MK[i * k + l] * b_KN[l * n + j]).sum();
        // β = 0 overwrites whatever C held.
        alpha * sum + if beta == 0.0 { 0.0 } else { beta * c_MN[i * n + j] }
    };
    (0..m * n).map(|e| element(e / n, e % n)).collect()
}
