//! Whether the trials of a folder are those that its scenario asks for: each at its place, begun again only as the rule of retries has
//! it, with the audit trial of its case, and none left out among the others.

use std::collections::BTreeMap;

use chronibench_analysis::{RunSummary, TrialLog, judge::faults::environment_fault};
use chronibench_protocol::{
    kernels::{KernelHeader, ResolvedKernels},
    record::{Case, Line, Resolved, TrialHeader},
};

use super::verify::Finding;

/// A trial as its first line names it.
pub(super) struct Named {
    /// Trial id.
    pub id: String,
    /// Where it is stored.
    at: String,
    /// Of a trial that is timed.
    position: Option<u32>,
    /// How often it was begun before.
    attempt: u32,
    /// A fault of the machine ended it.
    fault: bool,
    /// Its case; a trial of kernels has none.
    case: Option<String>,
}

impl Named {
    /// Of a trial of a scenario; `lines` are all of its.
    pub fn trial(at: &str, header: &TrialHeader, lines: &[Line]) -> Self {
        Self {
            id: header.spec.trial_id.clone(),
            at: at.into(),
            position: header.spec.audit.is_none().then_some(header.position),
            attempt: header.attempt,
            fault: environment_fault(&TrialLog::from_lines(lines.to_vec())).is_some(),
            case: Some(header.case.clone()),
        }
    }

    /// Of a trial of kernels, which is never begun again.
    pub fn kernels(at: &str, header: &KernelHeader) -> Self {
        Self {
            id: header.spec.trial_id.clone(),
            at: at.into(),
            position: Some(header.position),
            attempt: 0,
            fault: false,
            case: None,
        }
    }

    /// What the order calls it.
    fn name(&self) -> &str {
        self.case.as_deref().unwrap_or(&self.id)
    }

    fn is_audit(&self) -> bool {
        self.position.is_none()
    }
}

/// What a scenario asks for.
pub(super) struct Plan {
    order: Vec<Place>,
    retries: u32,
    audited: Vec<String>,
}

/// Who may stand at a place of the order.
struct Place {
    due: Vec<String>,
    /// Nobody need: it is that of a sweep's best cell, and no cell is valid.
    free: bool,
}

impl Plan {
    /// Of a run of training. A sweep's place is its best cell's, which is known when every cell has run: without a summary it may as well
    /// have none.
    pub fn training(resolved: &Resolved, summary: Option<&RunSummary>) -> Self {
        let barren = |id: &str| {
            let sweep = summary.map(|s| s.sweeps.iter().find(|s| s.id == id));
            sweep.is_none_or(|found| found.is_some_and(|s| s.best.is_none()))
        };
        let place = |id: &String| {
            let of = |c: &&Case| c.sweep.as_ref().is_some_and(|s| s.of == *id);
            let cells: Vec<String> = resolved.cases.iter().filter(of).map(|c| c.id.clone()).collect();
            match cells.is_empty() {
                true => Place { due: vec![id.clone()], free: false },
                false => Place { due: cells, free: barren(id) },
            }
        };
        Self {
            order: resolved.order.iter().map(place).collect(),
            retries: resolved.retries,
            audited: resolved.audited().map(|c| c.id.clone()).collect(),
        }
    }

    /// Of a run of kernels.
    pub fn kernels(resolved: &ResolvedKernels) -> Self {
        let place = |id: &String| Place { due: vec![id.clone()], free: false };
        Self { order: resolved.order.iter().map(place).collect(), retries: 0, audited: Vec::new() }
    }

