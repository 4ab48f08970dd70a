//! Softmax statistics that can be combined in any order (Milakov and Gimelshein, "Online normalizer calculation for
//! softmax", arXiv 1805.02867, equation 4).

use crate::simd;

/// `max z` and `Σ exp(z − max z)` over some logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MaxSum {
    /// Largest logit; −∞ of none.
    pub max: f32,
    /// Sum of the exponentials of the logits less the largest; 0 of none.
    pub sum: f32,
}

impl MaxSum {
    /// Of no logits.
    pub const EMPTY: Self = Self { max: f32::NEG_INFINITY, sum: 0.0 };

    /// Of the logits of both.
    #[inline(always)]
    pub fn combine(self, other: Self) -> Self {
        let max = if other.max > self.max { other.max } else { self.max };
        // −∞ − (−∞) would be NaN, and a part without finite logits has a sum of 0 anyway.
        let part = |p: Self| if p.sum == 0.0 { 0.0 } else { p.sum * simd::exp(p.max - max) };
        Self { max, sum: part(self) + part(other) }
    }

    /// `ln Σ exp z`
    #[inline(always)]
    pub fn lse(self) -> f32 {
        self.max + self.sum.ln()
    }
}
