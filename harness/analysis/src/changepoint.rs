//! Where a series changes its level: the end of a warm-up, and steps in a history.
//!
//! Pettitt's test (1979) compares ranks before and after every place, so that outliers and the shape of the noise do not matter.

/// Level of one test for a change; a series of noise is split about this often.
pub const ALPHA: f64 = 0.01;

/// Least relative change of the medians that is called one: less is real perhaps, and of no consequence.
pub const MIN_CHANGE: f64 = 0.02;

/// A change of level.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    /// First index of the new level.
    pub at: usize,
    /// Median before.
    pub before: f64,
    /// Median after.
    pub after: f64,
    /// Approximate p-value.
    pub p: f64,
}

/// The one most likely change of `values`, if there is any at [`ALPHA`] that comes to [`MIN_CHANGE`].
pub fn change(values: &[f64]) -> Option<Change> {
    let n = values.len();
    let rank_sum = |at: usize| -> f64 {
        let (before, after) = values.split_at(at);
        let signs = before.iter().flat_map(|b| after.iter().map(move |a| (b - a).partial_cmp(&0.0)));
        signs.flatten().map(|o| f64::from(o as i8)).sum()
    };
    let k = (1..n).map(|at| rank_sum(at).abs()).fold(0.0, f64::max);
    // The sum says whether there is a change, but leans to the middle of the series: the place is the best fit of two levels.
    let misfit = |at: &usize| apart(&values[..*at]) + apart(&values[*at..]);
    let at = (1..n).min_by(|a, b| misfit(a).total_cmp(&misfit(b)))?;
    let size = n as f64;
    let p = (2.0 * (-6.0 * k * k / (size.powi(3) + size.powi(2))).exp()).min(1.0);
    let before = crate::stats::median(&values[..at])?;
    let after = crate::stats::median(&values[at..])?;
    let relevant = (after - before).abs() >= MIN_CHANGE * before.abs().min(after.abs());
    (p <= ALPHA && relevant).then_some(Change { at, before, after, p })
}

/// Sum of the distances from the median.
fn apart(values: &[f64]) -> f64 {
    let centre = crate::stats::median(values).unwrap_or(0.0);
    values.iter().map(|v| (v - centre).abs()).sum()
}

/// All changes of `values`, in order: the series is split at its most likely change, and both parts again.
pub fn changes(values: &[f64]) -> Vec<Change> {
    let Some(found) = change(values) else { return Vec::new() };
    let (left, right) = values.split_at(found.at);
    let later = |c: Change| Change { at: c.at + found.at, ..c };
    changes(left).into_iter().chain([found]).chain(changes(right).into_iter().map(later)).collect()
}

/// Steps that belong to the warm-up: those before the last change to a faster level, given the time of every step for the
/// same amount of work. A later slow-down is no warm-up, and stays in.
pub fn warmup_steps(times: &[f64]) -> usize {
    let faster = changes(times).into_iter().take_while(|c| c.after < c.before);
    faster.last().map_or(0, |c| c.at)
}
