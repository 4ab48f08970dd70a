//! Pairs of figures, whatever they come from.

use std::ops::Range;

use crate::{
    stats::median,
    summary::{CaseSummary, RunSummary, TrialSummary},
};

use super::spoils;

/// Arm of the baseline's side, before the scenario's own name of the arm.
pub const BASELINE: &str = "baseline";

/// Arm of the candidate's side.
pub const CANDIDATE: &str = "candidate";

/// The pairs of one case.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CasePairs {
    /// Case of the scenario.
    pub case: String,
    /// What is measured; more is better.
    pub unit: String,
    /// Baseline and candidate, in the order in which they ran.
    pub pairs: Vec<(f64, f64)>,
    /// Why the figures say nothing.
    pub problems: Vec<String>,
}

/// Id of a case on one side of a gate: `baseline+chronicals/full/on`.
pub fn on_side(side: &str, case: &str) -> String {
    format!("{side}+{case}")
}

/// Of a run in which two sides took turns, the pairs that its cases came to, fewest and most. A gate ends when it is decided, so the
/// scenario's number of trials is not what ran. `None` of any other run.
pub fn played(summary: &RunSummary) -> Option<(usize, usize)> {
    let trials = |id: &str| summary.cases.iter().find(|c| c.id == id).map(|c| c.counted().count());
    let pairs = |c: &CaseSummary| -> Option<usize> {
        let case = c.id.strip_prefix(CANDIDATE)?.strip_prefix('+')?;
        Some(c.counted().count().min(trials(&on_side(BASELINE, case))?))
    };
    let played: Vec<usize> = summary.cases.iter().filter_map(pairs).collect();
    let whole = 2 * played.len() == summary.cases.len();
    Some((*played.iter().min().filter(|_| whole)?, *played.iter().max()?))
}

/// The figure of a trial: the median rate of its windows, which a single stall does not move.
pub fn figure(trial: &TrialSummary) -> Option<f64> {
    median(&trial.metrics.window_rates)
}

const UNIT: &str = "real tokens/s";

/// Pairs of a run in which both sides took turns; rounds outside of `rounds` are left out.
pub fn live(summary: &RunSummary, case: &str, rounds: Range<u32>) -> CasePairs {
    let mut out = CasePairs { case: case.into(), unit: UNIT.into(), ..CasePairs::default() };
    let find = |side| summary.cases.iter().find(|c| c.id == on_side(side, case));
    let (Some(baseline), Some(candidate)) = (find(BASELINE), find(CANDIDATE)) else {
        out.problems.push(format!("the run has no two sides of {case}"));
        return out;
    };
    let own = |c: &CaseSummary| -> Vec<TrialSummary> {
        c.counted().filter(|t| rounds.contains(&t.round)).cloned().collect()
    };
    let (a, b) = (own(baseline), own(candidate));
    out.problems.extend(a.iter().chain(&b).filter_map(|t| spoils(&t.id, Some(t.verdict), &t.reasons)));
    let sides = (&baseline.id, &candidate.id);
    let compared = summary.comparisons.iter().find(|c| (&c.against, &c.case) == sides);
    if out.problems.is_empty() && !a.is_empty() && !b.is_empty() {
        out.problems
            .extend(compared.and_then(|c| {
                spoils("the comparison of the two sides", c.result.verdict, &c.result.reasons)
            }));
    }
    let pair = |a: &TrialSummary| {
        let b = b.iter().find(|b| b.round == a.round)?;
        Some((figure(a)?, figure(b)?))
    };
    out.pairs = a.iter().filter_map(pair).collect();
    out
}

/// Pairs of an earlier run (`then`) and one of now, trial by trial. With an `anchor`, a case that both ran with the same
/// program, each figure counts by its ratio to the anchor's in the same round, so that a change of the machine cancels out.
pub fn stored(then: &RunSummary, now: &RunSummary, case: &str, anchor: Option<&str>) -> CasePairs {
    let mut out = CasePairs { case: case.into(), unit: UNIT.into(), ..CasePairs::default() };
    let mut sides = [Vec::new(), Vec::new()];
    for (side, (run, name)) in sides.iter_mut().zip([(then, "the earlier run"), (now, "this run")]) {
        // One that was begun again says nothing, and must not take the place of the one that did.
        let trials = |id: &str| -> Option<Vec<&TrialSummary>> {
            run.cases.iter().find(|c| c.id == id).map(|c| c.counted().collect())
        };
        let (Some(own), anchors) = (trials(case), anchor.map(trials)) else {
            out.problems.push(format!("{name} has no case {case}"));
            continue;
        };
        let Some(anchors) = anchors.unwrap_or(Some(Vec::new())) else {
            out.problems.push(format!("{name} has no anchor {}", anchor.unwrap_or_default()));
            continue;
        };
        let bad = own.iter().chain(&anchors).filter_map(|t| spoils(&t.id, Some(t.verdict), &t.reasons));
        out.problems.extend(bad.map(|b| format!("{name}: {b}")));
        *side = own
            .iter()
            .filter_map(|t| match anchor {
                None => figure(t),
                Some(_) => Some(figure(t)? / figure(anchors.iter().find(|a| a.round == t.round)?)?),
            })
            .collect();
    }
    if anchor.is_some() {
        out.unit = "times the anchor".into();
    }
    let [then, now] = sides;
    out.pairs = then.into_iter().zip(now).collect();
    out
}
