//! The replay: from the same weights, on the same batches, the reference has the same losses and goes the same way.

use chronibench_protocol::audit::{Replay, TensorAgreement, TensorUpdate};

use super::{Audit, Audited, Check, Outcome, update::PARTLY};
use crate::judge::some;

/// What two honest trainings differ by.
struct Tolerance {
    /// Relative, of a loss.
    loss: f64,
    /// Relative, of a gradient norm.
    grad_norm: f64,
    /// Least cosine of the first updates, of the whole ways.
    cosine: (f64, f64),
    /// Largest relative difference of the ways' lengths.
    length: f64,
}

/// f32 throughout: sums in another order. Two programs on one model of 4 million parameters differ by 3e-7 in the loss, and by
/// 1e-6 in the cosine.
const FINE: Tolerance = Tolerance { loss: 2e-5, grad_norm: 1e-3, cosine: (0.998, 0.998), length: 0.005 };

/// bf16 somewhere: signs of small gradients differ.
const COARSE: Tolerance = Tolerance { loss: 1e-2, grad_norm: 0.1, cosine: (0.3, 0.3), length: 0.4 };

pub(super) fn check(t: &Audited<'_>) -> Option<Check> {
    let replay = t.found.replay.as_ref()?;
    let tolerance = if t.fine { FINE } else { COARSE };
    let mut wrong = Vec::new();
    let loss = series(t, replay, &tolerance, &mut wrong)?;
    // In f32 both round alike.
    let lost = |u: &TensorUpdate| u.too_coarse > PARTLY && !t.fine;
    let coarse = |name: &str| t.found.updates.iter().any(|u| u.name == name && lost(u));
    let judged: Vec<&TensorAgreement> = replay.tensors.iter().filter(|a| !coarse(&a.name)).collect();
    directions(&judged, &tolerance, t.stalls, &mut wrong);
    let least = judged.iter().filter_map(|a| a.cosine).fold(f64::NAN, f64::min);
    let mut figure = match t.stalls {
        false => format!("losses within {loss:.0e} of {}", replay.reference),
        true => format!(
            "first loss within {loss:.0e} of {}, whose weights keep what bf16 rounds away",
            replay.reference
        ),
    };
    if least.is_finite() {
        figure += &format!(", updates' cosine ≥ {least:.4}");
    }
    Some(match wrong.is_empty() {
        true => Check::new(Audit::Replay, Outcome::Held, figure),
        false => Check::new(Audit::Replay, Outcome::Failed, wrong.join("; ")),
    })
}

/// The replay shows that a tensor went where the reference's went, or stood still like it.
pub(super) fn equal(replay: &Replay, name: &str) -> bool {
    let same = |cosine: Option<f64>, ratio: Option<f64>, least: f64| match (cosine, ratio) {
        (None, None) => true,
        (Some(c), Some(r)) => c >= least && (r - 1.0).abs() <= FINE.length,
        _ => false,
    };
    replay.tensors.iter().find(|a| a.name == name).is_some_and(|a| {
        same(a.first_cosine, a.first_ratio, FINE.cosine.0) && same(a.cosine, a.ratio, FINE.cosine.1)
    })
}

/// The largest relative difference of a loss; nothing without a common step.
fn series(t: &Audited<'_>, replay: &Replay, tolerance: &Tolerance, wrong: &mut Vec<String>) -> Option<f64> {
    // A NaN is as far off as can be.
    let gap = |a: f64, b: f64| match (a - b).abs() / b.abs().max(f64::MIN_POSITIVE) {
        gap if gap.is_nan() => f64::MAX,
        gap => gap,
    };
    let mut largest: Option<f64> = None;
    let mut loss_told = false;
    let mut norm_told = false;
    // Where most updates are lost, weights are the reference's before the first one alone.
    let steps = if t.stalls { 1 } else { usize::MAX };
    for s in t.log.steps.iter().map(|s| &s.event).take(steps) {
        let Some(&loss) = replay.losses.get(s.step as usize) else { continue };
        let off = gap(s.loss, loss);
        largest = Some(largest.unwrap_or(0.0).max(off));
        if off > tolerance.loss && !std::mem::replace(&mut loss_told, true) {
            wrong.push(format!(
                "expected the reference's loss {loss:.6} at step {}, saw {:.6}",
                s.step, s.loss
            ));
        }
        let norm = replay.grad_norms.get(s.step as usize);
        if let Some(&norm) = norm.filter(|n| gap(s.grad_norm, **n) > tolerance.grad_norm)
            && !std::mem::replace(&mut norm_told, true)
        {
            let (step, seen) = (s.step, s.grad_norm);
            wrong.push(format!(
                "expected the reference's gradient norm {norm:.5} at step {step}, saw {seen:.5}"
            ));
        }
    }
    largest
}

/// Where most updates are lost, those that are kept go on in the first direction and farther than the reference's, whose other
/// weights take their share (measured after four steps of Unsloth: up to 1.5 times): lengths are the first update's alone.
fn directions(tensors: &[&TensorAgreement], tolerance: &Tolerance, stalls: bool, wrong: &mut Vec<String>) {
    let mut tell = |what: &str, value: fn(&TensorAgreement) -> Option<f64>, ok: &dyn Fn(f64) -> bool| {
        let bad = tensors.iter().filter_map(|a| Some((a, value(a).filter(|v| !ok(*v))?)));
        let names: Vec<String> = bad.map(|(a, v)| format!("{} ({v:.3})", a.name)).collect();
        if !names.is_empty() {
            wrong.push(format!("expected {what}, saw others in {}", some(&names)));
        }
    };
    let length = |v: f64| (v - 1.0).abs() <= tolerance.length;
    tell("first updates in the reference's direction", |a| a.first_cosine, &|v| v >= tolerance.cosine.0);
    tell("first updates as long as the reference's", |a| a.first_ratio, &length);
    tell("ways in the reference's direction", |a| a.cosine, &|v| v >= tolerance.cosine.1);
    tell("ways as long as the reference's", |a| a.ratio, &|v| stalls || length(v));
}
