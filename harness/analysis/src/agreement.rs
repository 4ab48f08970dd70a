//! Do two arms compute the same thing? Loss and gradient norm of the first step, on equal weights and batches.

use chronibench_protocol::event::Precision;
use serde::{Deserialize, Serialize};

use crate::trial::TrialLog;

/// Largest relative differences at the first step between arms that do the same work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Of the loss.
    pub loss: f64,
    /// Of the gradient norm before clipping.
    pub grad_norm: f64,
}

/// Both sides in f32: another order of sums moves a loss by 1e-7 and a gradient by some 1e-6 (measured against Transformers and
/// candle); a wrong mask, position or scale moves them by far more than this.
pub const F32: Tolerance = Tolerance { loss: 1e-4, grad_norm: 1e-3 };

/// bf16 on either side: a rounding is 2⁻⁹ of a value. Over thousands of loss tokens it averages out in the mean, but some programs keep
/// that mean itself in bf16. Gradients of a tensor are 1e-2 away from f32 in Transformers and here; their norm adds up over tensors, and
/// those that keep gradients in bf16 round it again.
pub const BF16: Tolerance = Tolerance { loss: 5e-3, grad_norm: 5e-2 };

/// The tolerance of a pair of arms, by the element type of their weights.
pub fn tolerance(a: &Precision, b: &Precision) -> Tolerance {
    if a.weights == "f32" && b.weights == "f32" { F32 } else { BF16 }
}

/// How far two cases lie apart on steps whose batches are the same.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossGap {
    /// Relative difference of the loss at the first step.
    pub first: f64,
    /// Largest relative difference of the loss at any step.
    pub max: f64,
    /// Relative difference of the gradient norm at the first step.
    pub grad_norm: f64,
}

/// The gap between two trials of one round; `None` when their first batches differ.
pub fn gap(a: &TrialLog, b: &TrialLog) -> Option<LossGap> {
    let relative = |x: f64, y: f64| if x == y { 0.0 } else { (x - y).abs() / x.abs().max(y.abs()) };
    let mut equal = a.steps.iter().zip(&b.steps).map(|(x, y)| (&x.event, &y.event));
    let (x, y) = equal.next().filter(|(x, y)| x.digest == y.digest)?;
    let (first, grad_norm) = (relative(x.loss, y.loss), relative(x.grad_norm, y.grad_norm));
    let later = equal.filter(|(x, y)| x.digest == y.digest).map(|(x, y)| relative(x.loss, y.loss));
    Some(LossGap { first, max: later.fold(first, f64::max), grad_norm })
}

/// What of a gap exceeds the tolerance, in words.
pub fn disagreements(gap: &LossGap, tolerance: Tolerance) -> Vec<String> {
    let each = [
        ("first losses", gap.first, tolerance.loss),
        ("first gradient norms", gap.grad_norm, tolerance.grad_norm),
    ];
    // Not-a-number agrees with nothing.
    let beyond = each.into_iter().filter(|(_, seen, allowed)| seen.is_nan() || seen > allowed);
    beyond
        .map(|(what, seen, allowed)| {
            format!(
                "expected the {what} to agree within {allowed} on equal weights and batches, saw a relative difference of {seen:.2e}"
            )
        })
        .collect()
}
