//! A trial of a run, judged and measured.

use chronibench_protocol::record::{Case, TrialHeader};

use super::TrialSummary;
use crate::{
    judge::{Judgement, audit::judge_in_run, faults::environment_fault, rounded_away},
    metrics::{TrialMetrics, metrics},
    trial::TrialLog,
};

/// A trial with what is made of it.
pub(super) struct Trial<'a> {
    pub log: &'a TrialLog,
    pub judgement: Judgement,
    pub metrics: TrialMetrics,
    pub superseded: bool,
}

impl<'a> Trial<'a> {
    /// `audited`: the scenario asks for an audit trial of its case.
    pub fn of(log: &'a TrialLog, all: &[&TrialLog], audits: &[&TrialLog], audited: bool) -> Self {
        let later = |a: &TrialHeader, b: &TrialHeader| {
            a.case == b.case && a.round == b.round && a.attempt > b.attempt
        };
        let again = |h: &TrialHeader| all.iter().filter_map(|l| l.header.as_deref()).any(|o| later(o, h));
        let superseded = log.header.as_deref().is_some_and(again) && environment_fault(log).is_some();
        let audit = audits.iter().copied().find(|a| a.case() == log.case());
        Self { log, judgement: judge_in_run(log, audit, audited), metrics: metrics(log), superseded }
    }

    pub fn id(&self) -> String {
        self.log.header.as_ref().map_or("(a log without a header)".into(), |h| h.spec.trial_id.clone())
    }

    pub fn summary(&self) -> TrialSummary {
        let header = self.log.header.as_ref();
        TrialSummary {
            id: self.id(),
            round: header.map_or(0, |h| h.round),
            position: header.map_or(0, |h| h.position),
            verdict: self.judgement.verdict,
            reasons: self.judgement.reasons.iter().map(ToString::to_string).collect(),
            superseded: self.superseded,
            gpu_not_idle: header.and_then(|h| h.gpu_not_idle.clone()),
            rounded_away: rounded_away(self.log),
            metrics: self.metrics.clone(),
        }
    }
}

/// Trials of a case.
pub(super) fn own<'t, 'a>(case: &'t Case, trials: &'t [Trial<'a>]) -> impl Iterator<Item = &'t Trial<'a>> {
    trials.iter().filter(|t| t.log.case() == case.id)
}
