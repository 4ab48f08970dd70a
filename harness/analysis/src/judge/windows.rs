//! The timed region: the windows hold exactly the timed steps, and nothing hides between them.

use chronibench_protocol::{event::Window, record::TrialHeader};

use super::Reason;
use crate::{format::percent, trial::TrialLog};

/// Share of the timed region that may lie between windows: writing events, nothing more.
pub const MAX_GAP_SHARE: f64 = 0.02;

/// Seconds of gaps in a trial that are never held against an arm: on a busy machine it may lose the processor there.
pub const GAP_GRACE_S: f64 = 0.02;

/// Relative disagreement of the two clocks that is let pass.
pub const CLOCK_TOLERANCE: f64 = 0.05;

/// Absolute disagreement that is let pass, seconds: five times that after which the harness looks at the event file again. Of 440
/// published trials none is off by more than 0.02.
pub const CLOCK_GRACE_S: f64 = 0.1;

/// A timed region shorter than this many times the grace is not held to 5 %: how much its clock may be off is told.
const GRACES: f64 = 20.0;

/// A step may begin before its window or end behind it by this much, nanoseconds: two clock reads are not one.
const EDGE_NS: u64 = 1_000_000;

pub(super) fn check(log: &TrialLog, header: &TrialHeader, out: &mut Vec<Reason>) {
    let measure = &header.spec.to_run();
    let wrong_steps = log.windows.iter().enumerate().find_map(|(i, w)| {
        let first = measure.untimed_steps + i as u32 * measure.window_steps;
        let expected = (first, first + measure.window_steps.max(1) - 1);
        let seen = (w.event.first_step, w.event.last_step);
        (seen != expected).then_some(Reason::WindowSteps { index: w.event.index, expected, seen })
    });
    let wrong_times = wrong_times(log);
    let sound = wrong_steps.is_none() && wrong_times.is_none();
    out.extend(wrong_steps);
    out.extend(wrong_times);
    if sound {
        out.extend(gaps(log));
        out.extend(clocks(log));
    }
}

fn wrong_times(log: &TrialLog) -> Option<Reason> {
    let mut previous_end = 0;
    for w in log.windows.iter().map(|w| &w.event) {
        let what = if w.end_ns <= w.start_ns {
            Some(format!("it end {} ns after its start", w.end_ns as i128 - w.start_ns as i128))
        } else if w.start_ns < previous_end {
            Some(format!("it start {} ns before its predecessor's end", previous_end - w.start_ns))
        } else {
            step_outside(log, w)
        };
        if let Some(what) = what {
            return Some(Reason::WindowTimes { index: w.index, what });
        }
        previous_end = w.end_ns;
    }
    None
}

/// A step of the window that runs outside its edges: work that the clock did not see.
fn step_outside(log: &TrialLog, w: &Window) -> Option<String> {
    let inside =
        log.steps.iter().map(|s| &s.event).filter(|s| (w.first_step..=w.last_step).contains(&s.step));
    inside
        .filter(|s| {
            s.start_ns.saturating_add(EDGE_NS) < w.start_ns || s.end_ns > w.end_ns.saturating_add(EDGE_NS)
        })
        .map(|s| {
            format!(
                "step {} run from {} to {} ns and the window from {} to {} ns",
                s.step, s.start_ns, s.end_ns, w.start_ns, w.end_ns
            )
        })
        .next()
}

fn gaps(log: &TrialLog) -> Option<Reason> {
    let (first, last) = (&log.windows.first()?.event, &log.windows.last()?.event);
    let span_s = seconds(first.start_ns, last.end_ns);
    let windows_s: f64 = log.windows.iter().map(|w| seconds(w.event.start_ns, w.event.end_ns)).sum();
    let allowed_s = MAX_GAP_SHARE * span_s + GAP_GRACE_S;
    (span_s - windows_s > allowed_s).then_some(Reason::TimeOutsideWindows { span_s, windows_s, allowed_s })
}

/// Compares the timed region on both clocks. One that was longer than the arm says hides work, as does one longer than the whole trial.
/// One that was shorter was told of late, and then nothing stands behind the arm's own clock.
fn clocks(log: &TrialLog) -> Option<Reason> {
    let (arm_s, harness_s) = timed(log)?;
    if (harness_s - arm_s).abs() > arm_s * CLOCK_TOLERANCE + CLOCK_GRACE_S {
        return Some(Reason::Clock { arm_s, harness_s });
    }
    let lived_s = seconds(0, log.windows.last()?.recv_ns);
    (arm_s > lived_s * (1.0 + CLOCK_TOLERANCE) + CLOCK_GRACE_S)
        .then_some(Reason::Clock { arm_s, harness_s: lived_s })
}

/// The timed region by the arm's clock and by the harness's, seconds.
fn timed(log: &TrialLog) -> Option<(f64, f64)> {
    let (first, last) = (&log.windows.first()?.event, log.windows.last()?);
    let untimed = log.steps.iter().take_while(|s| s.event.step < first.first_step).last();
    let (arm_start, harness_start) = match untimed {
        Some(s) => (s.event.end_ns, s.recv_ns),
        None => (first.start_ns, log.ready.as_ref()?.recv_ns),
    };
    Some((seconds(arm_start, last.event.end_ns), seconds(harness_start, last.recv_ns)))
}

/// In words, how far the arm's clock may be off unseen, where the timed region is too short for the harness's to say much.
pub(super) fn resolution(log: &TrialLog) -> Option<String> {
    let (arm_s, _) = timed(log)?;
    if arm_s >= GRACES * CLOCK_GRACE_S || clocks(log).is_some() {
        return None;
    }
    let unseen_s = arm_s * CLOCK_TOLERANCE + CLOCK_GRACE_S;
    Some(format!(
        "{arm_s:.2} s were timed, of which the arm's clock could be off by {unseen_s:.2} s ({}) unseen",
        percent(unseen_s / arm_s.max(f64::MIN_POSITIVE))
    ))
}

fn seconds(from: u64, to: u64) -> f64 {
    to.saturating_sub(from) as f64 * 1e-9
}
