//! AdamW with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2), and the squared norm of a
//! gradient that clipping needs.
//!
//! With `g' = grad_scale·g` and step `t` from 1:
//!
//! ```text
//! m ← β₁·m + (1 − β₁)·g'            v ← β₂·v + (1 − β₂)·g'²
//! p ← (1 − lr·wd)·p − lr/(1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)
//! ```
//!
//! * Shapes: one contiguous segment of parameters, `p`, `g`, `m` and `v` of the same length; f32. What every element shares
//!   is computed in f64 and rounded once, as PyTorch does, but from rates, decays and ε in f32 ([`Hyper`]), which PyTorch has in f64.
//! * `p`, `m` and `v` are updated in place. `g` is consumed: `clip_grad_norm_` scales it in place, the fused pass does not.
//! * Fused: one pass over the four arrays. Eager: the passes of `torch.optim.AdamW(foreach=True)` after
//!   `clip_grad_norm_`.
//! * Moments may be kept in [8 bits](codes): [`eight_bit::update`], fused alone.
//! * Deterministic for any number of threads.

pub mod bench;
pub mod cases;
pub mod codes;
pub mod cuda;
pub mod cuda_eager;
mod eager;
pub mod eight_bit;
mod fused;
pub mod reference;
#[cfg(test)]
mod tests;

use rayon::prelude::*;

use crate::{Variant, passes::vectorised, simd::LANES};

/// Elements of a task: its four arrays of f32 fill half of a 512 KiB L2 cache.
const TASK_ELEMENTS: usize = 16 * 1024;

/// Hyper-parameters of one update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyper {
    /// Learning rate.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the denominator.
    pub eps: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// Number of this update, from 1.
    pub step: u32,
}

/// The scalars that every element of an update shares.
#[derive(Clone, Copy, Debug)]
struct Factors {
    /// `1 − lr·wd`
    decay: f32,
    beta1: f32,
    /// `1 − β₁`
    one_minus_beta1: f32,
    beta2: f32,
    /// `1 − β₂`
    one_minus_beta2: f32,
    /// `lr/(1 − β₁ᵗ)`
    step_size: f32,
    /// `√(1 − β₂ᵗ)`
    bias_correction2_sqrt: f32,
    eps: f32,
}

impl Hyper {
    fn factors(&self) -> Factors {
        let [lr, beta1, beta2, decay] = [self.lr, self.beta1, self.beta2, self.weight_decay].map(f64::from);
        let t = f64::from(self.step);
        Factors {
            decay: (1.0 - lr * decay) as f32,
            beta1: self.beta1,
            one_minus_beta1: (1.0 - beta1) as f32,
            beta2: self.beta2,
            one_minus_beta2: (1.0 - beta2) as f32,
            step_size: (lr / (1.0 - beta1.powf(t))) as f32,
            bias_correction2_sqrt: (1.0 - beta2.powf(t)).sqrt() as f32,
            eps: self.eps,
        }
    }
}

impl Factors {
    /// One pass over an element, of a gradient that is scaled.
    #[inline(always)]
    fn element(&self, p: &mut f32, g: f32, m: &mut f32, v: &mut f32) {
        *m = self.beta1.mul_add(*m, self.one_minus_beta1 * g);
        *v = self.beta2.mul_add(*v, self.one_minus_beta2 * g * g);
        let denominator = v.sqrt() / self.bias_correction2_sqrt + self.eps;
        *p = self.decay.mul_add(*p, -(self.step_size * *m / denominator));
    }
}

/// A range of an arena: from the end of the group before it, or 0.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// Its end. A GPU wants a multiple of 8; the last group's is that of the arena.
    pub end: usize,
    /// Its hyper-parameters; groups differ in `lr` and `weight_decay` only.
    pub hyper: Hyper,
}

/// Updates one segment of parameters; `grad_scale` is the clipping factor, folded into the gradient.
///
/// # Panics
/// If the lengths differ or `hyper.step` is 0.
pub fn update(
    variant: Variant,
    p: &mut [f32],
    g: &mut [f32],
    m: &mut [f32],
    v: &mut [f32],
    hyper: Hyper,
    grad_scale: f32,
) {
    assert!(hyper.step > 0, "steps count from 1");
    assert!([g.len(), m.len(), v.len()] == [p.len(); 3], "the arrays of a segment differ in length");
    match variant {
        Variant::Fused => fused::update(p, g, m, v, hyper.factors(), grad_scale),
        Variant::Eager => eager::update(p, g, m, v, hyper.factors(), grad_scale),
    }
}

/// `Σ g²` in f64, over fixed chunks added in order.
///
/// Both variants make this one pass, as `torch.linalg.vector_norm` does.
pub fn norm_squared(variant: Variant, g: &[f32]) -> f64 {
    match variant {
        Variant::Fused | Variant::Eager => {
            let chunk = |g| {
                vectorised(
                    #[inline(always)]
                    || chunk_norm_squared(g),
                )
            };
            let partials: Vec<f64> = g.par_chunks(TASK_ELEMENTS).map(chunk).collect();
            partials.iter().sum()
        }
    }
}

#[inline(always)]
fn chunk_norm_squared(g: &[f32]) -> f64 {
    let (blocks, tail) = g.as_chunks::<LANES>();
    let mut acc = [0f64; LANES];
    for block in blocks {
        for (a, &g) in acc.iter_mut().zip(block) {
            *a += f64::from(g) * f64::from(g);
        }
    }
    for (a, &g) in acc.iter_mut().zip(tail) {
        *a += f64::from(g) * f64::from(g);
    }
    let mut sum = 0.0;
    for a in acc {
        sum += a;
    }
    sum
}
