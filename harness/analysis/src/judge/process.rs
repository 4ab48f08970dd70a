//! How the process ended.

use chronibench_protocol::record::Exit;

use super::{Reason, faults};
use crate::trial::TrialLog;

/// The gravest reason why the trial did not finish, if it did not, and any garbage it wrote.
pub(super) fn check(log: &TrialLog) -> Vec<Reason> {
    let Some(header) = &log.header else {
        return vec![Reason::NoHeader];
    };
    let mut reasons: Vec<Reason> = end(log, header.spec.to_run().total_steps()).into_iter().collect();
    if let Some(first) = log.garbage.first() {
        reasons.push(Reason::Garbage { lines: log.garbage.len(), first: first.clone() });
    }
    reasons
}

fn end(log: &TrialLog, expected: u32) -> Option<Reason> {
    let Some(exit) = &log.exit else {
        return Some(Reason::NoExit);
    };
    let steps = log.steps.len();
    if let Some(after_s) = exit.timed_out_after_s {
        return Some(Reason::TimedOut { after_s, steps, expected });
    }
    if let Some(why) = &exit.ended_for {
        return Some(Reason::Ended { why: why.clone(), steps });
    }
    if let Some(how) = faults::out_of_memory(log) {
        return Some(Reason::OutOfMemory { how, steps, peak: faults::peak(log) });
    }
    // The arm's own words say more than its exit code.
    if let Some(e) = &log.error {
        let e = e.event.clone();
        return Some(Reason::ArmError { what: e.what, at: e.at, hint: e.hint });
    }
    if exit.code != Some(0) {
        return Some(Reason::Crashed { how: how(exit), steps, stderr: last_line(exit) });
    }
    if log.done.is_none() {
        let last = log.order.last().map_or("no event".into(), |k| k.to_string());
        return Some(Reason::NoDone { last });
    }
    None
}

fn how(exit: &Exit) -> String {
    match (exit.signal, exit.code) {
        (Some(signal), _) => format!("signal {signal}"),
        (None, Some(code)) => format!("exit code {code}"),
        (None, None) => "no exit code".into(),
    }
}

fn last_line(exit: &Exit) -> String {
    exit.stderr_tail.lines().rfind(|l| !l.trim().is_empty()).unwrap_or("(empty)").trim().into()
}
