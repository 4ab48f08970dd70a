//! Events complete and in order.

use chronibench_protocol::{
    event::Phase,
    record::TrialHeader,
    spec::{Measure, PROTOCOL},
};

use super::Reason;
use crate::trial::{Kind, TrialLog};

pub(super) fn check(log: &TrialLog, header: &TrialHeader, out: &mut Vec<Reason>) {
    let measure = &header.spec.to_run();
    if let Some(hello) = log.hello.as_ref().filter(|h| h.event.protocol != PROTOCOL) {
        out.push(Reason::Protocol { expected: PROTOCOL.into(), seen: hello.event.protocol.clone() });
    }
    let total = measure.total_steps();
    let done = log.done.as_ref().map_or(0, |d| d.event.steps);
    let mut counts_right = true;
    if log.steps.len() != total as usize || done != total {
        out.push(Reason::StepCount { expected: total, seen: log.steps.len(), done });
        counts_right = false;
    }
    let windows = measure.timed_steps / measure.window_steps.max(1);
    if log.windows.len() != windows as usize {
        out.push(Reason::WindowCount { expected: windows, seen: log.windows.len() });
        counts_right = false;
    }
    // With wrong counts the order is wrong by necessity; saying so twice helps nobody.
    if counts_right {
        out.extend(first_disorder(&expected_order(measure), &log.order));
    }
    out.extend(log.steps.iter().map(|s| &s.event).find_map(|s| {
        let expected = if s.step < measure.untimed_steps { Phase::Untimed } else { Phase::Timed };
        (s.phase != expected).then_some(Reason::StepPhase { step: s.step, expected, seen: s.phase })
    }));
}

fn expected_order(measure: &Measure) -> Vec<Kind> {
    let mut order = vec![Kind::Hello, Kind::Ready];
    let per_window = measure.window_steps.max(1);
    for step in 0..measure.total_steps() {
        order.push(Kind::Step(step));
        let timed = (step + 1).saturating_sub(measure.untimed_steps);
        if timed > 0 && timed.is_multiple_of(per_window) {
            order.push(Kind::Window(timed / per_window - 1));
        }
    }
    order.push(Kind::Done);
    order
}

fn first_disorder(expected: &[Kind], seen: &[Kind]) -> Option<Reason> {
    let name = |k: Option<&Kind>, none: &str| k.map_or(none.to_string(), Kind::to_string);
    (0..expected.len().max(seen.len())).find(|&i| expected.get(i) != seen.get(i)).map(|i| Reason::Order {
        expected: name(expected.get(i), "no more events"),
        seen: name(seen.get(i), "no event"),
    })
}
