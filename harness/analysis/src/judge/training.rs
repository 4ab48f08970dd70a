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