    /// What is not as the scenario has it, and in words what is left to run, as of a run that was interrupted.
    pub fn check(&self, trials: &[Named]) -> (Vec<Finding>, Option<String>) {
        let mut findings = Vec::new();
        let mut places: BTreeMap<u32, Vec<&Named>> = BTreeMap::new();
        for t in trials {
            if let Some(position) = t.position {
                places.entry(position).or_default().push(t);
            }
        }
        for (position, at_it) in &mut places {
            at_it.sort_by_key(|t| t.attempt);
            self.place(*position, at_it, &mut findings);
        }
        let mut next = 0;
        for position in places.keys() {
            // One finding for a gap, however wide: positions are what a file says.
            if let Some(empty) = (next..*position).find(|p| !self.is_free(*p)) {
                let what = format!("no trial is stored at position {empty}, and later ones are");
                findings.push(Finding { at: "events".into(), what });
            }
            next = position.saturating_add(1);
        }
        let waiting = self.audits(trials, &mut findings);
        (findings, self.left(&places, waiting))
    }

    fn is_free(&self, position: u32) -> bool {
        self.order.get(position as usize).is_some_and(|p| p.free)
    }

    /// The attempts at one place.
    fn place(&self, position: u32, attempts: &[&Named], out: &mut Vec<Finding>) {
        let mut tell = |t: &Named, what: String| out.push(Finding { at: t.at.clone(), what });
        let mut before: Option<&Named> = None;
        for &t in attempts {
            if let Some(what) = self.misplaced(position, t) {
                tell(t, what);
            }
            let due = before.map_or(0, |b| b.attempt.saturating_add(1));
            match before {
                Some(b) if b.attempt == t.attempt => {
                    tell(t, format!("another trial has its position {position}"));
                }
                _ if t.attempt != due => {
                    tell(t, format!("it is attempt {}, and the one before it is missing", t.attempt));
                }
                Some(b) if !b.fault => {
                    let what = "it was begun again, and it was no fault of the machine that ended it";
                    tell(b, what.into());
                }
                _ if due > self.retries => {
                    let allowed = self.retries;
                    tell(t, format!("it was begun again {due} times, and the scenario allows {allowed}"));
                }
                _ => {}
            }
            before = Some(t);
        }
    }

    /// Why a trial may not stand at its place. A gate has no order: it finds it on the way.
    fn misplaced(&self, position: u32, t: &Named) -> Option<String> {
        let Some(place) = self.order.get(position as usize) else {
            let there_are = self.order.len();
            return (there_are > 0)
                .then(|| format!("it is at position {position}, and the scenario has {there_are}"));
        };
        let due = place.due.join(" or ");
        (!place.due.iter().any(|due| due == t.name()))
            .then(|| format!("it is of {}, and {due} is due at position {position}", t.name()))
    }

    /// Audit trials: one for every case that was timed. Cases that wait for theirs.
    fn audits(&self, trials: &[Named], out: &mut Vec<Finding>) -> usize {
        let mut waiting = 0;
        for case in &self.audited {
            let own = || trials.iter().filter(|t| t.name() == case);
            let audits: Vec<&Named> = own().filter(|t| t.is_audit()).collect();
            if let Some(more) = audits.get(1) {
                out.push(Finding { at: more.at.clone(), what: format!("{case} has another audit trial") });
            }
            match own().find(|t| !t.is_audit()) {
                Some(timed) if audits.is_empty() => out.push(Finding {
                    at: timed.at.clone(),
                    what: format!(
                        "the scenario asks for an audit trial of {case} before it, and none is stored"
                    ),
                }),
                None if audits.is_empty() => waiting += 1,
                _ => {}
            }
        }
        waiting
    }

    /// What is left to run, in words.
    fn left(&self, places: &BTreeMap<u32, Vec<&Named>>, waiting: usize) -> Option<String> {
        let empty = |p: &u32| !places.contains_key(p) && !self.is_free(*p);
        let trials = (0..self.order.len() as u32).filter(empty).count();
        let of = |n: usize, all: usize, what: &str| (n > 0).then(|| format!("{n} of {all} {what}"));
        let left = [of(trials, self.order.len(), "trials"), of(waiting, self.audited.len(), "audit trials")];
        let left: Vec<String> = left.into_iter().flatten().collect();
        (!left.is_empty()).then(|| {
            format!("not complete: {} did not run, or were taken out at the end", left.join(" and "))
        })
    }
}
