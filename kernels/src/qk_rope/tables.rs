//! Cosines and sines by position.

/// `cos(p·f)` and `sin(p·f)` for every position `p` and inverse frequency `f`, computed in f64 and stored in f32.
#[derive(Clone, Debug, PartialEq)]
pub struct Tables {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Tables {
    /// Tables of `positions` positions from `K/2` inverse frequencies, in radians per position. Scaled variants
    /// (Llama 3, linear, NTK) are other lists of frequencies.
    pub fn new(inverse_frequencies: &[f64], positions: usize) -> Self {
        let angles = || (0..positions).flat_map(|p| inverse_frequencies.iter().map(move |f| p as f64 * f));
        Self {
            half: inverse_frequencies.len(),
            cos: angles().map(|a| a.cos() as f32).collect(),
            sin: angles().map(|a| a.sin() as f32).collect(),
        }
    }

    /// The unscaled inverse frequencies `theta^(-2i/K)`, `i < K/2`.
    pub fn inverse_frequencies(theta: f64, head_dim: usize) -> Vec<f64> {
        (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64)).collect()
    }

    /// Number of frequencies, `K/2`.
    pub fn half(&self) -> usize {
        self.half
    }

    /// Number of positions.
    pub fn positions(&self) -> usize {
        self.cos.len() / self.half.max(1)
    }

    /// Every cosine, `[positions, K/2]`.
    pub fn cos(&self) -> &[f32] {
        &self.cos
    }

    /// Every sine, `[positions, K/2]`.
    pub fn sin(&self) -> &[f32] {
        &self.sin
    }

    /// `(cos, sin)` at `position`, `K/2` each.
    #[inline(always)]
    pub fn row(&self, position: u32) -> (&[f32], &[f32]) {
        let start = position as usize * self.half;
        (&self.cos[start..][..self.half], &self.sin[start..][..self.half])
    }
}
