//! Trials of two cases beside each other, round by round.

use crate::{
    metrics::MemorySource,
    stats::{Estimate, ratio_estimate},
    summary::{CaseSummary, TrialSummary},
};

/// The trials of a case that count.
pub(crate) fn valid(case: &CaseSummary) -> impl Iterator<Item = &TrialSummary> {
    case.trials.iter().filter(|t| t.is_valid())
}

/// Which memory the peaks of these trials are of, where all are of one: peaks of two kinds have no ratio.
pub(crate) fn memory_source<'a>(
    mut trials: impl Iterator<Item = &'a crate::metrics::TrialMetrics>,
) -> Option<MemorySource> {
    let first = trials.next()?.memory_source()?;
    trials.all(|m| m.memory_source() == Some(first)).then_some(first)
}

/// A figure of `case` over that of `against`, paired by round; none where no round has both.
pub(crate) fn ratio(
    case: &CaseSummary,
    against: &CaseSummary,
    figure: &dyn Fn(&TrialSummary) -> Option<f64>,
) -> Option<Estimate> {
    let pair = |t: &TrialSummary| {
        let same = valid(against).find(|other| other.round == t.round)?;
        figure(t).zip(figure(same))
    };
    ratio_estimate(&valid(case).filter_map(pair).collect::<Vec<_>>())
}
