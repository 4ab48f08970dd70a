//! Reproducible operands for tests and benches, and what a bench says of its work.

use rayon::prelude::*;

/// `len` values, uniform in [−1, 1), that depend on `seed` and their index alone (SplitMix64).
pub fn values(seed: u64, len: usize) -> Vec<f32> {
    let value = |i: u64| {
        let mut z = seed
            .wrapping_mul(0xd134_2543_de82_ef95)
            .wrapping_add((i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        (z >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len as u64).map(value).collect()
}

/// `len` standard normal values that depend on `seed` and their index alone (Box and Muller, 1958).
pub fn normals(seed: u64, len: usize) -> Vec<f32> {
    let uniform = values(seed, 2 * len);
    let pair = |i: usize| {
        // (0, 1] and [−π, π).
        let radius = (-2.0 * (1.0 - (uniform[2 * i] + 1.0) / 2.0).max(f32::MIN_POSITIVE).ln()).sqrt();
        radius * (std::f32::consts::PI * uniform[2 * i + 1]).cos()
    };
    (0..len).into_par_iter().map(pair).collect()
}

/// What one operation does at one shape, whatever computes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Operation, e.g. `rmsnorm_backward`.
    pub op: &'static str,
    /// Shape in words, e.g. `16384x896`.
    pub case: String,
    /// The same by name, e.g. tokens and hidden.
    pub dims: Vec<(&'static str, usize)>,
    /// Lengths of the documents, where the operation sees them.
    pub documents: Vec<u32>,
    /// Fewest bytes that it reads and writes.
    pub bytes: u64,
    /// Operations outside of memory access, 0 where they do not matter.
    pub flops: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normals_have_mean_0_and_deviation_1() {
        let v = normals(5, 100_000);
        let mean = v.iter().map(|x| f64::from(*x)).sum::<f64>() / v.len() as f64;
        let square = v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / v.len() as f64;
        assert!(mean.abs() < 0.015 && (square - 1.0).abs() < 0.03, "{mean} {square}");
        assert!(v.iter().all(|x| x.is_finite()));
    }
}
