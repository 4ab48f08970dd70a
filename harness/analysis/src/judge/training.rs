//! Every step trained: gradients are there, and the loss falls.

use chronibench_protocol::event::Step;

use super::Reason;
use crate::{
    stats::{LOSS_FALL_MIN_STEPS, LOSS_FALL_MIN_Z, loss_fall},
    trial::TrialLog,
};

pub(super) fn check(log: &TrialLog, out: &mut Vec<Reason>) {
    let failing = |fails: fn(&Step) -> bool| -> Vec<&Step> {
        log.steps.iter().map(|s| &s.event).filter(|s| fails(s)).collect()
    };
    let grads = failing(|s| !(s.grad_norm.is_finite() && s.grad_norm > 0.0));
    if let Some(s) = grads.first() {
        out.push(Reason::GradNorm { step: s.step, steps: grads.len(), seen: s.grad_norm });
    }
    out.extend(groups(log));
    let losses = failing(|s| !s.loss.is_finite());
    if let Some(s) = losses.first() {
        out.push(Reason::LossNotFinite { step: s.step, steps: losses.len(), seen: s.loss });
        return;
    }
    // The few steps of an audit say nothing of a fall; what they did to the loss is evaluated.
    if log.is_audit() {
        return;
    }
    match loss_fall(&log.losses()) {
        None => out.push(Reason::TooFewSteps { expected: LOSS_FALL_MIN_STEPS, seen: log.steps.len() }),
        Some(fall) if !fall.falls() => out.push(Reason::LossDoesNotFall {
            first: fall.first,
            last: fall.last,
            std_error: fall.std_error,
            min_z: LOSS_FALL_MIN_Z,
        }),
        Some(_) => {}
    }
}

/// Relative difference between the global norm and the root of the groups' squares that is let pass: sums in another order, in f32.
const NORMS: f64 = 1e-3;

/// The first step whose norms by group, where an arm reports them, do not fit the global one or its learning rates.
fn groups(log: &TrialLog) -> Option<Reason> {
    // LoRA's B is 0 at the start, and the gradient of A with it, until B has been moved once.
    let mut moved = false;
    for step in log.steps.iter().map(|s| &s.event) {
        let norms = &step.grad_norm_by_group;
        if !norms.is_empty()
            && let Some(what) = wrong(step, moved)
        {
            return Some(Reason::GroupNorms { step: step.step, what });
        }
        moved |= step.lr.values().any(|lr| *lr > 0.0);
    }
    None
}

fn wrong(step: &Step, moved: bool) -> Option<String> {
    let norms = &step.grad_norm_by_group;
    if !norms.keys().eq(step.lr.keys()) {
        let names = |keys: Vec<&String>| keys.into_iter().cloned().collect::<Vec<_>>().join(", ");
        let (seen, due) = (names(norms.keys().collect()), names(step.lr.keys().collect()));
        return Some(format!("norms of {seen} and learning rates of {due}"));
    }
    let waits = |name: &str| name == "lora_A" && !moved;
    let bad = norms.iter().find(|(name, n)| !(n.is_finite() && (**n > 0.0 || (waits(name) && **n == 0.0))));
    if let Some((name, norm)) = bad {
        return Some(format!("{norm} in {name}"));
    }
    let root = norms.values().map(|n| n * n).sum::<f64>().sqrt();
    let apart = (root - step.grad_norm).abs() > NORMS * step.grad_norm.abs();
    apart.then(|| format!("{root} of all groups and {} of all parameters", step.grad_norm))
}
