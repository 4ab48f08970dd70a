//! Verdicts on what the harness found out by itself. Each audit gives at most one [`Check`], with the figure that it rests on.

mod isolation;
mod light;
mod name;
mod probe;
mod replay;
mod surroundings;
mod update;

use std::collections::BTreeMap;

use chronibench_protocol::{
    audit::Findings,
    record::{TrialHeader, Verdict},
    spec::{Dtype, Method},
};
use serde::{Deserialize, Serialize};

pub use name::Audit;

use super::{Judgement, Reason, judge, rounds_updates_away, windows};
use crate::trial::TrialLog;

/// What an audit came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// What must be is.
    Held,
    /// Too little to tell, or something that a reader should know.
    Unclear,
    /// It could not be made.
    Skipped,
    /// What must be is not.
    Failed,
}

/// One audit of one trial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// Which.
    pub audit: Audit,
    /// What it came to.
    pub outcome: Outcome,
    /// The figures, or why it was skipped.
    pub figure: String,
}

impl Check {
    fn new(audit: Audit, outcome: Outcome, figure: impl Into<String>) -> Self {
        Self { audit, outcome, figure: figure.into() }
    }
}

/// Every audit that the findings of a trial allow, and what an audit of its events leaves open.
pub fn checks(log: &TrialLog) -> Vec<Check> {
    let open = windows::resolution(log).map(|why| Check::new(Audit::TimedRegion, Outcome::Unclear, why));
    let (Some(header), Some(found)) = (log.header.as_deref(), log.audit.as_deref()) else {
        return open.into_iter().collect();
    };
    let trial = Audited { log, header, found, fine: is_fine(log), stalls: stalls(header) };
    let made = [
        update::check(&trial),
        replay::check(&trial),
        probe::check(&trial),
        isolation::check(&trial),
        light::check(&trial),
        surroundings::check(&trial),
    ];
    let mut all: Vec<Check> = made.into_iter().flatten().chain(open).collect();
    for (skipped, outcome) in [(&found.skipped, Outcome::Skipped), (&found.refused, Outcome::Failed)] {
        for s in skipped {
            let audit = [Audit::Update, Audit::Replay, Audit::Probe, Audit::Isolation]
                .into_iter()
                .find(|a| a.name() == s.what);
            all.extend(audit.map(|a| Check::new(a, outcome, s.why.clone())));
        }
    }
    all.sort_by_key(|c| c.audit);
    all
}

pub(super) fn check(log: &TrialLog, out: &mut Vec<Reason>) {
    let failed = checks(log).into_iter().filter(|c| c.outcome == Outcome::Failed);
    out.extend(failed.map(|c| Reason::Audit { audit: c.audit, what: c.figure }));
}

/// Judges a trial together with the audit trial of its case: an arm that fails that one does not do what it says.
pub fn judge_with(log: &TrialLog, audit: Option<&TrialLog>) -> Judgement {
    let mut judgement = judge(log);
    let Some(audit) = audit else { return judgement };
    let failed = judge(audit);
    if failed.verdict != Verdict::Valid {
        let told = |r: &Reason| Reason::AuditTrial { audit: r.audit(), what: r.to_string() };
        judgement.reasons.extend(failed.reasons.iter().map(told));
        judgement.verdict = judgement.verdict.max(Verdict::Invalid);
    }
    judgement
}

/// The same of a trial of a run, whose scenario may ask for an audit trial of its case: without it nothing is known of the arm.
pub fn judge_in_run(log: &TrialLog, audit: Option<&TrialLog>, asked: bool) -> Judgement {
    let mut judgement = judge_with(log, audit);
    if asked && audit.is_none() {
        judgement.reasons.push(Reason::NoAuditTrial);
        judgement.verdict = judgement.verdict.max(Verdict::Invalid);
    }
    judgement
}

/// One line for each audit over all trials of a case, audit trial included: the gravest, and the last of equals.
pub fn audits_of<'a>(logs: impl Iterator<Item = &'a TrialLog>) -> Vec<Check> {
    let mut worst: BTreeMap<Audit, Check> = BTreeMap::new();
    for check in logs.flat_map(checks) {
        let graver = worst.get(&check.audit).is_none_or(|known| check.outcome >= known.outcome);
        if graver {
            worst.insert(check.audit, check);
        }
    }
    worst.into_values().collect()
}

/// A trial with what was found out about it.
struct Audited<'a> {
    log: &'a TrialLog,
    header: &'a TrialHeader,
    found: &'a Findings,
    /// It keeps weights and moments in f32, so that little but the order of its sums differs from the reference.
    fine: bool,
    /// It loses most of its updates to rounding, as the reference does not.
    stalls: bool,
}

/// A rival's full fine-tuning with weights in bf16 and no masters rounds to nearest: an update below half of the spacing is lost, and at
/// usual rates that is most of them (measured: 92 % of the weights of a model of half a billion stay in the first step at a
/// rate of 7e-6). The native arm rounds stochastically.
fn stalls(header: &TrialHeader) -> bool {
    matches!(header.spec.method, Method::Full {}) && rounds_updates_away(header)
}

/// The audit trial's replay shows that rounding, and not the arm, keeps a tensor where it is.
pub(super) fn rounds_away(log: &TrialLog, name: &str) -> bool {
    let Some(found) = log.audit.as_deref() else { return false };
    found.updates.iter().any(|u| u.name == name && update::is_rounding(u, found))
}

/// On a GPU, f32 must have been asked for: weights may be kept in f32 there and multiplied in bf16.
fn is_fine(log: &TrialLog) -> bool {
    let spec = log.header.as_ref().map(|h| &h.spec);
    let asked = spec.is_some_and(|s| s.device == "cpu" || s.precision.dtype == Some(Dtype::F32));
    let f32 = |name: &str| ["f32", "float32", "fp32"].contains(&name);
    asked
        && log
            .hello
            .as_ref()
            .is_some_and(|h| f32(&h.event.precision.weights) && f32(&h.event.precision.moments))
}
