//! DoRA's magnitudes (arXiv 2402.09353, section 4.1): each output of an adapted weight has a length `m` of its own,
//! `y_j = m_j/‖V_j‖ · (V·x)_j` with `V = W + s·B·A`.
//!
//! | array | shape | contents |
//! |---|---|---|
//! | `norms_N` | N | `‖V_j‖`, the length of a row |
//! | `gain_N` | N | `m_j/‖V_j‖`; 1 where there is no adapter |
//! | `z_TN` | T × N | `V·x`, before it is scaled |
//!
//! The lengths count as constants on the way back, as the paper proposes (section 4.3) and PEFT does:
//!
//! ```text
//! dm_j = Σ_t dy_tj·z_tj / ‖V_j‖     dz = gain ⊙ dy
//! ```
//!
//! * dtypes: f32, sums in f64. Deterministic for any number of threads.
//! * V is never formed: `‖V_j‖² = ‖W_j‖² + 2s·B_j·(A·W_jᵀ) + s²·B_j·(A·Aᵀ)·B_jᵀ`.
//! * One variant, for a processor alone: whatever the seam `lora` has.

use rayon::prelude::*;

use crate::gemm::linear_forward;

/// `‖W_j + s·B_j·A‖` of every row.
///
/// # Panics
/// If a length does not fit: `w` is N × D, `a` R × D, `b` N × R.
pub fn norms(w_ND: &[f32], a_RD: &[f32], b_NR: &[f32], scale: f32, inputs: usize, norms_N: &mut [f32]) {
    let (n, r) = (norms_N.len(), a_RD.len() / inputs);
    assert_eq!((w_ND.len(), b_NR.len()), (n * inputs, n * r), "w_ND, b_NR");
    let (mut wa_NR, mut aa_RR) = (vec![0.0; n * r], vec![0.0; r * r]);
    linear_forward(&mut wa_NR, w_ND, a_RD, n, r, inputs, 0.0);
    linear_forward(&mut aa_RR, a_RD, a_RD, r, r, inputs, 0.0);
    let s = f64::from(scale);
    norms_N.par_iter_mut().enumerate().with_min_len(64).for_each(|(j, norm)| {
        let (b, wa) = (&b_NR[j * r..][..r], &wa_NR[j * r..][..r]);
        let of_w = dot(&w_ND[j * inputs..][..inputs], &w_ND[j * inputs..][..inputs]);
        let of_b: f64 =
            b.iter().zip(aa_RR.chunks(r.max(1))).map(|(b_i, row)| f64::from(*b_i) * dot(row, b)).sum();
        *norm = (of_w + 2.0 * s * dot(b, wa) + s * s * of_b).max(0.0).sqrt() as f32;
    });
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// `y_tj *= gain_j`.
///
/// # Panics
/// If rows are not as long as `gain_N`.
pub fn scale(y_TN: &mut [f32], gain_N: &[f32]) {
    assert_eq!(y_TN.len() % gain_N.len(), 0, "y_TN");
    y_TN.par_chunks_mut(gain_N.len()).for_each(|row| row.iter_mut().zip(gain_N).for_each(|(y, g)| *y *= g));
}

/// `sums_j = Σ_t dy_tj·z_tj`, and then `z = gain ⊙ dy` in place.
///
/// # Panics
/// If a length does not fit.
pub fn backward(dy_TN: &[f32], z_TN: &mut [f32], gain_N: &[f32], sums_N: &mut [f64]) {
    let n = gain_N.len();
    assert_eq!((dy_TN.len(), sums_N.len()), (z_TN.len(), n), "dy_TN, sums_N");
    let z = &*z_TN;
    sums_N.par_chunks_mut(COLUMNS).enumerate().for_each(|(block, sums)| {
        let from = block * COLUMNS;
        sums.fill(0.0);
        for (dy, z) in dy_TN.chunks(n).zip(z.chunks(n)) {
            let products = dy[from..].iter().zip(&z[from..]).map(|(dy, z)| f64::from(*dy) * f64::from(*z));
            sums.iter_mut().zip(products).for_each(|(sum, product)| *sum += product);
        }
    });
    z_TN.par_chunks_mut(n).zip(dy_TN.par_chunks(n)).for_each(|(z, dy)| {
        z.iter_mut().zip(dy.iter().zip(gain_N)).for_each(|(z, (dy, g))| *z = g * dy);
    });
}

/// Columns that one task adds up.
const COLUMNS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cases::values, testing::assert_close};

    #[test]
    fn norms_are_those_of_the_merged_weight() {
        for (n, d, r, scale) in [(5, 7, 2, 1.5), (130, 33, 8, 0.25), (1, 1, 1, -2.0)] {
            let (w, a, b) = (values(1, n * d), values(2, r * d), values(3, n * r));
            let mut got = vec![f32::NAN; n];
            norms(&w, &a, &b, scale, d, &mut got);
            let want: Vec<f64> = (0..n)
                .map(|j| {
                    let v = |k: usize| -> f64 {
                        let update: f64 =
                            (0..r).map(|i| f64::from(b[j * r + i]) * f64::from(a[i * d + k])).sum();
                        f64::from(w[j * d + k]) + f64::from(scale) * update
                    };
                    (0..d).map(|k| v(k).powi(2)).sum::<f64>().sqrt()
                })
                .collect();
            assert_close(&format!("{n} x {d}"), &got, &want, 1e-5);
        }
    }

    /// Of `L = Σ c·gain(m)·z`, by differences in m and z: it is linear in both, so that any step is exact.
    #[test]
    fn gradients_are_those_of_the_equation() {
        let (t, n) = (9, 70);
        let (dy, z, gain) = (values(4, t * n), values(5, t * n), values(6, n));
        let (mut scaled, mut sums) = (z.clone(), vec![f64::NAN; n]);
        backward(&dy, &mut scaled, &gain, &mut sums);
        for j in 0..n {
            let column = |m: &[f32]| (0..t).map(|i| f64::from(m[i * n + j])).collect::<Vec<_>>();
            let want: f64 = column(&dy).iter().zip(column(&z)).map(|(dy, z)| dy * z).sum();
            assert!((sums[j] - want).abs() < 1e-12, "{j}: {} for {want}", sums[j]);
            assert!((0..t).all(|i| scaled[i * n + j] == gain[j] * dy[i * n + j]), "{j}");
        }
        let mut y = z.clone();
        scale(&mut y, &gain);
        assert!(y.iter().zip(&z).enumerate().all(|(i, (y, z))| *y == gain[i % n] * z));
    }
}
